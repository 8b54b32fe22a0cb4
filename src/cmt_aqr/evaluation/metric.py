"""nuScenes' official detection metric, gathered over processes by torchmetrics."""

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
from cmt_aqr.evaluation.submission import FoundBoxes, to_global, write_submission
from cmt_aqr.ops.devices import processes
from cmt_aqr.outputs import Detections


class NuScenesMetric(Metric):
    """Collects detections, frame by frame, and computes nuScenes' official metrics at the end.

    In several processes the detections are gathered, and a frame that came more than once counts once (the
    first time). The first process computes the numbers of the whole set, all get them.

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
            detections: of every frame, LiDAR frame; finite, as :func:`~cmt_aqr.evaluation.decoding.decode` gives
                them.
            tokens: sample token of every frame.
            lidar2global: (frame, 4, 4).

        Raises:
            DataError: a frame is not of the split.
        """
        for found, token, pose in zip(detections, tokens, lidar2global, strict=True):
            if token not in self._number:
                raise DataError(
                    f"sample {token} is not in split {self.truth.split} of {self.truth.version}: it cannot be "
                    "evaluated with it"
                )
            rows = to_global(found, pose)
            counted = torch.tensor([[self._number[token], len(rows)]], device=self.device)
            self.frames.append(counted)
            self.rows.append(torch.from_numpy(rows).to(self.device))

    def found(self) -> FoundBoxes:
        """Detections of every frame seen, in the order of the split; of a frame seen twice, the first."""
        frames = dim_zero_cat(self.frames).cpu().numpy()
        rows = dim_zero_cat(self.rows).cpu().numpy()
        starts = np.cumsum(frames[:, 1]) - frames[:, 1]
        numbers, first = np.unique(frames[:, 0], return_index=True)
        counts = frames[first, 1]
        return FoundBoxes(numbers, counts, rows[ranges(starts[first], counts)])

    def compute(self) -> dict[str, float]:
        """Official metrics of the frames seen: see :func:`cmt_aqr.evaluation.official.evaluate_boxes`.

        Of a split without annotations: ``frames`` and ``frames_of_split`` only.
        """
        if not self.truth.annotated:
            return {"frames": float(len(self.found().frames)), "frames_of_split": float(len(self.truth.tokens))}
        if not (self.sync_on_compute and processes() > 1):
            return evaluate_boxes(self.truth, self.found())
        shared: list[Any] = [None]
        if torch.distributed.get_rank() == 0:
            try:
                shared[0] = evaluate_boxes(self.truth, self.found())
            except Exception as error:  # the others wait for an answer: they get this one
                shared[0] = error
        torch.distributed.broadcast_object_list(shared, src=0, device=self.device)
        if isinstance(shared[0], Exception):
            raise shared[0]
        return dict(shared[0])

    def write(self, path: Path, use_camera: bool, use_lidar: bool) -> None:
        """Write the frames seen as a results file, from the first process; all must call it."""
        distributed = processes() > 1
        with self.sync_context(should_sync=distributed, distributed_available=lambda: distributed):
            if not distributed or torch.distributed.get_rank() == 0:
                write_submission(path, self.truth.tokens, self.found(), use_camera, use_lidar)
