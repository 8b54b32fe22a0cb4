"""The laboratory: what is simulated stands where it should, and is lost where a fault broke it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cmt_aqr.constants import CLASSES
from cmt_aqr.errors import UserError
from cmt_aqr.evaluation.metric import NuScenesMetric
from cmt_aqr.geometry import project_to_images
from cmt_aqr.lab import LabCMT, LabDataModule
from cmt_aqr.lab.scenes import GROUP_OF
from cmt_aqr.outputs import Detections
from cmt_aqr.runs.configuration import build, build_data
from cmt_aqr.structures import Batch
from tests.helpers.composed import composed

LAB = (
    "experiment=lab",
    "data.train_frames=12",
    "data.eval_frames=6",
    "data.batch_size=3",
    "data.eval_batch_size=3",
)
SILENT = tuple(f"model.network.{part}.{name}=0" for part in ("lidar", "image") for name in ("noise", "clutter"))


def data(*overrides: str, stage: str = "validate") -> LabDataModule:
    made = build_data(composed(*LAB, *overrides))
    assert isinstance(made, LabDataModule)
    made.prepare_data()
    made.setup(stage)
    return made


def batch(*overrides: str) -> Batch:
    made = data(*overrides)
    return made.finish(next(iter(made.val_dataloader())))


def maps(shown: Batch, *overrides: str) -> tuple[Tensor, Tensor]:
    """The simulated maps before the layers that learn: (frame, channel, ...) and (frame, view, channel, ...)."""
    torch.manual_seed(0)
    model = build(composed(*LAB, *overrides).model.network).eval()
    assert isinstance(model, LabCMT)
    model.lidar.backbone, model.image.backbone = torch.nn.Identity(), torch.nn.Identity()
    return model.lidar_map(shown), model.image_maps(shown)


def test_an_object_is_in_its_cells_and_nowhere_else() -> None:
    shown = batch()
    bev, images = maps(shown, *SILENT)
    there = torch.zeros(bev[:, 0].shape, dtype=torch.bool)
    seen_there = torch.zeros(images[:, :, 0].shape, dtype=torch.bool)
    size = (24, 96)
    for frame, boxes in enumerate(shown.boxes_of_each()):
        column, row = ((boxes[:, :2] + 18) / 3).long().unbind(-1)
        there[frame, row, column] = True
        pixels, _, seen = project_to_images(boxes[None, :, :3], shown.lidar2img[frame, None], size)
        cells = (pixels[0] / 8).long()
        for view, box in seen[0].nonzero().tolist():
            seen_there[frame, view, cells[view, box, 1], cells[view, box, 0]] = True
    assert torch.equal(bev.abs().sum(dim=1) > 0, there)
    assert torch.equal(images.abs().sum(dim=2) > 0, seen_there) and seen_there.sum() > 10


@pytest.mark.parametrize("fault", ["mome/lidar_drop", "mome/view_drop", "mome/fov60", "partial/two_views"])
def test_a_fault_takes_away_what_it_broke(fault: str) -> None:
    whole, broken = batch(), batch(f"eval_fault={fault}")
    (bev, images), (bev_left, images_left) = maps(whole, *SILENT), maps(broken, *SILENT)
    kept, kept_images = (
        after.abs().sum() / before.abs().sum() for before, after in ((bev, bev_left), (images, images_left))
    )
    camera = fault in ("mome/view_drop", "partial/two_views")
    assert (kept == 1, kept_images == 1) == (camera, not camera)
    lost = {"mome/lidar_drop": 0.05, "mome/view_drop": 0.05, "mome/fov60": 0.6, "partial/two_views": 0.9}[fault]
    assert min(kept, kept_images) < lost


def test_what_is_broken_is_noisy_and_the_noise_is_the_frame_s_own() -> None:
    whole, broken = batch(), batch("eval_fault=mome/lidar_drop")
    (bev, _), (again, _), (loud, _) = maps(whole), maps(whole), maps(broken)
    assert torch.equal(bev, again)
    assert loud.std() > 1.5 * bev.std()
    other = whole.replace(tokens=tuple(f"{token}x" for token in whole.tokens))
    assert not torch.equal(maps(other)[0], bev)


def test_a_near_object_hides_a_far_one() -> None:
    shown = batch()
    boxes = shown.boxes[:2].clone()
    boxes[:, :2] = torch.tensor(((0.0, 10.0), (0.0, 30.0)))
    boxes[:, 2] = 0.0
    labels, counts = shown.labels[:2], (1, 1, 0)
    apart = maps(shown.replace(boxes=boxes, labels=labels, box_counts=counts), *SILENT)[1]
    together = maps(shown.replace(boxes=boxes, labels=labels, box_counts=(2, 0, 0)), *SILENT)[1]
    near, far = (one.abs().sum() for one in (apart[0], apart[1]))
    hidden = (together[0] - apart[0]).abs().sum()
    assert hidden < 0.5 * far < far < near


def test_the_lidar_knows_the_group_and_the_camera_the_class() -> None:
    shown = batch()
    labels = shown.labels.clone()
    label = int(labels[0])
    alike = next(n for n in range(len(CLASSES)) if n != label and GROUP_OF[n] == GROUP_OF[label])
    labels[0] = alike
    (bev, images), (bev_of_other, images_of_other) = (
        maps(shown, *SILENT),
        maps(shown.replace(labels=labels), *SILENT),
    )
    assert torch.equal(bev, bev_of_other) and not torch.equal(images, images_of_other)


@pytest.mark.parametrize("objects", ["5", "[9,5]", "[1.5,3]"])
def test_the_number_of_objects_is_a_range(objects: str) -> None:
    with pytest.raises(UserError, match=r"^data\.objects="):
        data(f"data.objects={objects}")


def test_scenes_depend_on_seed_split_and_number_alone() -> None:
    made = data(stage="fit")
    first, second = made.dataset("train"), data(stage="fit").dataset("train")
    assert torch.equal(first[5].boxes, second[5].boxes)
    assert not torch.equal(first[5].boxes[:1], first[4].boxes[:1])
    assert not torch.equal(first[0].boxes[:1], made.dataset("val")[0].boxes[:1])
    loaded = [
        next(iter(data(f"data.num_workers={workers}", stage="fit").train_dataloader())) for workers in (0, 1)
    ]
    assert loaded[0].tokens == loaded[1].tokens and torch.equal(loaded[0].boxes, loaded[1].boxes)


def test_perfect_detections_score_one() -> None:
    made = data()
    metric = NuScenesMetric(made.ground_truth())
    for shown in made.val_dataloader():
        for frame, (boxes, labels) in enumerate(zip(shown.boxes_of_each(), shown.labels_of_each(), strict=True)):
            found = Detections(boxes, torch.ones(len(boxes)), labels)
            metric.update([found], [shown.tokens[frame]], shown.lidar2global[frame, None])
    metrics = metric.compute()
    there = len(set(made.ground_truth().rows[:, 12].astype(int).tolist()))
    assert metrics["mAP"] == pytest.approx(there / len(CLASSES), abs=0.01) and metrics["frames"] == 6


@pytest.mark.parametrize("sensor", ["model.network.lidar", "model.network.image"])
def test_one_sensor_alone(sensor: str) -> None:
    head = "bev_channels=null" if sensor.endswith("lidar") else "cameras=false"
    settings = (f"{sensor}=null", f"model.network.head.{head}")
    model: Any = build(composed(*LAB, *settings).model.network)
    answer = model(batch(*settings)).matching
    assert answer.logits.isfinite().all()


@pytest.mark.parametrize("override", ["data.val_split=mini_val", "data.resampling=cbgs"])
def test_what_is_of_real_data_is_refused(override: str) -> None:
    with pytest.raises(UserError, match="laboratory has"):
        data(override)
