"""Values out of range and pairs that contradict each other: one sentence with key, value and what is allowed."""

import pytest

from cmt_aqr.errors import UserError
from cmt_aqr.runs.configuration import check_config
from tests.helpers.commands import PAIR
from tests.helpers.composed import composed

FOLDERS = ("callbacks.checkpoint.folder=.", "callbacks.aqr_monitor.folder=.")
LOGGERS = ("logger.csv.save_dir=.", "logger.tensorboard.save_dir=.")
NOWHERE = ("data=nuscenes", "data.root=/nowhere")
"""There are no data, so that a check that came as far as reading would complain of those instead."""

STOP = "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping"
NDS = "+callbacks.stop.monitor=val/NDS"

MISTAKES = [
    # parts that a run needs
    *(([f"{part}=null"], [f"{part}=null: "]) for part in ("model.network", "model.grid", "training.denoising")),
    # settings that a class hands on to its base
    (["data.cache_frames=maybe"], ["data.cache_frames=maybe: must be"]),
    (["data.version=1.0"], ["data.version=1.0: must be"]),
    (["renderer.render_method=bilinear", "renderer.gaussian_sigma=3"], ["renderer.gaussian_sigma=3", "bilinear"]),
    (["modulator.residual_connection=false", "modulator.residual_weight=0.5"], ["modulator.residual_weight=0.5"]),
    (
        ["renderer.normalize_weights=false", "renderer.max_weight_clamp=2"],
        ["max_weight_clamp=2", "normalize_weights"],
    ),
    (["optimizer=constant", "optimizer.peak=3"], ["optimizer.peak=3", "optimizer.schedule=constant"]),
    (["clamp_schedule.mode=linear"], ["clamp_schedule.mode=linear", "clamp_schedule.milestones"]),
    (["aqr=attention_bias", "renderer.max_weight_clamp=2.0"], ["renderer.max_weight_clamp", "aqr=attention_bias"]),
    (["aqr=attention_bias", "modulator=aggressive"], ["modulator", "aqr=attention_bias"]),
    (["aqr=attention_bias", "clamp_schedule=progressive"], ["clamp_schedule", "aqr=attention_bias"]),
    (["aqr=attention_bias", "aqr.beta=oracle", "aqr.strength=3"], ["aqr.strength=3", "with aqr.beta=oracle"]),
    (["aqr=attention_bias", "aqr.beta=best"], ["aqr.beta=best", "oracle"]),
    (["aqr=attention_bias", "aqr.limit=0"], ["aqr.limit=0", "above 0"]),
    (["aqr=attention_bias", "model=tiny_lidar"], ["aqr=none"]),
    (["aqr=attention_bias", "model=tiny_camera"], ["aqr=none"]),
    (["aqr=attention_bias", "aqr.beta=oracle", "data.damage=false"], ["data.damage=false", "aqr.beta=oracle"]),
    (["aqr=attention_bias", "training.criterion.signal_weight=1", "data.damage=false"], ["data.damage=false"]),
    (["aqr=attention_bias", "aqr.beta=zero", "training.criterion.signal_weight=1"], ["aqr.beta=zero"]),
    (["aqr=none", "training.criterion.signal_weight=1"], ["aqr=none", "signal_weight=1"]),
    (["training.criterion.signal_weight=1"], ["aqr.stop_gradient=true"]),
    (["training.criterion.signal_weight=-1"], ["training.criterion.signal_weight=-1"]),
    (["+lr_mult.encoder=0.1"], ["lr_mult.encoder=0.1", "img_backbone"]),
    (["lr_mult.transformer=-1"], ["lr_mult.transformer=-1", "0 (frozen) or more"]),
    (["renderer.render_method=gauss"], ["renderer.render_method=gauss", "gaussian, bilinear"]),
    (
        ["clamp_schedule=progressive", "renderer.max_weight_clamp=2.0"],
        ["renderer.max_weight_clamp=2.0", "contradicts the clamp schedule", "clamp_schedule=constant"],
    ),
    (["clamp_schedule.milestones={0:2.0,3:-1.0}"], ["clamp_schedule.milestones[3]=-1.0", "above 0"]),
    (["aqr=none", "renderer.max_weight_clamp=2"], ["renderer.max_weight_clamp has no effect with aqr=none"]),
    (["aqr=none", "clamp_schedule=progressive"], ["clamp_schedule", "aqr=none has nothing to clamp"]),
    (["ckpt_path=a.ckpt", "weights=b.pth"], ["ckpt_path=a.ckpt and weights=b.pth", "not both"]),
    (["ckpt_path=a.ckpt"], ["ckpt_path=a.ckpt", "there is no such file"]),
    (["weights=b.pth"], ["weights=b.pth", "there is no such file"]),
    (["data.batch_size=two"], ["data.batch_size=two", "whole number"]),
    (["data.lidar=false"], ["data.lidar=false", "model=tiny_camera"]),
    (["data.cameras=false"], ["data.cameras=false", "model=tiny_lidar"]),
    (["data.cameras=false", "data.lidar=false"], ["data.cameras=false and lidar=false", "at least one"]),
    (["optimizer.lr=-1"], ["optimizer.lr=-1", "above 0"]),
    (["optimizer.lr=abc"], ["optimizer.lr=abc", "a number"]),
    (["optimizer.lr_for_batch=many"], ["optimizer.lr_for_batch=many", "whole number"]),
    (["+optimizer.betas=[0.9,0.99]"], ["optimizer.betas", "no such setting"]),
    (["lr_mult.transformer=fast"], ["lr_mult.transformer=fast", "number"]),
    (["model.image_size=[64]"], ["model.image_size=[64]", "height and width"]),
    (["+trainer.overfit_batches=1"], ["trainer.overfit_batches=1", "experiment=overfit"]),
    (["+trainer.fast_dev_run=true"], ["trainer.fast_dev_run=True", "trainer.max_steps=2"]),
    (["+trainer.limit_val_batches=0"], ["trainer.limit_val_batches=0", "data.limit_eval_frames"]),
    (["+trainer.limit_train_batches=0"], ["trainer.limit_train_batches=0", "evaluate.py"]),
    (["trainer.num_sanity_val_steps=two"], ["trainer.num_sanity_val_steps=two", "whole number"]),
    (["trainer.gradient_clip_val=abc"], ["trainer.gradient_clip_val=abc", "a number"]),
    (["trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val=-1", "0 or more"]),
    (["+trainer.min_epochs=abc"], ["trainer.min_epochs=abc", "whole number"]),
    (["+trainer.min_epochs=9"], ["trainer.min_epochs=9", "trainer.max_epochs=5"]),
    (["+trainer.detect_anomaly=maybe"], ["trainer.detect_anomaly=maybe", "true or false"]),
    (["trainer.accelerator=tpu"], ["trainer.accelerator=tpu", "auto, cpu, gpu"]),
    (["trainer.use_distributed_sampler=true"], ["trainer.use_distributed_sampler=true", "drop it"]),
    (["+trainer.barebones=true"], ["trainer.barebones=True", "not offered"]),
    (["+trainer.logger=false"], ["trainer.logger=False", "logger=<option>"]),
    (["trainer.precision=64-true", *PAIR], ["trainer.precision=64-true", "bf16-mixed"]),
    (["+callbacks.mine._target_=nowhere.Nothing"], ["nowhere.Nothing", "no such class"]),
    (["optimizer.schedule=cosine"], ["optimizer.schedule=cosine", "one_cycle, constant"]),
    (["fault=fog", "fault.fog.visibility=-5"], ["fog.visibility=-5", "above 0"]),
    (["fault.share=0.5"], ["fault.share=0.5", "fault=fog"]),
    (["evaluation.score_threshold=1.5"], ["evaluation.score_threshold=1.5", "0 or more and below 1"]),
    (["trainer.max_epochs=-1"], ["trainer.max_epochs=-1", "must set an end"]),
    (["+trainer.strategy=fsdp"], ["trainer.strategy=fsdp", "choose trainer=ddp"]),
    (["+trainer.sync_batchnorm=true"], ["trainer.sync_batchnorm=true", "not built"]),
    (["trainer.max_steps=few"], ["trainer.max_steps=few", "whole number"]),
    (["data.resampling=class"], ["data.resampling=class", "none, cbgs"]),
    (["data/sampling=cmt", "model=tiny_camera"], ["data.sampling", "data/sampling=none"]),
    (["experiment=aqr_from_cmt"], ["weights=null", "add weights=FILE"]),
    (["callbacks.checkpoint.folder=null"], ["callbacks.checkpoint.folder=null", "path of a folder"]),
    (["+training.criterion.classes=5"], ["training.criterion.classes=5", "nuScenes' ten"]),
    (["model.network.head.classes=5"], ["model.network.head.classes=5", "nuScenes' ten"]),
    (["+training.denoising.noise=1"], ["training.denoising.noise", "no such setting"]),
    (["+renderer.speed=1"], ["renderer.speed", "no such setting"]),
    ([STOP], ["callbacks.stop", "EarlyStopping needs monitor", "callbacks.stop.monitor="]),
    ([STOP, NDS, "+callbacks.stop.mode=up"], ["callbacks.stop", "EarlyStopping", "up"]),
    ([STOP, NDS, "+callbacks.stop.wait=3"], ["callbacks.stop.wait", "no such setting"]),
    (["callbacks.checkpoint.every_n_epochs=abc"], ["callbacks.checkpoint.every_n_epochs=abc", "whole number"]),
    (["callbacks.checkpoint.every_n_steps=1.5"], ["callbacks.checkpoint.every_n_steps=1.5", "whole number"]),
    (["callbacks.checkpoint.every_n_minutes=abc"], ["callbacks.checkpoint.every_n_minutes=abc", "number above 0"]),
    (["callbacks.learning_rate.logging_interval=never"], ["callbacks.learning_rate", "logging_interval"]),
    (["clamp_schedule.milestones=abc"], ["clamp_schedule.milestones=abc", "by epoch"]),
    (["+callbacks.norm._target_=torch.nn.Identity"], ["callbacks.norm", "no callback"]),
]
"""Overrides, and parts of the sentence."""


@pytest.mark.parametrize(("overrides", "parts"), MISTAKES, ids=[" ".join(case[0]) for case in MISTAKES])
def test_a_mistake_is_explained_in_one_sentence(overrides: list[str], parts: list[str]) -> None:
    nowhere = NOWHERE[1:] if overrides[0].startswith("experiment=") else NOWHERE  # which chooses the data
    with pytest.raises(UserError) as refused:
        check_config(composed(*FOLDERS, *LOGGERS, *nowhere, *overrides), overrides)
    said = str(refused.value)
    assert "\n" not in said and all(part in said for part in parts), said
