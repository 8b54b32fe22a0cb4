"""The laboratory: simulated objects are in the right cells, and are lost where a fault destroyed the data."""

import functools

import pytest
import torch
from torch import Tensor

from cmt_aqr.constants import CLASSES
from cmt_aqr.errors import UserError
from cmt_aqr.evaluation.metric import NuScenesMetric
from cmt_aqr.geometry import project_to_images
from cmt_aqr.lab import LabDataModule
from cmt_aqr.lab.scenes import GROUP_OF
from cmt_aqr.outputs import Detections
from cmt_aqr.runs.configuration import build, build_data
from cmt_aqr.structures import Batch
from tests.helpers.composed import composed

LAB = ("experiment=lab", *(f"data.{key}" for key in ("train_frames=12", "eval_frames=6", "batch_size=3")))
SILENT = tuple(f"model.network.{part}.{name}=0" for part in ("lidar", "image") for name in ("noise", "clutter"))


def data(*overrides: str, stage: str = "validate") -> LabDataModule:
    module = build_data(composed(*LAB, "data.eval_batch_size=3", *overrides))
    module.setup(stage)
    return module


@functools.cache
def batch(*overrides: str) -> Batch:
    module = data(*overrides)
    return module.finish(next(iter(module.val_dataloader())))


def maps(shown: Batch, *overrides: str) -> tuple[Tensor, Tensor]:
    """The simulated maps before the learned layers: (frame, channel, ...) and (frame, view, channel, ...)."""
    model = build(composed(*LAB, *overrides).model.network).eval()
    model.lidar.backbone, model.image.backbone = torch.nn.Identity(), torch.nn.Identity()
    return model.lidar_map(shown), model.image_maps(shown)


def test_an_object_is_in_its_cells_and_nowhere_else() -> None:
    shown = batch()
    bev, images = maps(shown, *SILENT)
    in_bev = torch.zeros(bev[:, 0].shape, dtype=torch.bool)
    in_images = torch.zeros(images[:, :, 0].shape, dtype=torch.bool)
    for frame, boxes in enumerate(shown.boxes_of_each()):
        column, row = ((boxes[:, :2] + 18) / 3).long().unbind(-1)
        in_bev[frame, row, column] = True
        pixels, _, seen = project_to_images(boxes[None, :, :3], shown.lidar2img[frame, None], (24, 96))
        cells = (pixels[0] / 8).long()
        for view, box in seen[0].nonzero().tolist():
            in_images[frame, view, cells[view, box, 1], cells[view, box, 0]] = True
    assert torch.equal(bev.abs().sum(dim=1) > 0, in_bev)
    assert torch.equal(images.abs().sum(dim=2) > 0, in_images) and in_images.sum() > 10


@pytest.mark.parametrize(
    ("fault", "sensor", "limit"),
    [
        ("mome/lidar_drop", "lidar", 0.05),
        ("mome/view_drop", "camera", 0.05),
        ("mome/fov60", "lidar", 0.6),
        ("partial/two_views", "camera", 0.9),
    ],
)
def test_a_fault_takes_away_what_it_destroyed(fault: str, sensor: str, limit: float) -> None:
    intact, broken = maps(batch(), *SILENT), maps(batch(f"eval_fault={fault}"), *SILENT)
    left = [after.abs().sum() / before.abs().sum() for before, after in zip(intact, broken, strict=True)]
    kept, lost = left if sensor == "camera" else left[::-1]
    assert kept == 1 and lost < limit


def test_a_broken_sensor_is_noisy_and_the_noise_depends_on_the_frame() -> None:
    shown = batch()
    bev = maps(shown)[0]
    assert torch.equal(maps(shown)[0], bev)
    assert maps(batch("eval_fault=mome/lidar_drop"))[0].std() > 1.5 * bev.std()
    other = shown.replace(tokens=tuple(f"{token}x" for token in shown.tokens))
    assert not torch.equal(maps(other)[0], bev)


def test_a_near_object_hides_a_far_one() -> None:
    shown = batch()
    boxes = shown.boxes[:2].clone()
    boxes[:, :3] = torch.tensor(((0.0, 10.0, 0.0), (0.0, 30.0, 0.0)))
    two = functools.partial(shown.replace, boxes=boxes, labels=shown.labels[:2])
    apart, together = (maps(two(box_counts=counts), *SILENT)[1] for counts in ((1, 1, 0), (2, 0, 0)))
    near, far = (one.abs().sum() for one in apart[:2])
    hidden = (together[0] - apart[0]).abs().sum()
    assert hidden < 0.5 * far < far < near


def test_the_lidar_shows_the_group_and_the_camera_the_class() -> None:
    shown = batch()
    labels = shown.labels.clone()
    labels[0] = next(n for n in range(len(CLASSES)) if n != labels[0] and GROUP_OF[n] == GROUP_OF[labels[0]])
    (bev, images), (other_bev, other_images) = (
        maps(one, *SILENT) for one in (shown, shown.replace(labels=labels))
    )
    assert torch.equal(bev, other_bev) and not torch.equal(images, other_images)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *((f"data.objects={objects}", r"^data\.objects=") for objects in ("5", "[9,5]", "[1.5,3]")),
        *((override, "laboratory has") for override in ("data.val_split=mini_val", "data.resampling=cbgs")),
    ],
)
def test_invalid_settings_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data(override)


def test_scenes_depend_on_seed_split_and_number_alone() -> None:
    module = data(stage="fit")
    first, second = module.dataset("train"), data(stage="fit").dataset("train")
    assert torch.equal(first[5].boxes, second[5].boxes)
    assert not torch.equal(first[5].boxes[:1], first[4].boxes[:1])
    assert not torch.equal(first[0].boxes[:1], module.dataset("val")[0].boxes[:1])
    loaders = [data(f"data.num_workers={workers}", stage="fit").train_dataloader() for workers in (0, 1)]
    left, right = (next(iter(loader)) for loader in loaders)
    assert left.tokens == right.tokens and torch.equal(left.boxes, right.boxes)


def test_perfect_detections_score_one() -> None:
    module = data()
    metric = NuScenesMetric(module.ground_truth())
    for shown in module.val_dataloader():
        pairs = zip(shown.boxes_of_each(), shown.labels_of_each(), strict=True)
        detections = [Detections(boxes, torch.ones(len(boxes)), labels) for boxes, labels in pairs]
        metric.update(detections, list(shown.tokens), shown.lidar2global)
    metrics = metric.compute()
    classes = len(set(module.ground_truth().rows[:, 12].astype(int).tolist()))
    assert metrics["mAP"] == pytest.approx(classes / len(CLASSES), abs=0.01) and metrics["frames"] == 6


@pytest.mark.parametrize(("branch", "head"), [("lidar", "bev_channels=null"), ("image", "cameras=false")])
def test_one_sensor_alone(branch: str, head: str) -> None:
    settings = (f"model.network.{branch}=null", f"model.network.head.{head}")
    model = build(composed(*LAB, *settings).model.network)
    assert model(batch(*settings)).matching.logits.isfinite().all()
