"""Precision and error over recall of one class, and the numbers that nuScenes makes of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.constants import CLASSES, ERRORS
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.rows import ATTRIBUTE, LABEL, ROTATION, SIZE, TRANSLATION, VELOCITY

RECALLS = np.linspace(0, 1, 101)
"""Where curves are sampled: ``DetectionMetricData.nelem`` of nuscenes/eval/detection/data_classes.py."""


@dataclass(frozen=True)
class Curves:
    """One class at one matching distance, over ``RECALLS``: the devkit's ``DetectionMetricData``.

    Attributes:
        precisions: (101,).
        confidences: (101,), the score down to which detections reach the recall; 0 above the highest recall.
        errors: (5, 101), mean errors of the matches down to that score, in the order of ``ERRORS``.
    """

    precisions: NDArray[np.float64]
    confidences: NDArray[np.float64]
    errors: NDArray[np.float64]


def match_errors(true: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Errors (match, 5) of detections, in the order of ``ERRORS``: nuscenes/eval/common/utils.py.

    Args:
        true: (match, 15) rows of :func:`cmt_aqr.evaluation.submission.to_global` of the objects. A velocity
            may be NaN; then so is its error. Without an attribute, that error is NaN.
        found: (match, 15) rows of the detections that they are matched with.

    Raises:
        DataError: a size is not above 0.
    """
    errors = np.empty((len(true), len(ERRORS)))
    errors[:, 0] = np.linalg.norm((found - true)[:, TRANSLATION][:, :2], axis=1)
    errors[:, 1] = 1 - _scale_iou(true[:, SIZE], found[:, SIZE])
    errors[:, 2] = _turn(true[:, ROTATION], found[:, ROTATION], true[:, LABEL] == CLASSES.index("barrier"))
    errors[:, 3] = np.linalg.norm((found - true)[:, VELOCITY], axis=1)
    wrong = (true[:, ATTRIBUTE] != found[:, ATTRIBUTE]).astype(np.float64)
    errors[:, 4] = np.where(true[:, ATTRIBUTE] == 0, np.nan, wrong)
    return errors


def _scale_iou(true: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes (match, 3) put into one place."""
    if not ((true > 0).all() and (found > 0).all()):
        raise DataError("a size of a matched box is not above 0 metres: it has no scale error")
    shared = np.minimum(true, found).prod(axis=1)
    return shared / (true.prod(axis=1) + found.prod(axis=1) - shared)


def _turn(
    true: NDArray[np.float64], found: NDArray[np.float64], two_ends: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Angles (match,) in radians between the headings of quaternions (match, 4).

    A heading is where the box's x axis points in the plane; where ``two_ends``, half a turn makes no difference.
    """
    period = np.where(two_ends, np.pi, 2 * np.pi)
    return np.abs((_yaw(true) - _yaw(found) + period / 2) % period - period / 2)


def _yaw(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    w, x, y, z = np.ascontiguousarray(quaternions.T)
    # Of arrays that are not contiguous NumPy's arctan2 takes one of two ways, rounded otherwise, by their address.
    return np.arctan2(2 * (x * y + w * z), w**2 + x**2 - y**2 - z**2)


def make_curves(
    scores: NDArray[np.float64], matched: NDArray[np.bool_], errors: NDArray[np.float64], objects: int
) -> Curves:
    """Curves of a class: the second half of ``accumulate`` in nuscenes/eval/detection/algo.py.

    Args:
        scores: (found,) of all detections of the class, falling.
        matched: (found,) whether a detection got an object.
        errors: (match, 5) of those that did, in the same order.
        objects: number of objects of the class.
    """
    if not len(errors):
        return Curves(np.zeros(len(RECALLS)), np.zeros(len(RECALLS)), np.ones((len(ERRORS), len(RECALLS))))
    hits = np.cumsum(matched)
    recalls = hits / objects
    precisions = np.interp(RECALLS, recalls, hits / np.arange(1, len(hits) + 1), right=0)
    confidences = np.interp(RECALLS, recalls, scores, right=0)
    at = confidences[::-1]
    matched_scores = scores[matched][::-1]
    curves = [np.interp(at, matched_scores, mean[::-1])[::-1] for mean in _running_means(errors).T]
    return Curves(precisions, confidences, np.array(curves))


def _running_means(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of all rows (match, 5) so far that are known; 0 before the first, 1 where none is known."""
    known = ~np.isnan(errors)
    counts = np.cumsum(known, axis=0)
    means = np.nancumsum(errors, axis=0) / np.maximum(counts, 1)
    means[:, ~known.any(axis=0)] = 1
    return means


def average_precision(curves: Curves, min_recall: float, min_precision: float) -> float:
    """Area above the least recall and precision: ``calc_ap`` in nuscenes/eval/detection/algo.py."""
    above = curves.precisions[_first(min_recall) :] - min_precision
    return float(np.maximum(above, 0).mean()) / (1 - min_precision)


def mean_errors(curves: Curves, min_recall: float) -> NDArray[np.float64]:
    """Errors (5,) up to the highest recall: ``calc_tp`` in nuscenes/eval/detection/algo.py; 1 below the least."""
    reached = np.flatnonzero(curves.confidences)
    first, last = _first(min_recall), reached[-1] if len(reached) else 0
    return curves.errors[:, first : last + 1].mean(axis=1) if last >= first else np.ones(len(ERRORS))


def _first(min_recall: float) -> int:
    """Index of the first recall above the least."""
    return round(100 * min_recall) + 1
