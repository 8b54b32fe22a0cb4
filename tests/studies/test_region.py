"""Only boxes where a sensor is broken count."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cmt_aqr.evaluation.metric import NuScenesMetric
from cmt_aqr.lab import LabDataModule
from cmt_aqr.outputs import Detections
from cmt_aqr.runs.configuration import build_data
from cmt_aqr.studies.region import BrokenRegion
from tests.helpers.composed import composed


def score(fault: str, where: str = "everywhere") -> float:
    """mAP of the broken region if the true boxes in front, behind or everywhere are detected.

    In front is within 60 degrees of ahead, where fov60 leaves the LiDAR intact.
    """
    config = composed("experiment=lab", "data.eval_frames=8", "data.eval_batch_size=4", f"eval_fault={fault}")
    data = build_data(config)
    assert isinstance(data, LabDataModule)
    data.setup("validate")
    module: Any = SimpleNamespace(metric=NuScenesMetric(data.ground_truth()))
    region = BrokenRegion()
    region.on_validation_start(None, module)  # type: ignore[arg-type]
    for batch in data.val_dataloader():
        detections = []
        for boxes, labels in zip(batch.boxes_of_each(), batch.labels_of_each(), strict=True):
            front = torch.atan2(boxes[:, 0], boxes[:, 1]).abs() < math.radians(60)
            kept = {"front": front, "behind": ~front, "everywhere": torch.ones_like(front)}[where]
            detections.append(Detections(boxes[kept], torch.ones(int(kept.sum())), labels[kept]))
        region.on_validation_batch_end(None, module, {"detections": detections}, batch)  # type: ignore[arg-type]
    return region.mean_precision()


def test_detections_elsewhere_do_not_count() -> None:
    everywhere = score("mome/fov60")
    assert everywhere > 0.5
    assert score("mome/fov60", "behind") == pytest.approx(everywhere, abs=0.15)
    assert score("mome/fov60", "front") < 0.1


def test_without_damage_there_is_no_score() -> None:
    assert math.isnan(score("none"))


def test_black_cameras_break_what_they_see() -> None:
    assert score("mome/view_drop") > 0.5
