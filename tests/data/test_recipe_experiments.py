"""``experiment=embedded_recipe`` and its ablation: each part of the recipe is really there, or really not."""

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.dataset import SampleKey
from cmt_aqr.runs.configuration import build_data
from tests.helpers.composed import CONF, composed
from tests.helpers.small_detector import small_module

FRAMES, CLASSES = 3, 10  # of the tiny data, whose frames have all classes
WHOLE = "embedded_recipe"
WITHOUT = {
    "cbgs": {"data.resampling", "data.sampling.until_epoch", "trainer.max_epochs"},
    "sampling": {"data.sampling"},
    "fade": {"data.sampling.until_epoch"},
    "masked_modal": {"data.train_transforms.mask_modality"},
}
"""What is left out, and the settings in which that run differs from the whole recipe."""


def arm(small_root: Path, cache: Path, name: str, *overrides: str) -> tuple[DictConfig, NuScenesDataModule]:
    config = composed(
        f"experiment={name}",
        f"data.root={small_root}",
        "data.version=v1.0-mini",
        "data.train_split=mini_train",
        "data.val_split=mini_val",
        f"data.cache_dir={cache}",
        "data.num_workers=0",
        *overrides,
    )
    if config.data.sampling is not None:
        config.data.sampling.processes = 1
        config.data.sampling.goals.traffic_cone = 40  # more than a frame of these data has
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    return config, data


@pytest.mark.parametrize("left_out", [None, *WITHOUT])
def test_each_part_is_there_or_not(small_root: Path, cache: Path, left_out: str | None) -> None:
    config, data = arm(small_root, cache, WHOLE if left_out is None else f"{WHOLE}_without_{left_out}")
    dataset = data.dataset("train")
    entries = data.train_dataloader().frame_sampler.frames
    assert entries == (FRAMES if left_out == "cbgs" else FRAMES * CLASSES)

    def pasted(epoch: int) -> bool:
        keys = [SampleKey(epoch, frame) for frame in range(FRAMES)]
        return any(len(dataset.stored(key).boxes) > len(dataset.reader.read(key.frame).boxes) for key in keys)

    assert pasted(0) == (left_out != "sampling")
    assert pasted(config.trainer.max_epochs - 1) == (left_out == "fade")
    frames = [dataset[SampleKey(epoch, frame)] for epoch in range(8) for frame in range(FRAMES)]
    blind = sum(not frame.images.any() for frame in frames if frame.images is not None)
    deaf = sum(bool((frame.points == frame.points[0]).all()) for frame in frames)
    assert (blind > 0, deaf > 0) == ((left_out != "masked_modal"),) * 2
    turned = {round(float(frame.lidar2global[0, 0]), 4) for frame in frames[::FRAMES]}
    assert len(turned) == 8  # another scene augmentation in each epoch


@pytest.mark.parametrize("left_out", WITHOUT)
def test_an_arm_differs_in_its_part_only(left_out: str) -> None:
    whole, less = (flat(composed(f"experiment={name}")) for name in (WHOLE, f"{WHOLE}_without_{left_out}"))
    differing = {key for key in whole.keys() | less.keys() if whole.get(key) != less.get(key)} - {"name"}
    allowed = WITHOUT[left_out]
    assert differing and all(any(f"{key}.".startswith(f"{own}.") for own in allowed) for key in differing)


def flat(config: DictConfig) -> dict[str, object]:
    """Values of a configuration by their keys, as written."""
    plain = OmegaConf.to_container(config)
    values: dict[str, object] = {}
    left = [("", plain)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict) and value:
            left += [(f"{key}.{name}".lstrip("."), part) for name, part in value.items()]
        else:
            values[key] = value
    return values


def test_the_arm_without_resampling_takes_as_many_steps() -> None:
    whole, frame_wise = (composed(f"experiment={name}") for name in (WHOLE, f"{WHOLE}_without_cbgs"))
    times = frame_wise.trainer.max_epochs // whole.trainer.max_epochs  # classes that a frame has on average
    assert frame_wise.data.sampling.until_epoch == times * whole.data.sampling.until_epoch
    assert whole.data.sampling.until_epoch == round(whole.trainer.max_epochs * 15 / 20)


def test_the_sweep_is_of_these() -> None:
    sweep = OmegaConf.load(CONF / "sweep" / "recipe_ablation.yaml")
    assert "name" not in sweep  # the arms' own names tell them apart in the tables
    assert sweep.hydra.sweeper.params.experiment.split(",") == [WHOLE, *(f"{WHOLE}_without_{n}" for n in WITHOUT)]
    assert len(set(str(sweep.hydra.sweeper.params.seed).split(","))) == 3


def test_a_few_steps(small_root: Path, cache: Path) -> None:
    config, data = arm(small_root, cache, WHOLE)
    module = small_module("aqr=none")
    loader = data.train_dataloader()
    optimizer = torch.optim.AdamW(module.parameters(), config.optimizer.lr)
    losses = []
    for number, batch in zip(range(2), loader, strict=False):
        assert len(batch.tokens) == config.data.batch_size
        loss = module.training_step(data.finish(batch), number)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert len(losses) == 2 and all(torch.tensor(losses).isfinite())
