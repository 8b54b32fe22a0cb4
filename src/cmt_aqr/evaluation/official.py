"""nuScenes' official detection metrics: the devkit's numbers, by its formulas, in arrays.

Tests hold every step against the devkit's own evaluation.
"""

import numpy as np
from numpy.typing import NDArray
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.algo import calc_ap, calc_tp
from nuscenes.eval.detection.data_classes import DetectionConfig, DetectionMetricData, DetectionMetrics

from cmt_aqr.constants import CLASSES, ERRORS
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.ground_truth import GroundTruth
from cmt_aqr.data.poses import rotations
from cmt_aqr.data.rows import LABEL, ROTATION, SCORE, SIZE, TRANSLATION
from cmt_aqr.evaluation.curves import make_curves, match_errors
from cmt_aqr.evaluation.matching import greedy_match, near_pairs
from cmt_aqr.evaluation.submission import FoundBoxes

CONFIGURATION = "detection_cvpr_2019"
"""The devkit's configuration of the official detection task."""

_UNDEFINED = {"traffic_cone": ("orient_err", "vel_err", "attr_err"), "barrier": ("vel_err", "attr_err")}
"""Errors that nuScenes does not define, by class: ``DetectionEval.evaluate`` in
nuscenes/eval/detection/evaluate.py."""


def evaluate_boxes(truth: GroundTruth, found: FoundBoxes) -> dict[str, float]:
    """The official metrics of detections: ``DetectionEval`` in nuscenes/eval/detection/evaluate.py.

    Args:
        truth: ground truth of the split.
        found: detections. Only the ground truth of these frames takes part; if they are all of the split's,
            the numbers are those of the devkit's ``DetectionEval``.

    Returns:
        ``mAP``, ``NDS``; ``mATE``, ``mASE``, ``mAOE``, ``mAVE``, ``mAAE``; ``AP/<class>`` and ``ATE/<class>``
        and so on, NaN where nuScenes defines none; ``frames`` and ``frames_of_split``, the number of samples
        evaluated and there.

    Raises:
        DataError: no frame at all, or a size that is not above 0.
    """
    if not len(found.frames):
        raise DataError(f"no frame of split {truth.split} was given to the evaluation: it needs at least one")
    config = config_factory(CONFIGURATION)
    metrics = DetectionMetrics(config)
    for distance, of_distance in make_all_curves(truth, found, config).items():
        for label, curves in zip(CLASSES, of_distance, strict=True):
            metrics.add_label_ap(label, distance, calc_ap(curves, config.min_recall, config.min_precision))
            if distance == config.dist_th_tp:
                for error in ERRORS:
                    undefined = error in _UNDEFINED.get(label, ())
                    value = np.nan if undefined else calc_tp(curves, config.min_recall, error)
                    metrics.add_label_tp(label, error, value)
    values = {"mAP": metrics.mean_ap, "NDS": metrics.nd_score}
    values |= {f"m{name}": metrics.tp_errors[error] for error, name in ERRORS.items()}
    for label in CLASSES:
        values[f"AP/{label}"] = metrics.mean_dist_aps[label]
        values |= {f"{name}/{label}": metrics.get_label_tp(label, error) for error, name in ERRORS.items()}
    values |= {"frames": len(found.frames), "frames_of_split": len(truth.tokens)}
    return {name: float(value) for name, value in values.items()}


def metric_names() -> list[str]:
    """Names of the numbers of :func:`evaluate_boxes`."""
    of_class = [f"{name}/{label}" for label in CLASSES for name in ("AP", *ERRORS.values())]
    return ["mAP", "NDS", *(f"m{name}" for name in ERRORS.values()), *of_class, "frames", "frames_of_split"]


def make_all_curves(
    truth: GroundTruth, found: FoundBoxes, config: DetectionConfig
) -> dict[float, list[DetectionMetricData]]:
    """Filter, match and accumulate: curves of each class, by the configuration's distances."""
    true_rows, true_groups = _true_boxes(truth, found, config)
    rows, frames = _in_line(truth, found, config)
    labels = found.rows[rows, LABEL].astype(np.int64)
    pairs = near_pairs(
        frames * len(CLASSES) + labels,
        found.rows[rows, :2],
        true_groups,
        true_rows[:, :2],
        reach=max(config.dist_ths),
    )
    objects = np.bincount(true_groups % len(CLASSES), minlength=len(CLASSES))
    lines = [np.flatnonzero(labels == label) for label in range(len(CLASSES))]
    scores = found.rows[rows, SCORE]
    curves = {}
    for distance in config.dist_ths:
        matches = greedy_match(pairs.within(distance), len(rows), len(true_rows))
        matched = matches >= 0
        errors = np.full((len(rows), len(ERRORS)), np.nan)
        errors[matched] = match_errors(true_rows[matches[matched]], found.rows[rows[matched]])
        curves[distance] = [
            make_curves(scores[line], matched[line], errors[line][matched[line]], count)
            for line, count in zip(lines, objects.tolist(), strict=True)
        ]
    return curves


