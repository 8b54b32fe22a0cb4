"""Class-balanced resampling (CBGS): an epoch in which every class is drawn equally often."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_only

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.index import FrameIndex

log = logging.getLogger(__name__)

RESAMPLINGS = ("none", "cbgs")

_STREAM = 0xCB65
"""Keeps these draws apart from others of the same seed."""


def resampled_frames(index: FrameIndex, resampling: str, seed: int) -> NDArray[np.int64] | None:
    """The frames of an epoch by number, repeated and left out as one of ``RESAMPLINGS`` says; ``None``: all, once.

    Drawn from the run's seed alone: once for all epochs, the same on all ranks and when a run is resumed.
    """
    if resampling == "none":
        return None
    present = classes_of_frames(index)
    absent = [name for name, there in zip(CLASSES, present.any(axis=0), strict=True) if not there]
    if absent:
        rank_zero_only(log.warning)(
            "data.resampling=cbgs: no frame has a box of %s, so none is drawn for it; the other classes are "
            "drawn as often as if there were",
            ", ".join(absent),
        )
    return balanced_frames(present, np.random.default_rng((seed, _STREAM)))


def classes_of_frames(index: FrameIndex) -> NDArray[np.bool_]:
    """(frame, class): whether a frame has a box of a class; all annotated boxes count, seen or not."""
    present = np.zeros((len(index), len(CLASSES)), dtype=bool)
    frame = np.repeat(np.arange(len(index)), np.diff(index.box_offsets))
    present[frame, index.labels] = True
    return present


def balanced_frames(
    present: NDArray[np.bool_], random: np.random.Generator | np.random.RandomState
) -> NDArray[np.int64]:
    """Draw equally many frames for each class from those that have it (CBGS, Zhu et al., arXiv 1908.09492).

    As in mmdet3d's ``CBGSDataset``: with n_c frames of class c and N their sum, N / 10 frames are drawn for each
    class, uniformly, with replacement. Where N / 10 rounds down to none, which leaves the release nothing to train
    on, one is drawn.

    Returns:
        Frame numbers, the draws of one class after those of another, given who has what (frame, class). A frame
        with none
        of the classes is never among them; a class without a frame has no draws.
    """
    counts = present.sum(axis=0)
    total = counts.sum()
    share = 1 / len(counts)
    drawn = []
    for label, count in enumerate(counts):
        if count:
            # In the release's order, whose rounding decides where N / 10 is a whole number.
            draws = max(1, int(count * (share / (count / total))))
            drawn.append(np.asarray(random.choice(np.flatnonzero(present[:, label]), draws), dtype=np.int64))
    return np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)


def occurrences(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each entry's frame has come before: (7, 3, 7, 7) gives (0, 0, 1, 2)."""
    order = np.argsort(frames, kind="stable")
    in_order = frames[order]
    begins = np.flatnonzero(np.diff(in_order, prepend=-1))
    lengths = np.diff(begins, append=len(frames))
    result = np.empty(len(frames), dtype=np.int64)
    result[order] = np.arange(len(frames)) - np.repeat(begins, lengths)
    return result
