"""Objects that are cut out of frames, kept, and pasted into others."""

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
from cmt_aqr.data.database import DESCRIPTION, ENTRIES, patches_path, points_path
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
"""Goals that the frames of these data, which are full of objects, do not meet by themselves."""


def with_sampling(root: Path, cache: Path, sampling: Sampling | None = None, **changes: Any) -> NuScenesDataModule:
    data = datamodule(root, cache, sampling=sampling or Sampling(MANY, processes=1), sweeps=3, **changes)
    data.prepare_data()
    return data


@pytest.fixture(scope="module")
def data(small_root: Path, cache: Path) -> NuScenesDataModule:
    module = with_sampling(small_root, cache)
    module.setup("fit")
    return module


def sampler_of(data: NuScenesDataModule) -> ObjectSampler:
    return data.dataset("train").sampler


def test_the_database_holds_every_object_that_is_seen_well(data: NuScenesDataModule) -> None:
    database, reader = sampler_of(data).database, data.dataset("train").reader
    index = reader.index
    assert (np.diff(database.entries["label"]) >= 0).all()
    found = 0
    for number in range(len(index)):
        frame = reader.read(number)
        inside = points_in_boxes(frame.points, frame.boxes).sum(dim=0)
        rows = np.flatnonzero(database.entries["frame"] == number)
        entries = database.entries[rows]
        # Points on the car itself are not kept, and a first frame's count eleven times.
        expected = (inside >= 5) & (frame.box_points > 0)
        assert {tuple(box) for box in frame.boxes[expected].tolist()} <= {
            tuple(b) for b in entries["box"].tolist()
        }
        for row, entry in zip(rows.tolist(), entries, strict=True):
            bottom = entry["box"][:3] - (0, 0, entry["box"][5] / 2)
            cloud = database.points(row)
            assert len(cloud) == entry["points"] >= 5
            moved = torch.from_numpy(cloud[:, :3] + bottom.astype(np.float32))
            assert points_in_boxes(moved, torch.from_numpy(entry["box"][None].copy())).all()
            patch = database.patch(row)
            if patch is not None:
                x0, y0, x1, y1 = entry["rectangle"]
                picture = frame.images[entry["view"], :, y0:y1, x0:x1].permute(1, 2, 0)
                np.testing.assert_array_equal(patch, picture)
                found += 1
    assert found > 20
    first, later = (sampler_of(data).database.entries["frame"] == number for number in (0, 1))
    lags = [
        {float(lag) for row in np.flatnonzero(which) for lag in database.points(row)[:, 4]}
        for which in (first, later)
    ]
    assert lags[0] == {0.0}
    assert len(lags[1]) == 4


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
        # Goals are met, or missed for want of room; never exceeded by what is pasted.
        seen = before.labels[before.box_points > 0].bincount(minlength=10)
        goals = torch.tensor([sampler.sampling.goals[name] for name in CLASSES])
        assert (after.labels[count:].bincount(minlength=10) <= (goals - seen).clip(min=0)).all()
        assert not collisions(new.numpy(), before.boxes[before.box_points > 0].numpy()).any()
        # What was inside is gone, what is inside now came along.
        assert points_in_boxes(after.points, new).sum(dim=0).tolist() == after.box_points[count:].tolist()
        gone = points_in_boxes(before.points, new).any(dim=1)
        assert torch.equal(after.points[: len(before.points) - gone.sum()], before.points[~gone])
        assert (after.images != before.images).any() == bool(len(new))
    assert pasted > 10


def test_what_is_pasted_depends_on_the_key_alone_and_changes_nothing_in_place(
    data: NuScenesDataModule, small_root: Path, cache: Path
) -> None:
    dataset = data.dataset("train")
    keys = [SampleKey(0, 1), SampleKey(1, 1), SampleKey(0, 1, 1), SampleKey(0, 1)]
    seen = [dataset.stored(key).boxes for key in keys]
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    cached = with_sampling(small_root, cache, cache_frames=True, num_workers=2, resampling="cbgs")
    alone = with_sampling(small_root, cache, resampling="cbgs")
    batches = []
    for module in (cached, alone):
        module.setup("fit")
        loader = module.train_dataloader()
        batches.append([digest(batch) for _ in range(2) for batch in loader])
    assert batches[0] == batches[1]


def test_boxes_of_other_categories_stand_in_the_way(data: NuScenesDataModule) -> None:
    sampler, dataset = sampler_of(data), data.dataset("train")
    frame = dataset.reader.read(0)
    everywhere = np.array([[0, 0, 0, 300, 300, 5, 0, 0, 0]], dtype=np.float32)
    assert sampler(frame, everywhere, np.random.default_rng(0)) is frame
    nowhere = np.zeros((0, 9), dtype=np.float32)
    assert len(sampler(frame, nowhere, np.random.default_rng(0)).boxes) > len(frame.boxes)


