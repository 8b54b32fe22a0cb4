"""Whether there is anything to learn in some frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.data.errors import DataError
from cmt_aqr.data.index import FrameIndex


def check_anything_to_learn(
    index: FrameIndex,
    points: NDArray[np.float32] | None,
    where: str,
    categories: Callable[[], Sequence[str]],
    min_points: int,
    point_range: Sequence[float],
) -> None:
    """Refuse to train on nothing but background.

    Args:
        index: of the frames to train on.
        points: (point, 5) of the first of them; ``None`` where none are read.
        where: what they are, for the message.
        categories: gives the names that the tables know.
        min_points: LiDAR points without which a box is not trained on.
        point_range: x0, y0, z0, x1, y1, z1 in metres, LiDAR frame.

    Raises:
        DataError: naming what leaves nothing.
    """
    if not len(index.labels):
        names = sorted(categories())
        raise DataError(
            f"{where}: no annotation is of one of nuScenes' ten detection classes, nothing to learn; "
            f"the categories are {', '.join(names) or 'none'}"
        )
    seen = index.box_points >= min_points
    if not seen.any():
        raise DataError(
            f"{where}: none of {len(seen)} boxes has data.min_points={min_points} LiDAR points or more "
            f"(num_lidar_pts is at most {index.box_points.max()}); give data.min_points=0, or mend the tables"
        )
    low, high = point_range[:2], point_range[3:5]
    inside = ((index.boxes[:, :2] >= low) & (index.boxes[:, :2] <= high)).all(axis=1)
    if not (seen & inside).any():
        raise DataError(f"{where}: no box lies within data.point_range={point_range} (x, y of its centre)")
    if points is None:
        return
    places = points[:, :3]
    if not ((places >= point_range[:3]) & (places <= point_range[3:])).all(axis=1).any():
        raise DataError(
            f"{where}: no point of the first frame lies within data.point_range={point_range}; "
            "are the files in metres, and the LiDAR's frame?"
        )
