"""A bias per query in the decoder's attention: its operator, controls and signal."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cmt_aqr.aqr import AttentionBias
from cmt_aqr.aqr.statistics import beta_values, detection_of_damage, doubts, share_values, spread
from cmt_aqr.errors import UserError
from cmt_aqr.ops.biased_attention import biased_attention
from cmt_aqr.ops.split_attention import split_attention
from cmt_aqr.outputs import BiasOutput
from cmt_aqr.runs.configuration import build_data
from cmt_aqr.structures import Batch
from cmt_aqr.training.losses import SIGNAL
from cmt_aqr.training.module import DetectorModule
from cmt_aqr.weights.convert import to_official
from cmt_aqr.weights.load import load_weights
from tests.helpers.composed import composed
from tests.helpers.small_detector import damaged, small_batch, small_module

HEADS = "model.heads=2"  # of 16 channels
BIAS = ("aqr=attention_bias", HEADS, "aqr.generator.feedforward_dims=32", "aqr.generator.bev_window=3")
PLAIN = ("aqr=none", HEADS)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parts(groups: int, dtype: torch.dtype = torch.float32, width: int = 8) -> tuple[Tensor, ...]:
    """Queries, keys, values, beta, groups and factors: 2 frames, 3 heads, 5 queries, 14 tokens."""
    q, k, v = normal(2, 3, 5, width, dtype=dtype), normal(2, 3, 14, width, seed=1), normal(2, 3, 14, width, seed=2)
    of_token = torch.arange(14) // (14 // (groups + 1)) - 1
    members = functional.one_hot(of_token.clamp(min=0), groups).to(dtype) * (of_token >= 0)[:, None]
    beta = 3 * normal(2, 5, groups, seed=3, dtype=dtype)
    return q, k.to(dtype), v.to(dtype), beta, members[:14, :groups], 1 + normal(3, seed=4, dtype=dtype)


def split(monkeypatch: pytest.MonkeyPatch, separately: bool) -> None:
    """Attend to each group of tokens separately, as on a CPU, or with extra channels, as on a GPU."""
    monkeypatch.setattr("cmt_aqr.ops.biased_attention._MAX_SEGMENTS", 8 if separately else 0)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("separately", [False, True])
def test_a_bias_equals_a_mask(
    groups: int, factored: bool, separately: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    split(monkeypatch, separately)
    q, k, v, beta, members, factors = parts(groups)
    mask = (beta @ members.T)[:, None]
    if factored:
        mask = mask * factors[:, None, None]
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(
        biased_attention(q, k, v, beta, members, factors if factored else None), expected, rtol=0, atol=1e-6
    )


def test_when_attention_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with a beta of 0, which is plain attention to the last bit, many segments, or dropout."""
    q, k, v, beta, members, _ = parts(1)
    sizes: list[tuple[int, ...]] = []

    def record(*inputs: Any) -> Tensor:
        sizes.append(inputs[4])
        return split_attention(*inputs)

    monkeypatch.setattr("cmt_aqr.ops.biased_attention.split_attention", record)
    biased_attention(q, k, v, beta, members)
    assert sizes == [(7, 7)]
    for other in (torch.zeros_like(beta), beta):
        biased_attention(q, k, v, other, torch.eye(2)[torch.arange(14) % 2][:, :1])
    biased_attention(q, k, v, beta, members, dropout=0.1)
    assert len(sizes) == 1


@pytest.mark.parametrize("width", [16, 24, 32, 64])
def test_a_beta_of_0_is_plain_attention_to_the_last_bit(width: int) -> None:
    q, k, v, beta, members, _ = parts(1, width=width)
    plain = functional.scaled_dot_product_attention(q, k, v)
    for grad in (False, True):
        assert torch.equal(biased_attention(q, k, v, torch.zeros_like(beta, requires_grad=grad), members), plain)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("separately", [False, True])