def test_the_fade(small_root: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    faded = with_sampling(small_root, cache, Sampling(MANY, until_epoch=2, processes=1), batch_size=1)
    faded.setup("fit")
    whole = with_sampling(small_root, cache)
    whole.setup("fit")
    plain = ready("fit", small_root, cache, sweeps=3)
    for epoch in range(4):
        frames = [module.dataset("train")[SampleKey(epoch, 1)] for module in (faded, whole, plain)]
        same = [digest(collate([frame])) for frame in frames]
        assert same[0] == same[1 if epoch < 2 else 2] != same[2 if epoch < 2 else 1]
    loader = faded.train_dataloader()
    with caplog.at_level(logging.INFO):
        for epoch in range(4):
            assert ("data.sampling.until_epoch=2" in caplog.text) == (epoch > 2)
            list(loader)
    assert caplog.text.count("until_epoch") == 1
    caplog.clear()
    faded = with_sampling(small_root, cache, Sampling(MANY, until_epoch=2, processes=1), batch_size=1)
    faded.setup("fit")
    resumed = faded.train_dataloader()
    resumed.load_state_dict({**loader.state_dict(), "epoch": 2, "batches_done": 1})
    with caplog.at_level(logging.INFO):
        list(resumed)
    assert caplog.text.count("until_epoch=2: no objects are pasted") == 1


@pytest.mark.parametrize(("epochs", "told"), [(2, True), (3, False), (-1, False)])
def test_a_run_that_ends_before_the_fade_is_told(
    small_root: Path, cache: Path, caplog: pytest.LogCaptureFixture, epochs: int, told: bool
) -> None:
    module = with_sampling(small_root, cache, Sampling(MANY, until_epoch=2, processes=1))
    module.trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False)
    with caplog.at_level(logging.WARNING):
        module.setup("fit")
    assert ("data.sampling.until_epoch=2" in caplog.text) == told


def test_candidates_give_way_in_order() -> None:
    def box(x: float, length: float = 2.0) -> list[float]:
        # Widths differ, because edges on one line do not cross.
        return [x, 0, 0, length, 1 + x / 1000, 1, 0, 0, 0]

    standing = np.array([box(100)], dtype=np.float32)
    candidates = np.array([box(0), box(1), box(10), box(101), box(11), box(12)], dtype=np.float32)
    # The earlier of two that collide goes; a later group sees what was accepted; touching is no collision.
    accepted = find_room(standing, candidates, np.array([0, 0, 0, 0, 1, 1]))
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
    plain = points_in_boxes(torch.from_numpy(points).double(), torch.from_numpy(boxes).double()).numpy()
    expected = np.argwhere(plain)
    assert len(expected) > 200
    np.testing.assert_array_equal(np.stack((point, box), axis=1)[np.lexsort((box, point))], expected)
    assert not len(points_inside(points, boxes[:0])[0]) and not len(points_inside(points[:0], boxes)[0])


# Making the database


def paths_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".npz"}


def folder_of(data: NuScenesDataModule) -> Path:
    return sampler_of(data).database.folder


def test_several_processes_make_the_same_database(
    data: NuScenesDataModule, small_root: Path, tmp_path: Path
) -> None:
    many = with_sampling(small_root, tmp_path, Sampling(processes=3, database=tmp_path / "objects"))
    many.setup("fit")
    assert paths_of(folder_of(many)) == paths_of(folder_of(data))
    assert not list(tmp_path.rglob("*.part"))


