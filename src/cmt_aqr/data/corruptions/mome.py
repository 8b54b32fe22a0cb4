"""The six failures that MoME (Park et al., CVPR 2025, arXiv 2503.19776) is tested under.

Parameters are those of its authors' repositories (konyul/MoME, konyul/SeparateModalityFusion), which go back to
nuScenes-R and to MIT BEVFusion's beam filter.
"""

from __future__ import annotations

from functools import partial

from cmt_aqr.checks import require_fraction, require_number
from cmt_aqr.data.corruptions import lidar
from cmt_aqr.data.corruptions.corruption import Corruption
from cmt_aqr.data.corruptions.occlusion import masks_of, occlude
from cmt_aqr.data.corruptions.pictures import black_views, each_picture

_STEP, _TOP, _SHIFT = 0.023275, 0.1862, 0.012
"""Radians from beam to beam, elevation of the highest, and how far below it its interval begins."""


def beam(number: int) -> tuple[float, float]:
    """The open interval of elevations, radians, of a beam counted from the top; 0 is the highest."""
    return _TOP - _STEP * number - _SHIFT, _TOP - _STEP * (number - 1) - _SHIFT


def beams4_horizon() -> Corruption:
    """Four beams near the horizon stay (7, 9, 11, 13 from the top); rings 18, 20, 22, 24 of nuScenes."""
    intervals = [beam(number) for number in (7, 9, 11, 13)]
    return Corruption("mome/beams4_horizon", partial(lidar.keep_elevations, intervals=intervals))


def lidar_drop() -> Corruption:
    """Every value of every point is 0."""
    return Corruption("mome/lidar_drop", lidar.zero_points)


def fov(degrees: float = 60.0) -> Corruption:
    """The LiDAR sees to ``degrees`` on either side of ahead."""
    limit = require_number("degrees", degrees, above=0, high=180)
    return Corruption(f"mome/fov{limit:g}", partial(lidar.keep_sector, degrees=limit))


def object_failure(probability: float = 0.5) -> Corruption:
    """In a share of the frames, points in annotated boxes are lost. Needs annotations."""
    share = require_fraction("probability", probability)
    return Corruption("mome/object_failure", partial(lidar.empty_boxes, probability=share))


def view_drop() -> Corruption:
    """All six images are black, before normalisation."""
    return Corruption("mome/view_drop", cameras=black_views)


def occlusion(masks: str | None = None) -> Corruption:
    """Every image has mud on the lens; ``masks`` is the folder of nuScenes-R's, ``None`` takes our own."""
    change = partial(occlude, masks=masks_of(masks))
    return Corruption("mome/occlusion", cameras=partial(each_picture, change=change))
