"""Class-balanced resampling (CBGS): an epoch draws equally many frames for each class."""

import logging

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_only

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.index import FrameIndex

log = logging.getLogger(__name__)

RESAMPLINGS = ("none", "cbgs")

_STREAM = 0xCB65
"""Separates these draws from others with the same seed."""


def resampled_frames(index: FrameIndex, resampling: str, seed: int) -> NDArray[np.int64] | None:
    """The frames of an epoch, resampled by one of ``RESAMPLINGS``; ``None``: all frames, once.

    A function of the seed only: the same in all epochs, on all ranks, and when a run is resumed.
    """
    if resampling == "none":
        return None
    present = np.zeros((len(index), len(CLASSES)), dtype=bool)  # all boxes count, even without points
    present[np.repeat(np.arange(len(index)), np.diff(index.box_offsets)), index.labels] = True
    missing = [name for name, exists in zip(CLASSES, present.any(axis=0), strict=True) if not exists]
    if missing:
        rank_zero_only(log.warning)(
            "data.resampling=cbgs: no frame has a box of %s, so none is drawn for it; the number of draws of the "
            "other classes does not change",
            ", ".join(missing),
        )
    return balanced_frames(present, np.random.default_rng((seed, _STREAM)))


def balanced_frames(
    present: NDArray[np.bool_], random: np.random.Generator | np.random.RandomState
) -> NDArray[np.int64]:
    """Draw equally many frames for each class (CBGS, Zhu et al., arXiv 1908.09492).

    As in mmdet3d's ``CBGSDataset``: with n_c frames of class c and N their sum, N / 10 frames are drawn for each
    class, uniformly, with replacement. If N / 10 rounds down to 0, one is drawn, where the release draws none.

    Args:
        present: (frame, class) whether a frame has a box of a class.
        random: a generator.

    Returns:
        Frame numbers, ordered by class. A class without frames has no draws.
    """
    counts = present.sum(axis=0)
    total = counts.sum()
    share = 1 / len(counts)
    drawn = []
    for label, count in enumerate(counts):
        if count:
            # The order of the release's operations, whose rounding matters if N / 10 is a whole number.
            draws = max(1, int(count * (share / (count / total))))
            drawn.append(np.asarray(random.choice(np.flatnonzero(present[:, label]), draws), dtype=np.int64))
    return np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)


def occurrences(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of earlier entries with the same frame: (7, 3, 7, 7) gives (0, 0, 1, 2)."""
    order = np.argsort(frames, kind="stable")
    ordered = frames[order]
    result = np.empty(len(frames), dtype=np.int64)
    result[order] = np.arange(len(frames)) - np.searchsorted(ordered, ordered)
    return result
