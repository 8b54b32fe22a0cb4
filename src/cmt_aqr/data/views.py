"""Rectangles of boxes in the images, by the release's two rules: for cutting patches out, and for pasting them.

Boxes are (x, y, z, l, w, h, yaw, ...) in the LiDAR frame, metres; x, y, z is the middle of the box. Rectangles are
(x0, y0, x1, y1) in whole pixels, the end exclusive.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cmt_aqr.geometry import box_corners

_THIRD = 7
"""Rear, left, top in :func:`~cmt_aqr.geometry.box_corners`: the release's third corner."""

_MIN_CROP, _MIN_PASTE = 10, 1
"""Pixels that both sides of a rectangle must exceed."""

PATCH_CAMERAS = ("last", "largest")
PATCH_BEHIND = ("third_corner", "any_corner")


class Patches(NamedTuple):
    """The crop of each box; zeros for a box that no camera sees well enough."""

    views: NDArray[np.int64]  # (box,) -1: none
    rectangles: NDArray[np.int64]  # (box, 4)
    depths: NDArray[np.float64]  # (box,) mean depth of the corners, metres


def _project(
    boxes: NDArray[np.float32], lidar2img: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels (view, box, 8, 2) of the corners, (u, v), and their depth (view, box, 8) in metres."""
    corners = box_corners(torch.from_numpy(np.ascontiguousarray(boxes[:, :7]))).double().numpy()
    homogeneous = np.concatenate((corners, np.ones_like(corners[..., :1])), axis=-1)
    projected = np.einsum("vij,bcj->vbci", lidar2img[:, :3], homogeneous)
    depth = projected[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = projected[..., :2] / depth[..., None]
    # A corner in the plane of the camera is moved far outside.
    return np.nan_to_num(np.clip(pixels, -1e9, 1e9)), depth


def _hulls(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bounding rectangles (view, box, 4): minimum u and v, maximum u and v."""
    return np.concatenate((pixels.min(axis=2), pixels.max(axis=2)), axis=-1)


def _exceed(rectangles: NDArray[np.int64], side: int) -> NDArray[np.bool_]:
    return (rectangles[..., 2:] - rectangles[..., :2] > side).all(axis=-1)


def patches_of(
    boxes: NDArray[np.float32],
    lidar2img: NDArray[np.float64],
    size: tuple[int, int],
    camera: str = "last",
    behind: str = "third_corner",
) -> Patches:
    """The patch of each box, for the database of objects.

    The release tests only one corner (rear, left, top): it must be in front of the camera, at positive pixel
    coordinates. Of the cameras that pass, it takes the last. Both rules have a better alternative.

    Args:
        boxes: (box, >= 7).
        lidar2img: (view, 4, 4) to pixels of the images as stored.
        size: height and width of the images.
        camera: ``last``, as published, or ``largest``: the one with the largest rectangle.
        behind: ``third_corner``, as published, or ``any_corner``: all corners must be in front of the camera, and
            may be outside the image.
    """
    pixels, depth = _project(boxes, lidar2img)
    # Clipped, then truncated to whole pixels: the opposite order of paste_rectangles.
    rectangles = np.clip(_hulls(pixels), 0, np.tile(size[::-1], 2) - 1).astype(np.int64)
    if behind == "third_corner":
        seen = (pixels[:, :, _THIRD] > 0).all(axis=-1) & (depth[:, :, _THIRD] > 0)
    else:
        seen = (depth > 0).all(axis=-1)
    seen &= _exceed(rectangles, _MIN_CROP)
    if camera == "last":
        rank = np.broadcast_to(np.arange(1, len(seen) + 1)[:, None], seen.shape)
    else:
        rank = (rectangles[..., 2:] - rectangles[..., :2]).prod(axis=-1)
    best = np.argmax(np.where(seen, rank, 0), axis=0)
    box, any_view = np.arange(len(boxes)), seen.any(axis=0)
    return Patches(
        views=np.where(any_view, best, -1),
        rectangles=np.where(any_view[:, None], rectangles[best, box], 0),
        depths=np.where(any_view, depth[best, box].mean(axis=-1), 0.0),
    )


def paste_rectangles(
    boxes: NDArray[np.float32], lidar2img: NDArray[np.float64], size: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Where boxes are pasted: in every image whose camera has the complete box in front of it.

    Args:
        boxes: (box, >= 7).
        lidar2img: (view, 4, 4) to pixels of the images as stored.
        size: height and width of the images.

    Returns:
        Rectangles (view, box, 4), -1 if not pasted; mean depth of the corners (view, box) in metres.
    """
    pixels, depth = _project(boxes, lidar2img)
    rectangles = np.clip(_hulls(pixels).astype(np.int64), 0, np.tile(size[::-1], 2) - 1)
    seen = (depth > 0).all(axis=-1) & _exceed(rectangles, _MIN_PASTE)
    return np.where(seen[..., None], rectangles, -1), depth.mean(axis=-1)
