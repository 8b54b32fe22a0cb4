"""The published recipe's parts on made-up inputs: the arrays of golden_recipe.npz, and frames made of them."""

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmt_aqr.structures import Frame
from tests.helpers.shared_data import REFERENCE

RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)


@functools.cache
def golden() -> dict[str, NDArray[Any]]:
    """All arrays; boxes there stand on their bottom centre, ours are about their middle."""
    with np.load(REFERENCE / "golden_recipe.npz") as file:
        return dict(file)


def about_middle(boxes: NDArray[Any]) -> NDArray[np.float32]:
    """Boxes (box, 9) of the reference as ours."""
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
    """A frame of what is given; boxes as in the reference, images (view, row, column, BGR)."""
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


def close(ours: Any, theirs: NDArray[Any], name: str, most: float = 1e-4) -> None:
    """Compare, and print the largest deviation."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, name
    deviation = float(np.abs(ours.astype(np.float64) - theirs).max()) if theirs.size else 0.0
    print(f"{name}: largest deviation {deviation:.1e}")
    assert deviation <= most, name
