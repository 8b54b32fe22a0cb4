"""The six failures of MoME (Park et al., CVPR 2025, arXiv 2503.19776).

Parameters are those of its authors' repositories (konyul/MoME, konyul/SeparateModalityFusion), which follow
nuScenes-R and MIT BEVFusion's beam filter.
"""

from functools import partial

from cmt_aqr.checks import require_fraction, require_number
from cmt_aqr.data.corruptions import lidar
from cmt_aqr.data.corruptions.corruption import Corruption
from cmt_aqr.data.corruptions.images import black_out, each_image
from cmt_aqr.data.corruptions.occlusion import find_masks, occlude

_STEP, _TOP, _SHIFT = 0.023275, 0.1862, 0.012
"""Radians between beams, elevation of the highest, and how far below a beam its interval begins."""


def beams4_horizon() -> Corruption:
    """Four beams near the horizon remain: 7, 9, 11, 13 from the top (0), nuScenes' rings 18, 20, 22, 24."""
    intervals = [(_TOP - _STEP * i - _SHIFT, _TOP - _STEP * (i - 1) - _SHIFT) for i in (7, 9, 11, 13)]
    return Corruption("mome/beams4_horizon", partial(lidar.keep_elevations, intervals=intervals))


def lidar_drop() -> Corruption:
    """Every value of every point is 0."""
    return Corruption("mome/lidar_drop", lidar.zero_points)


def fov(degrees: float = 60.0) -> Corruption:
    """The LiDAR sees ``degrees`` to either side of straight ahead."""
    return fov_of("mome", degrees)


def object_failure(probability: float = 0.5) -> Corruption:
    """In a share of the frames, annotated boxes have no points. Needs annotations."""
    return object_failure_of("mome", probability)


def view_drop() -> Corruption:
    """All six images are black, before normalisation."""
    return Corruption("mome/view_drop", cameras=black_out)


def occlusion(masks: str | None = None) -> Corruption:
    """Every lens is dirty; ``masks`` is the folder of nuScenes-R's masks, ``None`` takes our own."""
    return occlusion_of("mome/occlusion", masks)


# nuScenes-R has the same three under names of its own, which seed their draws.


def fov_of(suite: str, degrees: float) -> Corruption:
    """:func:`fov` of a suite."""
    limit = require_number("degrees", degrees, above=0, high=180)
    return Corruption(f"{suite}/fov{limit:g}", partial(lidar.keep_sector, degrees=limit))


def object_failure_of(suite: str, probability: float) -> Corruption:
    """:func:`object_failure` of a suite."""
    share = require_fraction("probability", probability)
    return Corruption(f"{suite}/object_failure", partial(lidar.drop_object_points, probability=share))


def occlusion_of(name: str, masks: str | None) -> Corruption:
    """:func:`occlusion` under a suite's name for it."""
    return Corruption(name, cameras=partial(each_image, change=partial(occlude, masks=find_masks(masks))))