def test_making_goes_on_where_it_stopped(
    data: NuScenesDataModule, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    reader = "cmt_aqr.data.make_database.FrameReader.read"
    original = type(data.dataset("train").reader).read

    def reading(self: Any, frame: int) -> Frame:
        if frame == 2 and not read.count(2):
            read.append(frame)
            raise OSError(28, "No space left on device")
        read.append(frame)
        return original(self, frame)

    monkeypatch.setattr(reader, reading)
    settings = Sampling(processes=1, database=tmp_path / "objects")
    with pytest.raises(UserError, match=r"data\.sampling\.database=.*No space left on device") as caught:
        with_sampling(small_root, tmp_path, settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no complete database"):
        datamodule(small_root, tmp_path, sampling=settings, sweeps=3).setup("fit")
    with_sampling(small_root, tmp_path, settings)
    assert read == [0, 1, 2, 2]
    assert paths_of(tmp_path / "objects") == paths_of(folder_of(data))


def test_an_error_in_a_process_arrives_as_one_sentence(small_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(small_root, root)
    module = datamodule(root, tmp_path, sampling=Sampling(processes=2), sweeps=3)
    index = module.index("mini_train")
    (root / index.sweep_files[index.lidar[1]].decode()).write_bytes(b"1234567")
    with pytest.raises(DataError, match=r"LIDAR_TOP__\d+\.pcd\.bin") as caught:
        module.prepare_data()
    assert "\n" not in str(caught.value)


def test_changed_tables_make_it_again_but_not_in_a_folder_that_was_named(small_root: Path, tmp_path: Path) -> None:
    root = linked_copy(small_root, tmp_path / "root")
    with_sampling(root, tmp_path)
    named = Sampling(processes=1, database=tmp_path / "objects")
    with_sampling(root, tmp_path, named)
    before = (tmp_path / "objects" / DESCRIPTION).read_bytes()
    with edited(root, "sample_annotation") as records:
        for record in records:
            record["num_lidar_pts"] += 1
    with pytest.raises(DataError, match="made of other tables"):
        with_sampling(root, tmp_path, named)
    assert (tmp_path / "objects" / DESCRIPTION).read_bytes() == before
    own = datamodule(root, tmp_path, sampling=Sampling(MANY, processes=1), sweeps=3)
    with pytest.raises(DataError, match="made of other tables"):
        own.setup("fit")
    own.prepare_data()
    own.setup("fit")
    counts = json.loads((folder_of(own) / DESCRIPTION).read_text(encoding="utf-8"))["boxes"]
    assert counts != json.loads(before)["boxes"]  # boxes that no sensor saw before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def edit_entry(folder: Path, field: str, value: Any) -> None:
    entries = np.load(folder / ENTRIES)
    entries[field][np.flatnonzero(entries["view"] >= 0)[0]] = value
    np.save(folder / ENTRIES, entries)


def spoil(folder: Path) -> None:
    (folder / DESCRIPTION).write_text("{", encoding="utf-8")


def other_format(folder: Path) -> None:
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    (folder / DESCRIPTION).write_text(json.dumps(description | {"format": 99}), encoding="utf-8")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "points are cut": (lambda folder: cut(points_path(folder, 1)), "part-0001.points is cut"),
    "patches are cut": (lambda folder: cut(patches_path(folder, 0)), "part-0000.patches is cut"),
    "a part is missing": (lambda folder: points_path(folder, 2).unlink(), "part-0002.points is missing"),
    "entries are cut": (lambda folder: cut(folder / ENTRIES), "entries.npy cannot be read"),
    "a patch outside": (lambda folder: edit_entry(folder, "rectangle", (0, 0, 9999, 20)), "outside its picture"),
    "points outside": (lambda folder: edit_entry(folder, "points_at", 10**9), "outside the files"),
    "no description": (spoil, "database.json cannot be read"),
    "another format": (other_format, "is of format 99"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_told_in_one_sentence(
    small_root: Path, cache: Path, tmp_path: Path, data: NuScenesDataModule, damage: Any, sentence: str
) -> None:
    settings = Sampling(processes=1, database=tmp_path / "objects")
    shutil.copytree(folder_of(data), tmp_path / "objects")
    datamodule(small_root, cache, sampling=settings, sweeps=3).setup("fit")
    damage(tmp_path / "objects")
    with pytest.raises(DataError, match=sentence) as caught:
        datamodule(small_root, cache, sampling=settings, sweeps=3).setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", ["points are cut", "patches are cut", "a part is missing", "entries are cut", "a patch outside"]
)
def test_what_is_cut_is_made_again(
    small_root: Path, cache: Path, tmp_path: Path, data: NuScenesDataModule, damage: str, caplog: Any
) -> None:
    shutil.copytree(folder_of(data), tmp_path / "objects")
    DAMAGES[damage][0](tmp_path / "objects")
    with caplog.at_level(logging.WARNING):
        with_sampling(small_root, cache, Sampling(processes=1, database=tmp_path / "objects"))
    assert str(tmp_path / "objects") in caplog.text
    assert paths_of(tmp_path / "objects") == paths_of(folder_of(data))


def test_a_class_that_nobody_has_is_named(
    data: NuScenesDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "objects"
    shutil.copytree(folder_of(data), folder)
    entries = np.load(folder / ENTRIES)
    np.save(folder / ENTRIES, entries[entries["label"] != CLASSES.index("bus")])
    settings = Sampling(processes=1, database=folder)
    module = datamodule(data.root, data.cache_dir, sampling=settings, sweeps=3)
    with caplog.at_level(logging.WARNING):
        module.setup("fit")
    assert "no bus" in caplog.text
    caplog.clear()
    ObjectSampler(Sampling(goals={"car": 3}), sampler_of(module).database)
    assert not caplog.text


def test_other_settings_are_another_database(data: NuScenesDataModule, small_root: Path, cache: Path) -> None:
    for changes in ({"min_points": 20}, {"images": False}, {"patch_camera": "largest"}):
        other = with_sampling(small_root, cache, Sampling(processes=1, **changes))
        other.setup("fit")
        assert folder_of(other) != folder_of(data)
    assert sampler_of(data).database.entries["view"].max() >= 0
    with pytest.raises(DataError, match="was made with min_points=5, and min_points=6 is asked for"):
        settings = Sampling(processes=1, min_points=6, database=folder_of(data))
        datamodule(small_root, cache, sampling=settings, sweeps=3).setup("fit")
