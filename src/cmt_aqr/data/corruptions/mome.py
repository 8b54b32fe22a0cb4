"""The six failures that MoME (Park et al., CVPR 2025, arXiv 2503.19776) is tested under.

Parameters are those of its authors' repositories (konyul/MoME, konyul/SeparateModalityFusion), which go back to
nuScenes-R and to MIT BEVFusion's beam filter.
"""

from __future__ import annotations

from cmt_aqr.checks import require_fraction, require_number
from cmt_aqr.data.corruptions.corruption import Corruption
from cmt_aqr.data.corruptions.lidar import EmptyBoxes, KeepElevations, KeepSector, ZeroPoints
from cmt_aqr.data.corruptions.occlusion import Occluded
from cmt_aqr.data.corruptions.pictures import BlackViews

_STEP, _TOP, _SHIFT = 0.023275, 0.1862, 0.012
"""Radians from beam to beam, elevation of the highest, and how far below it its interval begins."""


def beam(number: int) -> tuple[float, float]:
    """The open interval of elevations, radians, of a beam counted from the top; 0 is the highest."""
    return _TOP - _STEP * number - _SHIFT, _TOP - _STEP * (number - 1) - _SHIFT


def beams4_horizon() -> Corruption:
    """Four beams near the horizon stay (7, 9, 11, 13 from the top); rings 18, 20, 22, 24 of nuScenes."""
    return Corruption("mome/beams4_horizon", lidar=KeepElevations([beam(number) for number in (7, 9, 11, 13)]))


def lidar_drop() -> Corruption:
    """Every value of every point is 0."""
    return Corruption("mome/lidar_drop", lidar=ZeroPoints())


def fov(degrees: float = 60.0) -> Corruption:
    """The LiDAR sees to ``degrees`` on either side of ahead."""
    limit = require_number("degrees", degrees, above=0, high=180)
    return Corruption(f"mome/fov{limit:g}", lidar=KeepSector(limit))


def object_failure(probability: float = 0.5) -> Corruption:
    """In a share of the frames, points in annotated boxes are lost. Needs annotations."""
    return Corruption("mome/object_failure", lidar=EmptyBoxes(require_fraction("probability", probability)))


def view_drop() -> Corruption:
    """All six images are black, before normalisation."""
    return Corruption("mome/view_drop", cameras=BlackViews())


def occlusion(masks: str | None = None) -> Corruption:
    """Every image has mud on the lens; ``masks`` is the folder of nuScenes-R's, ``None`` takes our own."""
    return Corruption("mome/occlusion", cameras=Occluded(masks))
