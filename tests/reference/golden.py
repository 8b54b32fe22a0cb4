"""Golden values of the published CMT, frames built from them, and comparisons."""

import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmt_aqr.structures import Frame
from tests.helpers.shared_data import REFERENCE

COLUMNS = {"center": (0, 2), "height": (2, 3), "dim": (3, 6), "rot": (6, 8), "vel": (8, 10)}
"""Columns of the outputs in our codes."""


@functools.cache
def golden(part: str = "recipe") -> dict[str, NDArray[Any]]:
    """All arrays of a file. Boxes of the recipe have their origin at the bottom centre, ours at the centre."""
    with np.load(REFERENCE / f"golden_{part}.npz") as file:
        return dict(file)


def about_middle(boxes: NDArray[Any]) -> NDArray[np.float32]:
    """Boxes (box, 9) of the recipe with their origin at the centre."""
    moved = boxes.astype(np.float32)
    moved[:, 2] += moved[:, 5] / 2
    return moved


def frame(
    points: NDArray[Any] | None = None,
    boxes: NDArray[Any] | None = None,
    labels: NDArray[Any] | None = None,
    images: NDArray[Any] | None = None,
    lidar2img: NDArray[Any] | None = None,
) -> Frame:
    """Build a frame; boxes as in the recipe, images (view, row, column, BGR)."""
    boxes = np.zeros((0, 9)) if boxes is None else boxes
    return Frame(
        token="golden",
        points=torch.from_numpy(np.zeros((0, 5), np.float32) if points is None else points.copy()),
        images=None if images is None else torch.from_numpy(images.copy()).permute(0, 3, 1, 2),
        lidar2img=torch.from_numpy(np.tile(np.eye(4), (6, 1, 1)) if lidar2img is None else lidar2img.copy()),
        boxes=torch.from_numpy(about_middle(boxes)),
        labels=torch.from_numpy(np.zeros(len(boxes), np.int64) if labels is None else labels.copy()),
        box_points=torch.full((len(boxes),), 9),
        lidar2global=torch.eye(4, dtype=torch.float64),
    )


def close(ours: Any, theirs: NDArray[Any], name: str, most: float = 1e-4, relative: float = 0.0) -> None:
    """Compare, and print the largest deviation."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    deviation = float(np.abs(ours.astype(np.float64) - theirs).max()) if theirs.size else 0.0
    print(f"{name}: largest deviation {deviation:.1e}")
    assert ours.shape == theirs.shape, name
    np.testing.assert_allclose(ours.astype(np.float64), theirs, rtol=relative, atol=most, err_msg=name)


def close_boxes(ours: torch.Tensor, theirs: NDArray[Any], name: str) -> None:
    """Compare boxes with those of the recipe, angles modulo a turn."""
    difference = ours.numpy() - about_middle(theirs)
    difference[:, 6] = (difference[:, 6] + math.pi) % (2 * math.pi) - math.pi
    close(difference, np.zeros_like(difference), name)
