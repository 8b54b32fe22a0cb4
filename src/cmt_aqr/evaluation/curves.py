"""Precision and error over recall of one class."""

import numpy as np
from numpy.typing import NDArray
from nuscenes.eval.detection.data_classes import DetectionMetricData

from cmt_aqr.constants import CLASSES, ERRORS
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.rows import ATTRIBUTE, LABEL, ROTATION, SIZE, TRANSLATION, VELOCITY


def match_errors(true: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Errors (match, 5) of detections, in the order of ``ERRORS``: nuscenes/eval/common/utils.py.

    Args:
        true: (match, 15) rows of :func:`cmt_aqr.evaluation.submission.to_global` of the objects. A velocity
            may be NaN; then so is its error. Without an attribute, that error is NaN.
        found: (match, 15) rows of the detections that they are matched with.

    Raises:
        DataError: a size is not above 0.
    """
    sizes = true[:, SIZE], found[:, SIZE]
    if any((size <= 0).any() for size in sizes):
        raise DataError("a size of a matched box is not above 0 metres: it has no scale error")
    shared = np.minimum(*sizes).prod(axis=1)  # of boxes put into one place
    # Half a turn makes no difference to a barrier.
    period = np.where(true[:, LABEL] == CLASSES.index("barrier"), np.pi, 2 * np.pi)
    turn = np.abs((_yaw(true[:, ROTATION]) - _yaw(found[:, ROTATION]) + period / 2) % period - period / 2)
    wrong = (true[:, ATTRIBUTE] != found[:, ATTRIBUTE]).astype(np.float64)
    errors = (
        np.linalg.norm((found - true)[:, TRANSLATION][:, :2], axis=1),
        1 - shared / (sizes[0].prod(axis=1) + sizes[1].prod(axis=1) - shared),
        turn,
        np.linalg.norm((found - true)[:, VELOCITY], axis=1),
        np.where(true[:, ATTRIBUTE] == 0, np.nan, wrong),
    )
    return np.stack(errors, axis=1)


def _yaw(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Headings (box,) in radians of w, x, y, z: where the box's x axis points in the plane."""
    w, x, y, z = np.ascontiguousarray(quaternions.T)
    # Of arrays that are not contiguous NumPy's arctan2 takes one of two ways, rounded otherwise, by their address.
    return np.arctan2(2 * (x * y + w * z), w**2 + x**2 - y**2 - z**2)


def make_curves(
    scores: NDArray[np.float64], matched: NDArray[np.bool_], errors: NDArray[np.float64], objects: int
) -> DetectionMetricData:
    """Curves of a class: the second half of ``accumulate`` in nuscenes/eval/detection/algo.py.

    Args:
        scores: (found,) of all detections of the class, falling.
        matched: (found,) whether a detection got an object.
        errors: (match, 5) of those that did, in the same order.
        objects: number of objects of the class.
    """
    if not len(errors):
        return DetectionMetricData.no_predictions()
    sampled = np.linspace(0, 1, DetectionMetricData.nelem)
    hits = np.cumsum(matched)
    recalls = hits / objects
    precisions = np.interp(sampled, recalls, hits / np.arange(1, len(hits) + 1), right=0)
    confidences = np.interp(sampled, recalls, scores, right=0)
    # Means of the errors so far that are known; 0 before the first, 1 where none is known.
    known = ~np.isnan(errors)
    means = np.nancumsum(errors, axis=0) / np.maximum(np.cumsum(known, axis=0), 1)
    means[:, ~known.any(axis=0)] = 1
    at, matched_scores = confidences[::-1], scores[matched][::-1]
    curves = (np.interp(at, matched_scores, mean[::-1])[::-1] for mean in means.T)
    return DetectionMetricData(sampled, precisions, confidences, **dict(zip(ERRORS, curves, strict=True)))