def test_gradients(groups: int, separately: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    split(monkeypatch, separately)
    q, k, v, beta, members, factors = parts(groups, torch.float64)
    inputs = [value.requires_grad_() for value in (q, k, v, beta)]
    factors.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *a: biased_attention(*a[:4], members, a[4]), (*inputs, factors), fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("height", [20.0, -20.0, 300.0])
@pytest.mark.parametrize("separately", [False, True])
def test_large_betas_in_half_precision_select_a_sensor(
    dtype: torch.dtype, height: float, separately: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    split(monkeypatch, separately)
    q, k, v, beta, members, _ = parts(1)
    q, k, v, beta = (
        value.requires_grad_() for value in (q.to(dtype), k.to(dtype), v.to(dtype), torch.full_like(beta, height))
    )
    attended = biased_attention(q, k, v, beta, members)
    chosen = members[:, 0] == (1 if height > 0 else 0)
    alone = functional.scaled_dot_product_attention(q, k[:, :, chosen], v[:, :, chosen])
    torch.testing.assert_close(attended, alone, rtol=0, atol=0.03)
    gradients = torch.autograd.grad(attended.float().sum(), (q, k, v, beta))
    assert all(gradient.isfinite().all() for gradient in gradients)


def aqr_of(module: DetectorModule) -> AttentionBias:
    assert isinstance(module.model.aqr, AttentionBias)
    return module.model.aqr


@pytest.mark.parametrize("groups", ["sensors", "views"])
@pytest.mark.parametrize("beta", ["learned", "zero", "oracle", "shuffled"])
def test_an_untrained_bias_is_cmt_to_the_last_bit(groups: str, beta: str) -> None:
    plain, batch = small_module(*PLAIN).eval(), damaged(small_batch(3, 1), lidar=0.0)
    factors = "aqr.per_layer_and_head=[${model.layers},${model.heads}]"
    biased = small_module(*BIAS, f"aqr.groups={groups}", f"aqr.beta={beta}", "aqr.health=true", factors).eval()
    biased.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        expected, predicted = plain.model(batch).matching, biased.model(batch).matching
    assert torch.equal(predicted.codes, expected.codes) and torch.equal(predicted.logits, expected.logits)


@pytest.mark.parametrize("beta", ["learned", "zero", "oracle", "shuffled"])
def test_published_weights_start_it_as_cmt(beta: str) -> None:
    plain = small_module(*PLAIN, "model.network.image.backbone=resnet50").eval()
    biased = small_module(*BIAS, f"aqr.beta={beta}", "model.network.image.backbone=resnet50", seed=1).eval()
    report = load_weights(biased.model, to_official(plain.model.state_dict()))
    assert report.naming == "official" and report.fresh == ("aqr",) and not report.unexpected
    batch = damaged(small_batch(1), lidar=0.0)
    with torch.no_grad():
        expected, predicted = plain.model(batch).matching, biased.model(batch).matching
    assert torch.equal(predicted.codes, expected.codes) and torch.equal(predicted.logits, expected.logits)


def test_the_first_step_trains_the_head_and_the_second_all_of_it() -> None:
    module, batch = small_module(*BIAS, "lr_mult.aqr_weight_generator=1"), small_batch(3)
    optimizer = torch.optim.SGD(module.model.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        module.training_step(batch, step)["loss"].backward()
        moved = {
            name: bool(value.grad is not None and value.grad.any())
            for name, value in aqr_of(module).named_parameters()
        }
        assert moved["beta_head.weight"] and all(moved.values()) == (step == 1)
        optimizer.step()


def set_beta(module: DetectorModule, value: float) -> None:
    with torch.no_grad():
        aqr_of(module).beta_head.bias.fill_(value)


@pytest.mark.parametrize(("value", "lost"), [(-20.0, "points"), (20.0, "images")])
def test_beta_takes_the_decoder_off_a_sensor(value: float, lost: str) -> None:
    module, batch = small_module(*BIAS).eval(), small_batch(2)
    set_beta(module, value)
    blank = batch.replace(**{lost: torch.zeros_like(getattr(batch, lost))})
    with torch.no_grad():
        biased, biased_on_blank = (module.model(inputs).matching.codes for inputs in (batch, blank))
        set_beta(module, 0.0)
        plain, plain_on_blank = (module.model(inputs).matching.codes for inputs in (batch, blank))
    assert torch.allclose(biased, biased_on_blank, atol=1e-5)
    assert not torch.allclose(plain, plain_on_blank, atol=1e-3)


@pytest.mark.parametrize("groups", ["sensors", "views"])
def test_beta_does_not_depend_on_the_boxes(groups: str) -> None:
    module = small_module(*BIAS, f"aqr.groups={groups}", "aqr.generator.dropout=0")
    torch.nn.init.normal_(aqr_of(module).beta_head.weight)
    betas = []
    for truth in (0, 1):
        batch = small_batch(3, truth_seed=truth)
        targets = module.denoising(batch, 20, tuple(module.model.head.point_range))  # type: ignore[misc]
        output = module.model(batch, targets.queries).aqr
        assert isinstance(output, BiasOutput) and output.beta.shape[1] > 20 and output.beta.any()
        betas.append(output.beta[:, -20:])
    assert torch.equal(*betas)


def output_of(batch: Batch, *overrides: str) -> BiasOutput:
    module = small_module(*BIAS, *overrides).eval()
    torch.nn.init.normal_(aqr_of(module).beta_head.weight)
    with torch.no_grad():
        output = module.model(batch).aqr
    assert isinstance(output, BiasOutput)
    return output


def test_the_controls() -> None:
    batch = damaged(small_batch(2), camera=0.25)
    learned, zero = output_of(batch), output_of(batch, "aqr.beta=zero")
    assert learned.beta.any() and not zero.beta.any()
    shuffled = output_of(batch, "aqr.beta=shuffled").beta
    assert torch.equal(shuffled.sort(dim=1)[0], learned.beta.sort(dim=1)[0]) and not torch.equal(
        shuffled, learned.beta
    )
    assert torch.equal(shuffled, output_of(batch, "aqr.beta=shuffled").beta)
    oracle = output_of(batch, "aqr.beta=oracle")
    assert oracle.lidar_lost is not None and oracle.seen is not None
    lidar = torch.where(oracle.lidar_lost == 1, -200.0, (1 - oracle.lidar_lost).log())  # log of what is left
    camera = torch.where(oracle.seen, math.log(0.75), 0.0)
    assert torch.allclose(oracle.beta[..., 0], lidar - camera.amin(dim=-1)) and len(oracle.beta.unique()) > 1
    per_view = output_of(batch, "aqr.beta=oracle", "aqr.groups=views")
    assert per_view.camera_lost is not None
    assert torch.allclose(per_view.beta, camera - lidar[..., None])


@pytest.mark.parametrize("control", ["oracle", "zero"])
def test_a_fixed_beta_trains_nothing_and_loads_weights_of_plain_cmt(control: str) -> None:
    module, plain = small_module(*BIAS, f"aqr.beta={control}", seed=1), small_module(*PLAIN)
    for state in (plain.state_dict(), small_module(*BIAS).state_dict()):
        module.load_state_dict(state)
    module.training_step(damaged(small_batch(3)), 0)["loss"].backward()
    assert not any(parameter.requires_grad for parameter in aqr_of(module).parameters())
    assert all(value.grad is not None for value in module.model.parameters() if value.requires_grad)
    with pytest.raises(RuntimeError, match="Missing key"):
        small_module(*BIAS, "aqr.beta=shuffled").load_state_dict(plain.state_dict())


@pytest.mark.parametrize("form", [BIAS, (*BIAS, "aqr.groups=views"), ("aqr.stop_gradient=true",)])
def test_the_signal_teaches_aqr_and_nothing_else(form: tuple[str, ...]) -> None:
    module = small_module(*form, "training.criterion.signal_weight=1", "lr_mult.aqr_weight_generator=1")
    batch = damaged(small_batch(3, 2))
    optimizer = torch.optim.Adam(module.model.aqr.parameters(), lr=0.01)  # type: ignore[union-attr]
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = module.criterion(module.model(batch), batch)[SIGNAL]
        loss.backward()
        learning = {
            name for name, value in module.model.named_parameters() if value.grad is not None and value.grad.any()
        }
        assert learning and all(name.startswith("aqr.") for name in learning)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_target_prefers_undamaged_sensors() -> None:
    batch = damaged(small_batch(2), camera=0.5)
    output = output_of(batch)
    signal, lidar_gone = output.signal, output.lidar_lost == 1
    assert signal is not None
    valid = signal.valid[..., 0]
    assert signal.target[lidar_gone & valid].max() <= 0.5
    assert (signal.target[~lidar_gone & valid] == 0.75).all()
    six = output_of(batch, "aqr.groups=views")
    assert six.signal is not None and six.seen is not None and torch.equal(six.signal.valid, six.seen)
    assert torch.equal(output_of(damaged(small_batch(2), 0.0)).signal.target, torch.full((1, 20, 1), 0.5))  # type: ignore[union-attr]
    assert output_of(small_batch(2)).signal is None


def test_statistics_of_beta() -> None:
    lost = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    camera = torch.tensor([[0.0, 0.0, 0.0, 1.0]])[..., None].expand(1, 4, 6)
    seen = torch.tensor([True, False, False, False, False, False]).expand(1, 4, 6)
    beta = torch.tensor([[-2.0, -1.0, 0.0, 3.0]])[..., None]
    output = BiasOutput(beta, torch.ones(3, 1), lidar_lost=lost, camera_lost=camera, seen=seen)
    numbers = spread(beta_values(output))
    expected = {"lidar_broken": -1.5, "camera_broken": 3.0, "whole": 0.0, "min": -2.0, "max": 3.0}
    assert {name: float(numbers[name]) for name in expected} == expected

    def areas(of: BiasOutput) -> dict[str, float]:
        return {name: float(value) for name, value in detection_of_damage(doubts(of)).items()}

    assert areas(output) == {"auc_lidar": 1.0, "auc_camera": 1.0}
    certain = output.replace(beta=torch.tensor([[-19.0, -18.5, -18.0, 19.0]])[..., None])
    assert areas(certain)["auc_lidar"] == 1.0  # although the sigmoid of all is 1
    assert areas(output.replace(beta=-beta, valid=torch.tensor([[True, True, True, False]]))) == {"auc_lidar": 0.0}
    six = beta.expand(1, 4, 6) * torch.tensor([1.0, -9, 9, -9, 9, -9])  # only the first camera sees anything
    numbers = spread(beta_values(output.replace(beta=six)))
    assert {name: float(numbers[name]) for name in expected} == expected
    for sign, area in ((1, 0.0), (-1, 1.0)):  # a beta per camera is a preference for that camera
        assert areas(output.replace(beta=sign * six)) == {"auc_lidar": area, "auc_camera": area}
    assert set(beta_values(output.replace(lidar_lost=0 * lost))) == {"all", "camera_broken", "whole"}
    shares = spread(share_values(torch.tensor([[0.0, 0.5, 1.0]]), output))  # of the last three queries
    expected = {"mean": 0.5, "std": (1 / 6) ** 0.5, "min": 0.0, "max": 1.0}
    expected |= {"lidar_broken": 0.0, "camera_broken": 1.0, "whole": 0.5}
    assert {name: float(value) for name, value in shares.items()} == pytest.approx(expected)


def test_an_oracle_needs_damage() -> None:
    with pytest.raises(UserError, match=r"data\.damage=true"):
        small_module(*BIAS, "aqr.beta=oracle").model(small_batch(1))


@pytest.mark.parametrize(
    ("overrides", "damage"),
    [
        ((), False),
        (("aqr=attention_bias",), False),
        (("aqr=attention_bias", "aqr.beta=oracle"), True),
        (("aqr=attention_bias", "training.criterion.signal_weight=0.5"), True),
        (("data.damage=true",), True),
    ],
)
def test_frames_carry_damage_if_needed(overrides: tuple[str, ...], damage: bool, small_root: Any) -> None:
    data = build_data(composed(f"data.root={small_root}", *overrides, "data.num_workers=0"))
    data.prepare_data()
    data.setup("validate")
    assert (data.dataset("val")[0].damage is not None) == damage
