"""The data module: built from its configuration, and its errors."""

import re
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.ground_truth import load_ground_truth
from cmt_aqr.data.index import load_index
from cmt_aqr.data.tables import open_tables
from cmt_aqr.errors import UserError
from cmt_aqr.runs.configuration import build_data
from tests.helpers.composed import composed
from tests.helpers.small_data import datamodule, ready

SMALL = ("seed=5", "model.image_size=[64,160]", "data.num_workers=0")


def test_configuration_builds_and_loads(small_root: Path, tmp_path: Path) -> None:
    where = (f"data.root={small_root}", f"data.cache_dir={tmp_path}", "data.batch_size=3")
    data = hydra.utils.instantiate(composed(*SMALL, *where).data)
    assert isinstance(data, NuScenesDataModule)
    assert data.seed == 5
    data.check()
    data.prepare_data()
    data.setup("fit")
    (batch,) = list(data.train_dataloader())
    assert batch.size == 3
    assert batch.images.shape == (3, 6, 3, 64, 160)
    assert batch.images.dtype == torch.uint8
    finished = data.finish(batch)
    assert finished.images.is_contiguous()
    assert finished.images.dtype == finished.points.dtype == finished.lidar2img.dtype == torch.float32
    assert data.finish(finished) is finished
    assert batch.lidar2global.dtype == torch.float64
    assert torch.isfinite(batch.points).all()
    assert (batch.boxes[:, :2].abs() <= 54).all()
    assert data.dataset("train")[0].shuffle is not None and data.dataset("val")[0].shuffle is None
    assert [token for batch in data.val_dataloader() for token in batch.tokens] == list(data.ground_truth().tokens)


def test_transforms_are_switched_by_name(small_root: Path, tmp_path: Path) -> None:
    mask = "{_target_: cmt_aqr.data.masking.MaskModality, cameras: 0.0, lidar: 1.0}"
    where = (f"data.root={small_root}", f"data.cache_dir={tmp_path}")
    transforms = (f"+data.eval_transforms.mask={mask}", "+data.eval_transforms.no=null")
    data = hydra.utils.instantiate(composed(*SMALL, *where, *transforms).data)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).points.any()
    assert not next(iter(data.val_dataloader())).points.any()


def test_sensors_and_limits(small_root: Path, tmp_path: Path) -> None:
    data = ready("fit", small_root, tmp_path, cameras=False, limit_train_frames=2, limit_eval_frames=1)
    assert len(data.dataset("train")) == 2
    assert [batch.images for batch in data.val_dataloader()] == [None]


def test_tables_are_released(small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = datamodule(small_root, tmp_path)
    data.prepare_data()
    with monkeypatch.context() as patch:
        patch.setattr("cmt_aqr.data.tables.open_tables", lambda *_: pytest.fail("tables were read"))
        data.setup()
        data.ground_truth()
    first = open_tables(small_root, "v1.0-mini")
    assert open_tables(small_root, "v1.0-mini") is first
    data.prepare_data()
    assert open_tables(small_root, "v1.0-mini") is not first


@pytest.mark.parametrize("load", [load_index, load_ground_truth])
def test_a_cache_folder_that_cannot_be_created_is_named(load: Any, small_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    with pytest.raises(UserError, match=rf"data\.cache_dir={cache}: "):
        load(small_root, "v1.0-mini", "mini_val", cache)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.image_augmentation={resize: [1, 1]}", "data.image_augmentation="),
        ("data.sampling={until_epoch: 3}", "data.sampling="),
        ("+data.eval_transforms.lost={cameras: 1}", "data.eval_transforms.lost="),
        ("+data.train_fault.share=1", "data.train_fault"),
    ],
)
def test_a_part_without_a_class_is_refused(override: str, named: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(named)}"):
        build_data(composed(override))
