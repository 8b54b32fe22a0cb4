"""A key that an override adds and nothing reads is refused; one that something reads is not."""

import pytest

from cmt_aqr.errors import UserError
from cmt_aqr.runs.command import check_overrides
from tests.helpers.composed import CONF

EARLY = "pytorch_lightning.callbacks.EarlyStopping"

UNREAD = [
    ("train", "+model.num_classes=5", "nuScenes' ten"),
    ("train", "+num_classes=5", "nuScenes' ten"),
    ("train", "+model.num_classes=5,6", "nuScenes' ten"),
    ("train", "+evaluation.score_treshold=0.1", "did you mean evaluation.score_threshold"),
    ("train", "++evaluation.nms=true", "evaluation.nms"),
    ("train", "+recipe.mixup=true", "recipe.mixup"),
    ("train", "+training.ema=0.999", "training.ema"),
    ("train", "+max_epochs=3", "max_epochs"),
    ("train", "+model.extra={a: 1}", "model.extra"),
    ("train", f"+model.mine._target_={EARLY}", "model.mine"),
    ("train", "+data.train_transforms.lost.cameras=1", "+data.train_transforms.lost._target_"),
    ("train", "+data.sampling.until_epoch=3", "data.sampling is null"),
    ("train", "+data.image_augmentation.grid_mask.per_frame=true", "data.image_augmentation is null"),
    ("evaluate", "+evaluation.nms=true", "evaluation.nms"),
    ("report", "+colour=red", "colour"),
    ("make_dataset", "+scene=3", "did you mean scenes"),
]


@pytest.mark.parametrize(("script", "override", "named"), UNREAD, ids=[case[1] for case in UNREAD])
def test_a_key_that_nothing_reads_is_refused(script: str, override: str, named: str) -> None:
    with pytest.raises(UserError) as refused:
        check_overrides(CONF, script, ["seed=1", override] if script == "train" else [override])
    said = str(refused.value)
    assert said.startswith(override.split("=")[0]) and named in said and "\n" not in said


READ = [
    ("train", ["+trainer.num_nodes=2"]),
    ("train", ["++evaluation.max_detections=100", "++seed=3", "++recipe.needs_weights=false"]),
    ("train", [f"+callbacks.stop._target_={EARLY}", "+callbacks.stop.monitor=val/NDS"]),
    ("train", ["+data.train_transforms.lost._target_=cmt_aqr.data.augmentation.MaskModality"]),
    ("train", ["fault=fog_or_night", "+fault.dead_camera._target_=cmt_aqr.data.faults.DeadCamera"]),
    ("train", ["clamp_schedule=progressive", "+clamp_schedule.milestones.20=1.0"]),
    ("train", ["+mine=0.1", "optimizer.lr=${mine}"]),
    ("train", ["+mine={rate: 0.1}", "optimizer.lr=${mine.rate}"]),
    ("train", ["+mine.rate=0.1", "optimizer.lr=${mine.rate}"]),
    (
        "train",
        ["+optimizer.betas=[0.9,0.99]", "+lr_mult.encoder=1", "+training.denoising.noise=1"],
    ),  # refused later
    ("train", ["experiment=overfit", "+data.make.samples_per_scene=3", "-m", "seed=1,2"]),
    ("fault_study", ["folder=x", "+override.data.num_workers=4", "+eval_fault@conditions.either=fog_or_night"]),
    ("fault_study", ["folder=x", "~eval_fault@conditions.fog", "+eval_fault@conditions.blind=mome/view_drop"]),
]


@pytest.mark.parametrize(("script", "overrides"), READ, ids=[" ".join(case[1]) for case in READ])
def test_a_key_that_something_reads_is_taken(script: str, overrides: list[str]) -> None:
    check_overrides(CONF, script, overrides)


@pytest.mark.parametrize(
    ("chosen", "override", "part"),
    [
        ("aqr=none", "+aqr.beta=oracle", "aqr"),
        ("aqr=none", "+aqr.generator.depth=2", "aqr"),
        ("model=tiny_camera", "+model.network.lidar.norm_momentum=0.1", "model.network.lidar"),
        ("model=tiny_lidar", "+model.network.image.backbone=resnet10t", "model.network.image"),
    ],
)
def test_a_part_that_is_off_takes_no_settings(chosen: str, override: str, part: str) -> None:
    with pytest.raises(UserError, match=rf"^\{override.split('=')[0]}.*: {part} is null here"):
        check_overrides(CONF, "train", [chosen, override])
