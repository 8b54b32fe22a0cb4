"""``experiment=embedded_recipe`` and its ablation: each part of the recipe has its effect, or is left out."""

from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from cmt_aqr.data.dataset import SampleKey
from cmt_aqr.runs.configuration import build_data
from tests.helpers.composed import CONF, composed

FRAMES, CLASSES = 3, 10  # of the tiny data, whose frames have all classes
FULL = "embedded_recipe"
WITHOUT = {
    "cbgs": {"data.resampling", "data.sampling.until_epoch", "trainer.max_epochs"},
    "sampling": {"data.sampling"},
    "fade": {"data.sampling.until_epoch"},
    "masked_modal": {"data.train_transforms.mask_modality"},
}
"""Parts that are left out, and the settings in which such an arm may differ from the full recipe."""


@pytest.mark.parametrize("left_out", [None, *WITHOUT])
def test_each_part_has_its_effect_or_not(small_root: Path, cache: Path, left_out: str | None) -> None:
    config = composed(
        f"experiment={FULL if left_out is None else f'{FULL}_without_{left_out}'}",
        f"data.root={small_root}",
        "data.version=v1.0-mini",
        "data.train_split=mini_train",
        "data.val_split=mini_val",
        f"data.cache_dir={cache}",
        "data.num_workers=0",
    )
    if config.data.sampling is not None:
        config.data.sampling.processes = 1
        config.data.sampling.goals.traffic_cone = 40  # more than in a frame of these data
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
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
    configs = [composed(f"experiment={name}") for name in (FULL, f"{FULL}_without_{left_out}")]
    flat = [pd.json_normalize(OmegaConf.to_container(config)).iloc[0].to_dict() for config in configs]
    differing = {key for key in flat[0] | flat[1] if flat[0].get(key) != flat[1].get(key)} - {"name"}
    allowed = WITHOUT[left_out]
    assert differing and all(any(f"{key}.".startswith(f"{own}.") for own in allowed) for key in differing)


def test_the_arm_without_resampling_takes_as_many_steps() -> None:
    full, without = (composed(f"experiment={name}") for name in (FULL, f"{FULL}_without_cbgs"))
    factor = without.trainer.max_epochs // full.trainer.max_epochs  # the mean number of classes in a frame
    assert without.data.sampling.until_epoch == factor * full.data.sampling.until_epoch
    assert full.data.sampling.until_epoch == round(full.trainer.max_epochs * 15 / 20)


def test_the_sweep_has_these_arms() -> None:
    sweep = OmegaConf.load(CONF / "sweep" / "recipe_ablation.yaml")
    assert "name" not in sweep  # tables use the names of the arms
    assert sweep.hydra.sweeper.params.experiment.split(",") == [FULL, *(f"{FULL}_without_{n}" for n in WITHOUT)]
    assert len(set(str(sweep.hydra.sweeper.params.seed).split(","))) == 3
