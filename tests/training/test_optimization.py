import pytest
import torch
from torch import nn

from cmt_aqr.training.optimization import (
    Multipliers,
    OneCycle,
    OptimizerSettings,
    module_of,
    parameter_groups,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.ModuleDict({"backbone": nn.Linear(2, 2), "neck": nn.Linear(2, 2)})
        self.decoder = nn.Linear(2, 2)


def test_groups_carry_their_factors() -> None:
    factors = Multipliers(lr={"img_backbone": 0.1}, weight_decay={"img_backbone": 5.0})
    groups = {g["name"]: g for g in parameter_groups(Model(), 1e-3, 0.01, factors)}
    assert set(groups) == {"img_backbone", "img_neck", "transformer"}
    assert groups["img_backbone"]["lr"] == pytest.approx(1e-4)
    assert groups["img_backbone"]["weight_decay"] == pytest.approx(0.05)
    assert groups["transformer"]["lr"] == pytest.approx(1e-3)


def test_every_parameter_has_one_module() -> None:
    assert module_of("head.task.center.0.weight") == "task_heads"
    assert module_of("head.reference_points") == "embeddings"
    assert module_of("aqr.generator.output.weight") == "aqr_weight_generator"
    with pytest.raises(KeyError, match=r"stray\.weight"):
        module_of("stray.weight")


def test_one_cycle_moves_beta_inversely() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1e-4, betas=(0.9, 0.999))
    scheduler = OneCycle(optimizer, steps=100, peak=6, final=1e-4, warmup=0.4, lowest_beta=0.805)
    rates, betas = [], []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        betas.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(1e-4) and betas[0] == pytest.approx(0.9)
    assert rates[40] == pytest.approx(6e-4) and betas[40] == pytest.approx(0.805)
    assert rates[20] == pytest.approx(3.5e-4)  # halfway up a cosine
    assert rates[100] == pytest.approx(1e-8) and betas[100] == pytest.approx(0.9)
    assert max(rates) == rates[40]


def test_the_learning_rate_scales_only_with_lr_for_batch() -> None:
    assert OptimizerSettings(lr=1e-4).scaled_lr(2) == 1e-4
    assert OptimizerSettings(lr=1.6e-4, lr_for_batch=16).scaled_lr(2) == pytest.approx(2e-5)


def test_warmup_then_constant() -> None:
    settings = OptimizerSettings(lr=1e-3, schedule="constant", warmup=0.1)
    optimizer, scheduler = settings.build(Model(), Multipliers(), samples=1, steps=100)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [rates[step] for step in (0, 9, 19)] == pytest.approx([1e-4, 1e-3, 1e-3])
