"""The database of objects, and frames that objects are pasted into."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.collate import collate
from cmt_aqr.data.collision import collisions, find_room
from cmt_aqr.data.database import DESCRIPTION, ENTRIES, part_path
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.dataset import SampleKey
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.paste import points_inside
from cmt_aqr.data.sampling import ObjectSampler, Sampling
from cmt_aqr.errors import UserError
from cmt_aqr.geometry import points_in_boxes
from cmt_aqr.structures import Frame
from tests.data.test_loading import digest
from tests.helpers.small_data import datamodule, edited, linked_copy, ready

MANY = dict.fromkeys(CLASSES, 25)
"""Goals above the number of objects in a frame of the tiny data."""


def sampled(root: Path, cache: Path, sampling: Sampling | None = None, **changes: Any) -> NuScenesDataModule:
    """Data with object sampling, prepared and set up."""
    settings = {"sampling": sampling or Sampling(MANY, processes=1), "sweeps": 3, **changes}
    return ready("fit", root, cache, **settings)


@pytest.fixture(scope="module")
def data(small_root: Path, cache: Path) -> NuScenesDataModule:
    return sampled(small_root, cache)


@pytest.fixture
def named(tmp_path: Path) -> Sampling:
    """Sampling from a database in a folder that the user chose."""
    return Sampling(processes=1, database=tmp_path / "objects")


def sampler_of(data: NuScenesDataModule) -> ObjectSampler:
    return data.dataset("train").sampler


def test_the_database_holds_every_object_that_is_seen_well(data: NuScenesDataModule) -> None:
    database, reader = sampler_of(data).database, data.dataset("train").reader
    assert (np.diff(database.entries["label"]) >= 0).all()
    patches, lags = 0, []
    for number in range(len(reader)):
        frame = reader.read(number)
        inside = points_in_boxes(frame.points, frame.boxes).sum(dim=0)
        rows = np.flatnonzero(database.entries["frame"] == number)
        entries = database.entries[rows]
        # Points on the car itself are not kept, and a first frame's count eleven times.
        expected = frame.boxes[(inside >= 5) & (frame.box_points > 0)]
        assert set(map(tuple, expected.tolist())) <= set(map(tuple, entries["box"].tolist()))
        lags.append(set())
        for row, entry in zip(rows.tolist(), entries, strict=True):
            bottom = entry["box"][:3] - (0, 0, entry["box"][5] / 2)
            cloud = database.points(row)
            lags[-1] |= set(cloud[:, 4].tolist())
            assert len(cloud) == entry["points"] >= 5
            moved = torch.from_numpy(cloud[:, :3] + bottom.astype(np.float32))
            assert points_in_boxes(moved, torch.from_numpy(entry["box"][None].copy())).all()
            patch = database.patch(row)
            if patch is not None:
                x0, y0, x1, y1 = entry["rectangle"]
                image = frame.images[entry["view"], :, y0:y1, x0:x1].permute(1, 2, 0)
                np.testing.assert_array_equal(patch, image)
                patches += 1
    assert patches > 20
    assert lags[0] == {0.0} and len(lags[1]) == 4


def test_pasted_objects_are_in_points_images_and_boxes(data: NuScenesDataModule) -> None:
    sampler, dataset = sampler_of(data), data.dataset("train")
    pasted = 0
    for number in range(6):
        key = SampleKey(0, number % 3, number)
        before, after = dataset.reader.read(key.frame), dataset.stored(key)
        count = len(before.boxes)
        assert torch.equal(after.boxes[:count], before.boxes) and torch.equal(after.labels[:count], before.labels)
        new = after.boxes[count:]
        pasted += len(new)
        # Goals are never exceeded by pasting.
        seen = before.labels[before.box_points > 0].bincount(minlength=10)
        goals = torch.tensor([sampler.sampling.goals[name] for name in CLASSES])
        assert (after.labels[count:].bincount(minlength=10) <= (goals - seen).clip(min=0)).all()
        assert not collisions(new.numpy(), before.boxes[before.box_points > 0].numpy()).any()
        # Points inside the new boxes are those of the objects.
        assert points_in_boxes(after.points, new).sum(dim=0).tolist() == after.box_points[count:].tolist()
        removed = points_in_boxes(before.points, new).any(dim=1)
        assert torch.equal(after.points[: len(before.points) - removed.sum()], before.points[~removed])
        assert (after.images != before.images).any() == bool(len(new))
    assert pasted > 10


def test_what_is_pasted_depends_on_the_key_only_and_changes_nothing_in_place(
    data: NuScenesDataModule, small_root: Path, cache: Path
) -> None:
    dataset = data.dataset("train")
    keys = [SampleKey(0, 1), SampleKey(1, 1), SampleKey(0, 1, 1), SampleKey(0, 1)]
    boxes = [dataset.stored(key).boxes for key in keys]
    assert torch.equal(boxes[0], boxes[3])
    assert not torch.equal(boxes[0], boxes[1]) and not torch.equal(boxes[0], boxes[2])
    batches = []
    for settings in ({"cache_frames": True, "num_workers": 2}, {}):
        loader = sampled(small_root, cache, resampling="cbgs", **settings).train_dataloader()
        batches.append([digest(batch) for _ in range(2) for batch in loader])
    assert batches[0] == batches[1]


def test_boxes_of_other_categories_are_obstacles(data: NuScenesDataModule) -> None:
    sampler, frame = sampler_of(data), data.dataset("train").reader.read(0)
    everywhere = np.array([[0, 0, 0, 300, 300, 5, 0, 0, 0]], dtype=np.float32)
    assert sampler(frame, everywhere, np.random.default_rng(0)) is frame
    assert len(sampler(frame, everywhere[:0], np.random.default_rng(0)).boxes) > len(frame.boxes)


def test_the_fade(small_root: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    def faded() -> NuScenesDataModule:
        return sampled(small_root, cache, Sampling(MANY, until_epoch=2, processes=1), batch_size=1)

    modules = (faded(), sampled(small_root, cache), ready("fit", small_root, cache, sweeps=3))
    for epoch in range(4):
        frames = [module.dataset("train")[SampleKey(epoch, 1)] for module in modules]
        fading, sampling, plain = (digest(collate([frame])) for frame in frames)
        assert fading == (sampling if epoch < 2 else plain) and sampling != plain
    loader, resumed = (faded().train_dataloader() for _ in range(2))
    with caplog.at_level(logging.INFO):
        for epoch in range(4):
            assert ("data.sampling.until_epoch=2" in caplog.text) == (epoch > 2)
            list(loader)
        assert caplog.text.count("until_epoch") == 1
        caplog.clear()
        resumed.load_state_dict({**loader.state_dict(), "epoch": 2, "batches_done": 1})
        list(resumed)
    assert caplog.text.count("until_epoch=2: no objects are pasted") == 1


@pytest.mark.parametrize(("epochs", "warned"), [(2, True), (3, False), (-1, False)])
def test_a_run_without_fade_logs_a_warning(
    small_root: Path, cache: Path, caplog: pytest.LogCaptureFixture, epochs: int, warned: bool
) -> None:
    module = datamodule(small_root, cache, sampling=Sampling(MANY, until_epoch=2, processes=1), sweeps=3)
    module.trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False)
    module.prepare_data()
    with caplog.at_level(logging.WARNING):
        module.setup("fit")
    assert ("data.sampling.until_epoch=2" in caplog.text) == warned


def test_the_order_of_candidates_decides() -> None:
    def box(x: float, length: float = 2.0) -> list[float]:
        # Widths differ, because edges on one line do not cross.
        return [x, 0, 0, length, 1 + x / 1000, 1, 0, 0, 0]

    occupied = np.array([box(100)], dtype=np.float32)
    candidates = np.array([box(0), box(1), box(10), box(101), box(11), box(12)], dtype=np.float32)
    # Of two that collide, the earlier is rejected; later groups avoid accepted ones; touching is no collision.
    accepted = find_room(occupied, candidates, np.array([0, 0, 0, 0, 1, 1]))
    assert accepted.tolist() == [False, True, True, False, False, True]
    small = np.array([[0, 0, 0, 0.5, 0.5, 1, 0.3, 0, 0]], dtype=np.float32)
    assert collisions(small, candidates[:1]).all() and collisions(candidates[:1], small).all()


def test_points_inside_are_those_of_a_plain_search() -> None:
    random = np.random.default_rng(0)
    points = (random.normal(size=(5000, 5)) * 8).astype(np.float32)
    boxes = random.uniform(0.5, 6, size=(30, 9)).astype(np.float32)
    boxes[:, :3] = random.normal(size=(30, 3)) * 8
    boxes[:, 6] = random.uniform(-9, 9, size=30)
    point, box = points_inside(points, boxes)
    expected = points_in_boxes(torch.from_numpy(points).double(), torch.from_numpy(boxes).double()).argwhere()
    assert len(expected) > 200
    np.testing.assert_array_equal(np.stack((point, box), axis=1)[np.lexsort((box, point))], expected)
    assert not len(points_inside(points, boxes[:0])[0]) and not len(points_inside(points[:0], boxes)[0])


# Building the database


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_several_processes_build_the_same_database(
    data: NuScenesDataModule, small_root: Path, tmp_path: Path
) -> None:
    sampled(small_root, tmp_path, Sampling(processes=3, database=tmp_path / "objects"))
    assert contents_of(tmp_path / "objects") == contents_of(data.database_folder())
    assert not list(tmp_path.rglob("*.part"))


def test_building_resumes(
    data: NuScenesDataModule, small_root: Path, tmp_path: Path, named: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[int] = []
    original = type(data.dataset("train").reader).read

    def read(self: Any, frame: int) -> Frame:
        frames.append(frame)
        if frames == [0, 1, 2]:
            raise OSError(28, "No space left on device")
        return original(self, frame)

    monkeypatch.setattr("cmt_aqr.data.make_database.FrameReader.read", read)
    module = datamodule(small_root, tmp_path, sampling=named, sweeps=3)
    with pytest.raises(UserError, match=r"data\.sampling\.database=.*No space left on device") as caught:
        module.prepare_data()
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no complete database"):
        module.setup("fit")
    module.prepare_data()
    assert frames == [0, 1, 2, 2]
    assert contents_of(tmp_path / "objects") == contents_of(data.database_folder())


def test_an_error_in_a_process_is_one_sentence(small_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(small_root, root)
    module = datamodule(root, tmp_path, sampling=Sampling(processes=2), sweeps=3)
    index = module.index("mini_train")
    (root / index.sweep_files[index.lidar[1]].decode()).write_bytes(b"1234567")
    with pytest.raises(DataError, match=r"LIDAR_TOP__\d+\.pcd\.bin") as caught:
        module.prepare_data()
    assert "\n" not in str(caught.value)


def test_changed_tables_replace_it_but_not_in_a_folder_of_the_user(
    small_root: Path, tmp_path: Path, named: Sampling
) -> None:
    root = linked_copy(small_root, tmp_path / "root")
    own = Sampling(processes=1)

    def module(sampling: Sampling) -> NuScenesDataModule:
        return datamodule(root, tmp_path, sampling=sampling, sweeps=3)

    for sampling in (own, named):
        module(sampling).prepare_data()
    before = contents_of(tmp_path / "objects")
    with edited(root, "sample_annotation") as records:
        for record in records:
            record["num_lidar_pts"] += 1
    for sampling in (own, named):
        with pytest.raises(DataError, match="made from other tables"):
            module(sampling).setup("fit")
    with pytest.raises(DataError, match="made from other tables"):
        module(named).prepare_data()
    assert contents_of(tmp_path / "objects") == before
    module(own).prepare_data()
    after = contents_of(module(own).database_folder())
    boxes = [json.loads(contents[DESCRIPTION])["boxes"] for contents in (before, after)]
    assert boxes[0] != boxes[1]  # boxes that no sensor saw before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def edit_entry(folder: Path, field: str, value: Any) -> None:
    entries = np.load(folder / ENTRIES)
    entries[field][np.flatnonzero(entries["view"] >= 0)[0]] = value
    np.save(folder / ENTRIES, entries)


def edit_format(folder: Path) -> None:
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    (folder / DESCRIPTION).write_text(json.dumps(description | {"format": 99}), encoding="utf-8")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated points": (lambda folder: truncate(part_path(folder, 1, "points")), "part-0001.points is truncated"),
    "truncated patches": (
        lambda folder: truncate(part_path(folder, 0, "patches")),
        "part-0000.patches is truncated",
    ),
    "missing part": (lambda folder: part_path(folder, 2, "points").unlink(), "part-0002.points is missing"),
    "truncated entries": (lambda folder: truncate(folder / ENTRIES), "entries.npy cannot be read"),
    "patch outside": (lambda folder: edit_entry(folder, "rectangle", (0, 0, 9999, 20)), "outside its picture"),
    "points outside": (lambda folder: edit_entry(folder, "points_at", 10**9), "outside the files"),
    "no description": (lambda folder: (folder / DESCRIPTION).write_bytes(b"{"), "database.json cannot be read"),
    "another format": (edit_format, "is of format 99"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_repaired(
    small_root: Path,
    cache: Path,
    tmp_path: Path,
    data: NuScenesDataModule,
    named: Sampling,
    damage: str,
    caplog: Any,
) -> None:
    folder = tmp_path / "objects"
    shutil.copytree(data.database_folder(), folder)
    do_damage, sentence = DAMAGES[damage]
    do_damage(folder)
    module = datamodule(small_root, cache, sampling=named, sweeps=3)
    with pytest.raises(DataError, match=sentence) as caught:
        module.setup("fit")
    assert "\n" not in str(caught.value)
    if damage in ("no description", "another format"):
        with pytest.raises(DataError, match=sentence):
            module.prepare_data()
        return
    with caplog.at_level(logging.WARNING):
        module.prepare_data()
    assert str(folder) in caplog.text
    assert contents_of(folder) == contents_of(data.database_folder())


def test_a_class_without_objects_is_named(
    data: NuScenesDataModule, tmp_path: Path, named: Sampling, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "objects"
    shutil.copytree(data.database_folder(), folder)
    entries = np.load(folder / ENTRIES)
    np.save(folder / ENTRIES, entries[entries["label"] != CLASSES.index("bus")])
    module = datamodule(data.root, data.cache_dir, sampling=named, sweeps=3)
    with caplog.at_level(logging.WARNING):
        module.setup("fit")
        assert "no bus" in caplog.text
        caplog.clear()
        ObjectSampler(Sampling(goals={"car": 3}), sampler_of(module).database)
    assert not caplog.text


def test_other_settings_need_another_database(data: NuScenesDataModule, small_root: Path, cache: Path) -> None:
    for changes in ({"min_points": 20}, {"images": False}, {"patch_camera": "largest"}):
        other = datamodule(small_root, cache, sampling=Sampling(processes=1, **changes), sweeps=3)
        assert other.database_folder() != data.database_folder()
    settings = Sampling(processes=1, min_points=6, database=data.database_folder())
    with pytest.raises(DataError, match="min_points=5, and min_points=6 is requested"):
        datamodule(small_root, cache, sampling=settings, sweeps=3).setup("fit")
