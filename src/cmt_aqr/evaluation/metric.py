"""nuScenes' official detection metric, computed by the devkit, gathered over processes by torchmetrics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig, DetectionMetrics
from nuscenes.eval.detection.evaluate import DetectionEval
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.ground_truth import GroundTruth
from cmt_aqr.evaluation.submission import COLUMNS, to_detection_boxes, to_entries, to_global, write_submission
from cmt_aqr.structures import Detections

CONFIGURATION = "detection_cvpr_2019"
"""The devkit's configuration of the official detection task."""

ERRORS: dict[str, str] = {
    "trans_err": "ATE",
    "scale_err": "ASE",
    "orient_err": "AOE",
    "vel_err": "AVE",
    "attr_err": "AAE",
}
"""The devkit's true-positive errors and their usual names: translation (m), scale (1 - IoU), orientation
(rad), velocity (m/s), attribute (1 - accuracy). The mean over classes has an m in front."""


class _Evaluation(DetectionEval):
    """The devkit's evaluation of boxes that are in memory and filtered already."""

    def __init__(self, config: DetectionConfig, truth: EvalBoxes, predictions: EvalBoxes) -> None:
        # The parent's constructor only loads and filters, from files and for whole splits.
        self.cfg = config
        self.gt_boxes = truth
        self.pred_boxes = predictions
        self.verbose = False


def evaluate_boxes(truth: GroundTruth, predictions: Mapping[str, Sequence[DetectionBox]]) -> dict[str, float]:
    """The official metrics of predicted boxes: distances, filters, matching and sums are all the devkit's.

    Args:
        truth: ground truth of the split.
        predictions: boxes, global frame, by sample token. Only these samples' ground truth takes part; if
            they are all of the split's, the numbers are those of the devkit's ``DetectionEval``.

    Returns:
        ``mAP``, ``NDS``; ``mATE``, ``mASE``, ``mAOE``, ``mAVE``, ``mAAE``; ``AP/<class>`` and ``ATE/<class>``
        and so on, NaN where nuScenes defines none; ``frames`` and ``frames_of_split``, the number of samples
        evaluated and there.

    Raises:
        DataError: a token that the split does not have, or no token at all.
    """
    unknown = [token for token in predictions if token not in truth.ego_translations]
    if unknown:
        raise DataError(_unknown(truth, unknown[0]))
    if not predictions:
        raise DataError(f"no frame of split {truth.split} was given to the evaluation: it needs at least one")
    config = config_factory(CONFIGURATION)
    tokens = [token for token in truth.tokens if token in predictions]
    true_boxes = _filtered(truth, {token: truth.boxes[token] for token in tokens}, config)
    predicted = _filtered(truth, {token: predictions[token] for token in tokens}, config)
    with np.errstate(invalid="ignore"):
        metrics, _ = _Evaluation(config, true_boxes, predicted).evaluate()
    return {
        **_named(metrics),
        "frames": float(len(tokens)),
        "frames_of_split": float(len(truth.tokens)),
    }


def _unknown(truth: GroundTruth, token: str) -> str:
    return f"sample {token} is not in split {truth.split} of {truth.version}: it cannot be evaluated with it"


def _filtered(
    truth: GroundTruth, boxes: Mapping[str, Sequence[DetectionBox]], config: DetectionConfig
) -> EvalBoxes:
    """The devkit's distances and filters, on a fresh container; the boxes given are shared with it."""
    chosen = EvalBoxes()
    for token, of_sample in boxes.items():
        chosen.add_boxes(token, list(of_sample))
    if not chosen.all:
        return chosen  # the devkit cannot tell the class of no box
    add_center_dist(truth, chosen)
    return filter_eval_boxes(truth, chosen, config.class_range, verbose=False)


