"""nuScenes' official detection metrics: the devkit's formulas, vectorised, and tested against the devkit."""

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
from cmt_aqr.evaluation.submission import GlobalDetections

CONFIGURATION = "detection_cvpr_2019"
"""The devkit's configuration of the detection task."""

_UNDEFINED = {"traffic_cone": ("orient_err", "vel_err", "attr_err"), "barrier": ("vel_err", "attr_err")}
"""Errors that nuScenes leaves undefined, by class: ``DetectionEval`` in nuscenes/eval/detection/evaluate.py."""


def evaluate_boxes(truth: GroundTruth, detections: GlobalDetections) -> dict[str, float]:
    """The official metrics of detections: ``DetectionEval`` in nuscenes/eval/detection/evaluate.py.

    Args:
        truth: ground truth of the split.
        detections: only their frames are evaluated; with all frames of the split, the metrics equal those of the
            devkit's ``DetectionEval``.

    Returns:
        ``mAP``, ``NDS``; ``mATE``, ``mASE``, ``mAOE``, ``mAVE``, ``mAAE``; ``AP/<class>``, ``ATE/<class>`` and so
        on, NaN if nuScenes leaves them undefined; ``frames`` and ``frames_of_split``, the number of frames
        evaluated and in the split.

    Raises:
        DataError: there is no frame, or a size is not above 0.
    """
    if not len(detections.frames):
        raise DataError(f"no frame of split {truth.split} was evaluated: the metrics need at least one")
    config = config_factory(CONFIGURATION)
    metrics = DetectionMetrics(config)
    for distance, of_distance in make_all_curves(truth, detections, config).items():
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
    values |= {"frames": len(detections.frames), "frames_of_split": len(truth.tokens)}
    return {name: float(value) for name, value in values.items()}


def metric_names() -> list[str]:
    """Names of the metrics of :func:`evaluate_boxes`."""
    of_class = [f"{name}/{label}" for label in CLASSES for name in ("AP", *ERRORS.values())]
    return ["mAP", "NDS", *(f"m{name}" for name in ERRORS.values()), *of_class, "frames", "frames_of_split"]


def make_all_curves(
    truth: GroundTruth, detections: GlobalDetections, config: DetectionConfig
) -> dict[float, list[DetectionMetricData]]:
    """Filter, match and accumulate: curves per class, by the configuration's match distances."""
    object_rows, object_groups = _objects(truth, detections, config)
    rows, frames = _ranked(truth, detections, config)
    labels = detections.rows[rows, LABEL].astype(np.int64)
    pairs = near_pairs(
        frames * len(CLASSES) + labels,
        detections.rows[rows, :2],
        object_groups,
        object_rows[:, :2],
        reach=max(config.dist_ths),
    )
    objects = np.bincount(object_groups % len(CLASSES), minlength=len(CLASSES))
    members = [np.flatnonzero(labels == label) for label in range(len(CLASSES))]
    scores = detections.rows[rows, SCORE]
    curves = {}
    for distance in config.dist_ths:
        matches = greedy_match(pairs.within(distance), len(rows), len(object_rows))
        matched = matches >= 0
        errors = np.full((len(rows), len(ERRORS)), np.nan)
        errors[matched] = match_errors(object_rows[matches[matched]], detections.rows[rows[matched]])
        curves[distance] = [
            make_curves(scores[index], matched[index], errors[index][matched[index]], count)
            for index, count in zip(members, objects.tolist(), strict=True)
        ]
    return curves


def _objects(
    truth: GroundTruth, detections: GlobalDetections, config: DetectionConfig
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows (object, 15) of the objects that count in the evaluated frames, and their frame-and-class groups."""
    kept = np.isin(truth.frames, detections.frames) & (truth.points != 0)
    kept &= counted(truth, truth.frames, truth.rows, config)
    rows = truth.rows[kept]
    return rows, truth.frames[kept] * len(CLASSES) + rows[:, LABEL].astype(np.int64)


def check_anything_to_find(truth: GroundTruth, frames: NDArray[np.int64]) -> None:
    """Refuse to evaluate frames (frame,) in which the official filters leave no object.

    Raises:
        DataError: with the number of objects that each filter leaves.
    """
    none = GlobalDetections(frames, np.zeros_like(frames), np.zeros((0, truth.rows.shape[1])))
    rows, _ = _objects(truth, none, config_factory(CONFIGURATION))
    if len(rows):
        return
    annotated = np.isin(truth.frames, frames)
    hit = annotated & (truth.points != 0)
    raise DataError(
        f"split {truth.split} of {truth.version}, {len(frames)} frames: there is nothing to evaluate against; of "
        f"{annotated.sum()} annotations of the ten classes {hit.sum()} have num_lidar_pts or num_radar_pts above "
        "0, and none of these is within the range of nuScenes' evaluation; choose other frames, or correct the "
        "tables"
    )


def _ranked(
    truth: GroundTruth, detections: GlobalDetections, config: DetectionConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices and frames of the detections that count: highest score first, of equal scores the last one first.

    As ``accumulate`` in nuscenes/eval/detection/algo.py.
    """
    frames = np.repeat(detections.frames, detections.counts)
    rows = np.flatnonzero(counted(truth, frames, detections.rows, config))
    rows = rows[np.argsort(detections.rows[rows, SCORE], kind="stable")[::-1]]
    return rows, frames[rows]


def counted(
    truth: GroundTruth, frames: NDArray[np.int64], rows: NDArray[np.float64], config: DetectionConfig
) -> NDArray[np.bool_]:
    """Which boxes (box,) are within their class's range of the car, and not a cycle in a bicycle rack.

    ``filter_eval_boxes`` in nuscenes/eval/common/loaders.py.

    Args:
        truth: with the positions of the car and the racks.
        frames: (box,) numbers of frames, ascending.
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
    """Which points (point, 3) lie in a box (10,) or on its faces: nuscenes/utils/geometry_utils.py."""
    along = (points - box[TRANSLATION]) @ rotations(box[ROTATION])[0]
    return (np.abs(along) <= box[SIZE][[1, 0, 2]] / 2).all(axis=1)  # length, width, height