def _true_boxes(
    truth: GroundTruth, found: FoundBoxes, config: DetectionConfig
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows (box, 15) of the objects that count in the frames seen, and their frame and class as one number."""
    seen = np.zeros(len(truth.tokens), dtype=bool)
    seen[found.frames] = True
    kept = seen[truth.frames] & (truth.points != 0) & counted(truth, truth.frames, truth.rows, config)
    rows = truth.rows[kept]
    return rows, truth.frames[kept] * len(CLASSES) + rows[:, LABEL].astype(np.int64)


def check_anything_to_find(truth: GroundTruth, frames: NDArray[np.int64]) -> None:
    """Refuse to evaluate frames (frame,) in which, after the official filters, no object is left to find.

    Raises:
        DataError: with how many objects each filter leaves.
    """
    nothing = FoundBoxes(frames, np.zeros_like(frames), np.zeros((0, truth.rows.shape[1])))
    rows, _ = _true_boxes(truth, nothing, config_factory(CONFIGURATION))
    if len(rows):
        return
    of_frames = np.isin(truth.frames, frames)
    seen = of_frames & (truth.points != 0)
    raise DataError(
        f"split {truth.split} of {truth.version}, {len(frames)} frames: there is nothing to evaluate against, for "
        f"of {of_frames.sum()} annotations of the ten classes {seen.sum()} have num_lidar_pts or num_radar_pts "
        "above 0, and none of these is as near to the car as nuScenes' evaluation asks; take other frames, or "
        "mend the tables"
    )


def _in_line(
    truth: GroundTruth, found: FoundBoxes, config: DetectionConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers and frames of the detections that count, in the order in which they choose.

    The highest score first, and of equal ones the last: as ``accumulate`` in nuscenes/eval/detection/algo.py.
    """
    frames = np.repeat(found.frames, found.counts)
    rows = np.flatnonzero(counted(truth, frames, found.rows, config))
    rows = rows[np.argsort(found.rows[rows, SCORE], kind="stable")[::-1]]
    return rows, frames[rows]


def counted(
    truth: GroundTruth, frames: NDArray[np.int64], rows: NDArray[np.float64], config: DetectionConfig
) -> NDArray[np.bool_]:
    """Which boxes (box,) are near enough to the car for their class, and no cycle in a bicycle rack.

    ``filter_eval_boxes`` in nuscenes/eval/common/loaders.py.

    Args:
        truth: where the car and the racks are.
        frames: (box,) numbers of frames, rising.
        rows: (box, 15) of :func:`cmt_aqr.evaluation.submission.to_global`.
        config: of the devkit.
    """
    labels = rows[:, LABEL].astype(np.int64)
    offsets = rows[:, :2] - truth.ego[frames, :2]
    reach = np.array([config.class_range[label] for label in CLASSES])
    kept = np.sqrt(offsets[:, 0] ** 2 + offsets[:, 1] ** 2) < reach[labels]
    cycle = kept & np.isin(labels, [CLASSES.index("bicycle"), CLASSES.index("motorcycle")])
    starts = np.searchsorted(frames, truth.rack_frames)
    ends = np.searchsorted(frames, truth.rack_frames, side="right")
    for rack, start, end in zip(truth.racks, starts, ends, strict=True):
        cycles = start + np.flatnonzero(cycle[start:end])
        kept[cycles[_inside(rack, rows[cycles, TRANSLATION])]] = False
    return kept


def _inside(box: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points (point, 3) lie in a box (10,), its faces too: nuscenes/utils/geometry_utils.py."""
    along = (points - box[TRANSLATION]) @ rotations(box[ROTATION])[0]
    return (np.abs(along) <= box[SIZE][[1, 0, 2]] / 2).all(axis=1)  # length, width, height
