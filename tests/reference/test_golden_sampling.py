"""The sampler, with a database of the reference's objects, against the published one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cmt_aqr.data.database import (
    DESCRIPTION,
    ENTRIES,
    ENTRY,
    FORMAT,
    Contents,
    ObjectDatabase,
    part_path,
)
from cmt_aqr.data.sampling import ObjectSampler, Sampling
from tests.helpers.shared_data import needs_reference
from tests.reference.golden import about_middle, close, frame, golden

pytestmark = needs_reference
CONTENTS = Contents("", "", "", 0, 10, True, 5, "last", "third_corner")


def database_of(
    folder: Path,
    boxes: NDArray[Any],
    labels: NDArray[np.int64],
    points: Sequence[NDArray[Any]],
    patches: Sequence[NDArray[np.uint8]] = (),
) -> tuple[ObjectDatabase, NDArray[np.int64]]:
    """A database of the recipe's boxes and points, and the row of each object."""
    order = np.argsort(labels, kind="stable")
    entries = np.zeros(len(boxes), dtype=ENTRY)
    entries["box"], entries["label"] = about_middle(boxes)[order], labels[order]
    entries["points"] = [len(points[number]) for number in order]
    entries["points_at"] = np.cumsum(entries["points"]) - entries["points"]
    entries["view"] = -1
    point_bytes, patch_bytes = b"", b""
    for entry, number in zip(entries, order, strict=True):
        cloud = points[number].astype(np.float32)
        cloud[:, :3] -= boxes[number, :3]
        point_bytes += cloud.tobytes()
        if len(patches) and patches[number].size:
            height, width, _ = patches[number].shape
            entry["view"], entry["patch_at"] = 0, len(patch_bytes)
            entry["rectangle"], entry["picture"] = (0, 0, width, height), (height, width)
            patch_bytes += patches[number].tobytes()
    part_path(folder, 0, "points").write_bytes(point_bytes)
    part_path(folder, 0, "patches").write_bytes(patch_bytes)
    np.save(folder / ENTRIES, entries)
    description = {"format": FORMAT, "made_of": vars(CONTENTS), "parts": [[len(point_bytes), len(patch_bytes)]]}
    (folder / DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
    return ObjectDatabase(folder, CONTENTS), np.argsort(order)


def test_objects_that_find_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, taken = golden()["collide_drawn"], golden()["collide_accepted"]
    labels = np.repeat(np.arange(10), drawn)
    candidates = golden()["collide_candidates"]
    boxes = np.concatenate([candidates[label, :count] for label, count in enumerate(drawn)])
    accepted = np.concatenate([taken[label, :count] for label, count in enumerate(drawn)])
    clouds = [np.zeros((0, 5), np.float32)] * len(boxes)
    for owner, number in enumerate(np.flatnonzero(accepted)):
        clouds[number] = golden()["collide_result_points"][golden()["collide_result_point_owner"] == owner]
    database, rows = database_of(tmp_path, boxes, labels, clouds)
    sampler = ObjectSampler(Sampling(), database)

    existing, names = golden()["collide_existing_boxes"], golden()["collide_existing_labels"]
    shortfall = sampler.sampling.shortfall(names[names >= 0])
    assert [shortfall.get(label, 0) for label in range(10)] == drawn.tolist()
    monkeypatch.setattr(sampler, "draw", lambda *_: (rows, labels))
    before = frame(boxes=existing[names >= 0], labels=names[names >= 0])
    after = sampler(before, about_middle(existing[names < 0]), np.random.default_rng(0))
    count = len(before.boxes)
    close(after.boxes[count:], about_middle(golden()["collide_result_boxes"]), "boxes")
    np.testing.assert_array_equal(after.labels[count:], golden()["collide_result_labels"])
    close(after.points, golden()["collide_result_points"], "points")


def test_pasted_frame(tmp_path: Path) -> None:
    patches = [golden()[f"paste_patch_{number:02d}"] for number in range(11)]
    database, rows = database_of(
        tmp_path,
        golden()["paste_sampled_boxes"],
        golden()["paste_sampled_labels"],
        list(golden()["paste_sampled_points"]),
        patches,
    )
    before = frame(
        *(
            golden()[f"paste_{name}"]
            for name in ("points", "existing_boxes", "existing_labels", "images", "lidar2img")
        )
    )
    after = ObjectSampler(Sampling(), database).paste(before, rows)
    assert after.images is not None
    np.testing.assert_array_equal(after.images.permute(0, 2, 3, 1), golden()["paste_result_images"])
    close(after.points, golden()["paste_result_points"], "points")
    close(after.boxes, about_middle(golden()["paste_result_boxes"]), "boxes")
    np.testing.assert_array_equal(after.labels, golden()["paste_result_labels"])
    assert torch.equal(after.box_points[-11:], torch.full((11,), 20))
