"""Boxes count where a sensor is broken, and nowhere else."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cmt_aqr.evaluation.metric import NuScenesMetric
from cmt_aqr.lab import LabDataModule
from cmt_aqr.outputs import Detections
from cmt_aqr.runs.configuration import build_data
from cmt_aqr.structures import Batch
from cmt_aqr.studies.region import BrokenRegion
from tests.helpers.composed import composed


def lab(fault: str) -> LabDataModule:
    made = build_data(
        composed("experiment=lab", "data.eval_frames=8", "data.eval_batch_size=4", f"eval_fault={fault}")
    )
    assert isinstance(made, LabDataModule)
    made.setup("validate")
    return made


def front(batch: Batch, place: int) -> torch.Tensor:
    """Boxes of a frame within 60 degrees of ahead, where fov60 leaves the LiDAR whole."""
    boxes = batch.boxes_of_each()[place]
    return torch.atan2(boxes[:, 0], boxes[:, 1]).abs() < math.radians(60)


def score(fault: str, keep: Any) -> float:
    """mAP of the broken region where the true boxes are found that ``keep`` chooses."""
    data = lab(fault)
    module: Any = SimpleNamespace(metric=NuScenesMetric(data.ground_truth()))
    region = BrokenRegion()
    region.on_validation_start(None, module)  # type: ignore[arg-type]
    for batch in data.val_dataloader():
        found = []
        for place, (boxes, labels) in enumerate(zip(batch.boxes_of_each(), batch.labels_of_each(), strict=True)):
            kept = keep(batch, place)
            found.append(Detections(boxes[kept], torch.ones(int(kept.sum())), labels[kept]))
        region.on_validation_batch_end(None, module, {"detections": found}, batch)  # type: ignore[arg-type]
    return region.mean_precision()


def test_what_is_found_elsewhere_does_not_count() -> None:
    everything = score("mome/fov60", lambda batch, place: torch.ones_like(front(batch, place)))
    assert everything > 0.5
    assert score("mome/fov60", lambda batch, place: ~front(batch, place)) == pytest.approx(everything, abs=0.15)
    assert score("mome/fov60", front) < 0.1


def test_nothing_broken_has_no_score() -> None:
    assert math.isnan(score("none", lambda batch, place: torch.ones_like(front(batch, place))))


def test_black_cameras_break_what_they_see() -> None:
    assert score("mome/view_drop", lambda batch, place: torch.ones_like(front(batch, place))) > 0.5
