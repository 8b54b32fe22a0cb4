"""``experiment=both_sensors``: one data set for a fused and two single-sensor models."""

from pathlib import Path

import pytest
import torch

from cmt_aqr.data.dataset import SampleKey
from cmt_aqr.runs.configuration import build_data
from cmt_aqr.scenes import Settings
from cmt_aqr.training.run import build_module
from tests.helpers.composed import composed

CAMERA = ["model.network.lidar=null", "model.network.head.bev_channels=null"]
LIDAR = ["model.network.image=null", "model.network.head.cameras=false"]
UNMASKED = "data.train_transforms.mask_modality=null"


@pytest.mark.parametrize(
    ("single", "branches"),
    [([], ["image", "lidar"]), ([*CAMERA, UNMASKED], ["image"]), ([*LIDAR, UNMASKED], ["lidar"])],
    ids=["fused", "camera", "lidar"],
)
def test_two_steps_train_all_branches(
    single: list[str], branches: list[str], small_root: Path, tmp_path: Path
) -> None:
    paths = [f"data.root={small_root}", f"data.cache_dir={tmp_path}", "data.version=v1.0-mini"]
    splits = ["data.train_split=mini_train", "data.val_split=mini_val"]
    config = composed("experiment=both_sensors", *single, *paths, *splits)
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    module = build_module(config, data, processes=1).train()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    before = {name: weight.detach().clone() for name, weight in module.model.named_parameters()}
    for number, batch in zip(range(2), data.train_dataloader(), strict=False):
        loss = module.training_step(data.finish(batch), number)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = module.model.named_parameters()
    trained = {name.split(".")[0] for name, weight in weights if (weight != before[name]).any()}
    assert trained == {"head", "decoder", *branches}
    frames = [data.dataset("train")[SampleKey(epoch, 0)] for epoch in range(40)]
    without_images = any(frame.images is not None and not frame.images.any() for frame in frames)
    without_points = any((frame.points == frame.points[:1]).all() for frame in frames)
    assert without_images == (len(branches) == 2)
    assert without_points == (branches != ["lidar"])  # a camera model reads no points


@pytest.mark.parametrize("experiment", ["both_sensors", "both_failures_base"])
def test_the_data_match_the_scenes(experiment: str) -> None:
    config = composed(f"experiment={experiment}")
    data = config.data
    settings = Settings(**{key: value for key, value in data.make.items() if value is not None})
    assert (settings.version, settings.split_names()) == (data.version, (data.train_split, data.val_split))
    x0, y0, _, x1, y1, _ = config.model.grid.point_range
    assert settings.annotated_range < min(-x0, -y0, x1, y1)