def _named(metrics: DetectionMetrics) -> dict[str, float]:
    errors = metrics.tp_errors
    values = {"mAP": metrics.mean_ap, "NDS": metrics.nd_score}
    values |= {f"m{name}": errors[key] for key, name in ERRORS.items()}
    precisions = metrics.mean_dist_aps
    for label in CLASSES:
        values[f"AP/{label}"] = precisions[label]
        values |= {f"{name}/{label}": metrics.get_label_tp(label, key) for key, name in ERRORS.items()}
    return {name: float(value) for name, value in values.items()}


class NuScenesMetric(Metric):
    """Collects detections, frame by frame, and computes nuScenes' official metrics at the end.

    In several processes the detections are gathered, and a frame that came more than once counts once (the
    first time), so every process computes the devkit's number for the whole set.

    Args:
        truth: ground truth of the evaluated split, or a function that loads it when it is first needed:
            after Lightning has let one process prepare it for all.
        kwargs: of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    frames: list[Tensor]
    rows: list[Tensor]

    def __init__(self, truth: GroundTruth | Callable[[], GroundTruth], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._source = truth
        self.add_state("frames", [], dist_reduce_fx="cat")
        self.add_state("rows", [], dist_reduce_fx="cat")
        self._add_nothing()

    @functools.cached_property
    def truth(self) -> GroundTruth:
        """Ground truth of the split that is evaluated."""
        return self._source if isinstance(self._source, GroundTruth) else self._source()

    @functools.cached_property
    def _number(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.truth.tokens)}

    def _add_nothing(self) -> None:
        """Empty states of the right type and width: a process without a frame can take part in a gather."""
        self.frames.append(torch.zeros((0, 2), dtype=torch.int64, device=self.device))
        self.rows.append(torch.zeros((0, COLUMNS), dtype=torch.float64, device=self.device))

    def reset(self) -> None:
        """Forget all frames."""
        super().reset()
        self._add_nothing()

    def update(self, detections: Sequence[Detections], tokens: Sequence[str], lidar2global: Tensor) -> None:
        """Add the detections of some frames.

        Args:
            detections: of every frame, LiDAR frame.
            tokens: sample token of every frame.
            lidar2global: (frame, 4, 4).

        Raises:
            DataError: a frame is not of the split, or a detection is not finite.
        """
        for found, token, pose in zip(detections, tokens, lidar2global, strict=True):
            if token not in self._number:
                raise DataError(_unknown(self.truth, token))
            if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
                raise DataError(f"the detections of sample {token} are not finite: the model gave NaN or infinity")
            rows = to_global(found, pose)
            counted = torch.tensor([[self._number[token], len(rows)]], device=self.device)
            self.frames.append(counted)
            self.rows.append(torch.from_numpy(rows).to(self.device))

    def _by_token(self) -> dict[str, np.ndarray]:
        """Rows of every frame seen, in the order of the split; of a frame seen twice, the first."""
        frames = dim_zero_cat(self.frames).cpu().numpy()
        rows = dim_zero_cat(self.rows).cpu().numpy()
        ends = np.cumsum(frames[:, 1])
        _, first = np.unique(frames[:, 0], return_index=True)
        return {self.truth.tokens[frames[row, 0]]: rows[ends[row] - frames[row, 1] : ends[row]] for row in first}

    def compute(self) -> dict[str, float]:
        """Official metrics of the frames seen: see :func:`evaluate_boxes`."""
        found = self._by_token()
        return evaluate_boxes(
            self.truth, {token: to_detection_boxes(token, rows) for token, rows in found.items()}
        )

    def results(self) -> dict[str, list[dict[str, Any]]]:
        """Entries of a results file for every frame seen, gathered over processes: all must call it."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        with self.sync_context(should_sync=distributed, distributed_available=lambda: distributed):
            return {token: to_entries(token, rows) for token, rows in self._by_token().items()}

    def write(self, path: Path, use_camera: bool, use_lidar: bool) -> None:
        """Write the frames seen as a results file, from the first process; all must call it."""
        results = self.results()
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            write_submission(path, results, use_camera, use_lidar)
