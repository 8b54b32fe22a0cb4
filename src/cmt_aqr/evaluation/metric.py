"""nuScenes' official detection metric as a torchmetrics metric."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from cmt_aqr.data.errors import DataError
from cmt_aqr.data.ground_truth import GroundTruth
from cmt_aqr.data.rows import COLUMNS
from cmt_aqr.evaluation.matching import ranges
from cmt_aqr.evaluation.official import evaluate_boxes
from cmt_aqr.evaluation.submission import GlobalDetections, to_global, write_submission
from cmt_aqr.ops.devices import processes
from cmt_aqr.outputs import Detections


class NuScenesMetric(Metric):
    """Collects detections per frame and computes nuScenes' official metrics at the end.

    Detections are gathered over all processes; of a frame that occurs more than once, the first occurrence counts.
    Rank 0 computes the metrics and broadcasts them.

    Args:
        truth: ground truth of the evaluated split, or a function that loads it on first use, after Lightning has
            had one process prepare it.
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
        self._add_empty_states()

    @functools.cached_property
    def truth(self) -> GroundTruth:
        """Ground truth of the evaluated split."""
        return self._source if isinstance(self._source, GroundTruth) else self._source()

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """The frames' numbers in the split, by sample token."""
        return {token: number for number, token in enumerate(self.truth.tokens)}

    def _add_empty_states(self) -> None:
        """Let a process without frames take part in a gather, which needs the states' type and width."""
        self.frames.append(torch.zeros((0, 2), dtype=torch.int64, device=self.device))
        self.rows.append(torch.zeros((0, COLUMNS), dtype=torch.float64, device=self.device))

    def reset(self) -> None:
        """Remove all frames."""
        super().reset()
        self._add_empty_states()

    def update(self, detections: Sequence[Detections], tokens: Sequence[str], lidar2global: Tensor) -> None:
        """Add the detections of a batch.

        Args:
            detections: per frame, in the LiDAR frame; finite, as :func:`~cmt_aqr.evaluation.decoding.decode`
                returns them.
            tokens: sample token per frame.
            lidar2global: (frame, 4, 4).

        Raises:
            DataError: a frame is not in the split.
        """
        for boxes, token, pose in zip(detections, tokens, lidar2global, strict=True):
            if token not in self.numbers:
                raise DataError(
                    f"sample {token} is not in split {self.truth.split} of {self.truth.version}, so it cannot be "
                    "evaluated"
                )
            rows = to_global(boxes, pose)
            self.frames.append(torch.tensor([[self.numbers[token], len(rows)]], device=self.device))
            self.rows.append(torch.from_numpy(rows).to(self.device))

    def detections(self) -> GlobalDetections:
        """Detections per frame, in the order of the split; of a frame that occurs twice, the first."""
        frames = dim_zero_cat(self.frames).cpu().numpy()
        rows = dim_zero_cat(self.rows).cpu().numpy()
        starts = np.cumsum(frames[:, 1]) - frames[:, 1]
        numbers, first = np.unique(frames[:, 0], return_index=True)
        counts = frames[first, 1]
        return GlobalDetections(numbers, counts, rows[ranges(starts[first], counts)])

    def compute(self) -> dict[str, float]:
        """Official metrics of the collected frames: see :func:`cmt_aqr.evaluation.official.evaluate_boxes`.

        Without annotations: ``frames`` and ``frames_of_split`` only.
        """
        if not self.truth.annotated:
            return {
                "frames": float(len(self.detections().frames)),
                "frames_of_split": float(len(self.truth.tokens)),
            }
        if not (self.sync_on_compute and processes() > 1):
            return evaluate_boxes(self.truth, self.detections())
        shared: list[Any] = [None]
        if torch.distributed.get_rank() == 0:
            try:
                shared[0] = evaluate_boxes(self.truth, self.detections())
            except Exception as error:  # raised by all processes, which wait for the broadcast
                shared[0] = error
        torch.distributed.broadcast_object_list(shared, src=0, device=self.device)
        if isinstance(shared[0], Exception):
            raise shared[0]
        return dict(shared[0])

    def write(self, path: Path, use_camera: bool, use_lidar: bool) -> None:
        """Write a results file of the collected frames from rank 0; all processes must call this."""
        distributed = processes() > 1
        with self.sync_context(should_sync=distributed, distributed_available=lambda: distributed):
            if not distributed or torch.distributed.get_rank() == 0:
                write_submission(path, self.truth.tokens, self.detections(), use_camera, use_lidar)
