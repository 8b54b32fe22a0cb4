"""A new key that nothing reads is refused."""

import pytest

from cmt_aqr.runs.composition import check_overrides
from tests.helpers.composed import CONF
from tests.runs.test_composition import refusal

EARLY = "pytorch_lightning.callbacks.EarlyStopping"

UNREAD = [
    ("train", ["+num_classes=5"], "nuScenes' ten"),
    ("train", ["+model.num_classes=5,6", "-m"], "nuScenes' ten"),
    ("train", ["+evaluation.score_treshold=0.1"], "did you mean evaluation.score_threshold"),
    ("train", ["++evaluation.nms=true"], "evaluation.nms"),
    ("train", ["+recipe.mixup=true"], "recipe.mixup"),
    ("train", ["+model.extra={a: 1}"], "model.extra"),
    ("train", [f"+model.mine._target_={EARLY}"], "model.mine"),
    # settings of parts that are off
    ("train", ["+data.train_transforms.lost.cameras=1"], "+data.train_transforms.lost._target_"),
    ("train", ["+data.sampling.until_epoch=3"], "data.sampling is null"),
    ("train", ["+data.image_augmentation.grid_mask.per_frame=true"], "data.image_augmentation is null"),
    ("train", ["+aqr.generator.depth=2", "aqr=none"], "aqr is null"),
    ("train", ["+model.network.lidar.norm_momentum=0.1", "model=tiny_camera"], "model.network.lidar is null"),
    # other commands
    ("evaluate", ["+evaluation.nms=true"], "evaluation.nms"),
    ("report", ["+colour=red"], "colour"),
    ("make_dataset", ["+scene=3"], "did you mean scenes"),
]


@pytest.mark.parametrize(("script", "overrides", "named"), UNREAD, ids=[case[1][0] for case in UNREAD])
def test_a_key_that_nothing_reads_is_refused(script: str, overrides: list[str], named: str) -> None:
    message = refusal(*overrides, script=script)
    assert message.startswith(overrides[0].split("=")[0]) and named in message


READ = [
    ("train", ["++evaluation.max_detections=100", "++seed=3", "++recipe.needs_weights=false"]),
    ("train", [f"+callbacks.stop._target_={EARLY}", "+callbacks.stop.monitor=val/NDS", "+trainer.num_nodes=2"]),
    ("train", ["+data.train_transforms.lost._target_=cmt_aqr.data.augmentation.MaskModality"]),
    ("train", ["fault=fog_or_night", "+fault.dead_camera._target_=cmt_aqr.data.faults.DeadCamera"]),
    ("train", ["clamp_schedule=progressive", "+clamp_schedule.milestones.20=1.0"]),
    ("train", ["+mine=0.1", "optimizer.lr=${mine}"]),
    ("train", ["+mine={rate: 0.1}", "optimizer.lr=${mine.rate}"]),
    # refused later, by the classes
    ("train", ["+optimizer.betas=[0.9,0.99]", "+lr_mult.encoder=1", "+training.denoising.noise=1"]),
    ("train", ["experiment=overfit", "+data.make.samples_per_scene=3", "-m", "seed=1,2"]),
    ("fault_study", ["folder=x", "+override.data.num_workers=4", "+eval_fault@conditions.either=fog_or_night"]),
]


@pytest.mark.parametrize(("script", "overrides"), READ, ids=[" ".join(case[1]) for case in READ])
def test_a_key_that_something_reads_is_accepted(script: str, overrides: list[str]) -> None:
    check_overrides(CONF, script, overrides)
