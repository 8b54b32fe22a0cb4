"""Precision and errors over recall of one class."""

import numpy as np
from numpy.typing import NDArray
from nuscenes.eval.detection.data_classes import DetectionMetricData

from cmt_aqr.constants import CLASSES, ERRORS
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.rows import ATTRIBUTE, LABEL, ROTATION, SIZE, TRANSLATION, VELOCITY


def match_errors(objects: NDArray[np.float64], detections: NDArray[np.float64]) -> NDArray[np.float64]:
    """Errors (match, 5) of detections, in the order of ``ERRORS``: nuscenes/eval/common/utils.py.

    Args:
        objects: (match, 15) rows of :func:`cmt_aqr.evaluation.submission.to_global`. If a velocity is NaN, so is
            its error; without an attribute, the attribute error is NaN.
        detections: (match, 15) rows of the matched detections.

    Raises:
        DataError: a size is not above 0.
    """
    sizes = objects[:, SIZE], detections[:, SIZE]
    if any((size <= 0).any() for size in sizes):
        raise DataError("a size of a matched box is not above 0 metres, so it has no scale error")
    intersection = np.minimum(*sizes).prod(axis=1)  # of boxes moved to the same place
    # A barrier is symmetric under half a turn.
    period = np.where(objects[:, LABEL] == CLASSES.index("barrier"), np.pi, 2 * np.pi)
    turn = _yaw(objects[:, ROTATION]) - _yaw(detections[:, ROTATION])
    wrong = (objects[:, ATTRIBUTE] != detections[:, ATTRIBUTE]).astype(np.float64)
    errors = (
        np.linalg.norm((detections - objects)[:, TRANSLATION][:, :2], axis=1),
        1 - intersection / (sizes[0].prod(axis=1) + sizes[1].prod(axis=1) - intersection),
        np.abs((turn + period / 2) % period - period / 2),
        np.linalg.norm((detections - objects)[:, VELOCITY], axis=1),
        np.where(objects[:, ATTRIBUTE] == 0, np.nan, wrong),
    )
    return np.stack(errors, axis=1)


def _yaw(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Headings (box,) in radians of quaternions w, x, y, z: the direction of the box's x axis in the plane."""
    # The rounding of NumPy's arctan2 on non-contiguous arrays depends on their address.
    w, x, y, z = np.ascontiguousarray(quaternions.T)
    return np.arctan2(2 * (x * y + w * z), w**2 + x**2 - y**2 - z**2)


def make_curves(
    scores: NDArray[np.float64], matched: NDArray[np.bool_], errors: NDArray[np.float64], objects: int
) -> DetectionMetricData:
    """Curves of a class: the second half of ``accumulate`` in nuscenes/eval/detection/algo.py.

    Args:
        scores: (detection,) of all detections of the class, descending.
        matched: (detection,) whether a detection is matched with an object.
        errors: (match, 5) of the matched detections, in the same order.
        objects: number of objects of the class.
    """
    if not len(errors):
        return DetectionMetricData.no_predictions()
    sampled = np.linspace(0, 1, DetectionMetricData.nelem)
    hits = np.cumsum(matched)
    recalls = hits / objects
    precisions = np.interp(sampled, recalls, hits / np.arange(1, len(hits) + 1), right=0)
    confidences = np.interp(sampled, recalls, scores, right=0)
    # Running means that skip NaN; 0 before the first defined error, 1 if none is defined.
    defined = ~np.isnan(errors)
    means = np.nancumsum(errors, axis=0) / np.maximum(np.cumsum(defined, axis=0), 1)
    means[:, ~defined.any(axis=0)] = 1
    at, matched_scores = confidences[::-1], scores[matched][::-1]
    curves = (np.interp(at, matched_scores, mean[::-1])[::-1] for mean in means.T)
    return DetectionMetricData(sampled, precisions, confidences, **dict(zip(ERRORS, curves, strict=True)))
