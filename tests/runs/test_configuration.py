"""Invalid values and contradictions: one sentence with key, value and what is allowed."""

import pytest
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.configuration import build, check_config
from tests.helpers.commands import PAIR
from tests.helpers.composed import composed

FOLDERS = ("callbacks.checkpoint.folder=.", "callbacks.aqr_monitor.folder=.")
LOGGERS = ("logger.csv.save_dir=.", "logger.tensorboard.save_dir=.")
NOWHERE = ("data=nuscenes", "data.root=/nowhere")
"""Data that do not exist: a check that reads them would fail with another message."""

STOP = "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping"
NDS = "+callbacks.stop.monitor=val/NDS"
BIAS = "aqr=attention_bias"
SIGNAL = "training.criterion.signal_weight=1"

MISTAKES = [
    (["model.network=null"], ["model.network=null: "]),
    (["training.denoising=null"], ["training.denoising=null: ", "groups=0"]),
    # settings without effect
    (["renderer.render_method=bilinear", "renderer.gaussian_sigma=3"], ["renderer.gaussian_sigma=3", "bilinear"]),
    (["modulator.residual_connection=false", "modulator.residual_weight=0.5"], ["modulator.residual_weight=0.5"]),
    (["renderer.normalize_weights=false", "renderer.max_weight_clamp=2"], ["clamp=2", "normalize_weights"]),
    (["optimizer=constant", "optimizer.peak=3"], ["optimizer.peak=3", "optimizer.schedule=constant"]),
    (["clamp_schedule.mode=linear"], ["clamp_schedule.mode=linear", "clamp_schedule.milestones"]),
    ([BIAS, "aqr.beta=oracle", "aqr.strength=3"], ["aqr.strength=3", "with aqr.beta=oracle"]),
    ([BIAS, "renderer.max_weight_clamp=2.0"], ["renderer.max_weight_clamp", BIAS]),
    ([BIAS, "modulator=aggressive"], ["modulator", BIAS]),
    (["aqr=none", "renderer.max_weight_clamp=2"], ["renderer.max_weight_clamp has no effect with aqr=none"]),
    ([BIAS, "aqr.beta=zero", SIGNAL], ["aqr.beta=zero"]),
    (["aqr=none", SIGNAL], ["aqr=none", "signal_weight=1"]),
    # contradictions
    (["aqr=none", "clamp_schedule=progressive"], ["clamp_schedule", "aqr=none has nothing to clamp"]),
    ([BIAS, "model=tiny_lidar"], ["aqr=none"]),
    ([BIAS, "model=tiny_camera"], ["aqr=none"]),
    ([BIAS, "aqr.beta=oracle", "data.damage=false"], ["data.damage=false", "aqr.beta=oracle"]),
    ([BIAS, SIGNAL, "data.damage=false"], ["data.damage=false"]),
    ([SIGNAL], ["aqr.stop_gradient=true"]),
    (
        ["clamp_schedule=progressive", "renderer.max_weight_clamp=2.0"],
        ["renderer.max_weight_clamp=2.0", "contradicts the clamp schedule", "clamp_schedule=constant"],
    ),
    (["ckpt_path=a.ckpt", "weights=b.pth"], ["ckpt_path=a.ckpt and weights=b.pth", "not both"]),
    (["ckpt_path=a.ckpt"], ["ckpt_path=a.ckpt", "there is no such file"]),
    (["weights=b.pth"], ["weights=b.pth", "there is no such file"]),
    (["experiment=aqr_from_cmt"], ["weights=null", "add weights=FILE"]),
    (["data.lidar=false"], ["data.lidar=false", "model=tiny_camera"]),
    (["data.cameras=false"], ["data.cameras=false", "model=tiny_lidar"]),
    (["fault.share=0.5"], ["fault.share=0.5", "fault=fog"]),
    # values
    (["data.cache_frames=maybe"], ["data.cache_frames=maybe: must be"]),
    (["model.image_size=[64]"], ["model.image_size=[64]", "height and width"]),
    (["model.network.head.classes=5"], ["model.network.head.classes=5", "nuScenes' ten"]),
    (["+training.criterion.classes=5"], ["training.criterion.classes=5", "nuScenes' ten"]),
    (["evaluation.score_threshold=1.5"], ["evaluation.score_threshold=1.5", "0 or more and below 1"]),
    (["optimizer.lr=-1"], ["optimizer.lr=-1", "above 0"]),
    (["optimizer.schedule=cosine"], ["optimizer.schedule=cosine", "one_cycle, constant"]),
    (["+lr_mult.encoder=0.1"], ["lr_mult.encoder=0.1", "img_backbone"]),
    (["lr_mult.transformer=-1"], ["lr_mult.transformer=-1", "0 (frozen) or more"]),
    (["lr_mult.transformer=fast"], ["lr_mult.transformer=fast", "number"]),
    (["clamp_schedule.milestones=abc"], ["clamp_schedule.milestones=abc", "by epoch"]),
    (["callbacks.checkpoint.folder=null"], ["callbacks.checkpoint.folder=null", "path of a folder"]),
    (["callbacks.checkpoint.every_n_steps=1.5"], ["callbacks.checkpoint.every_n_steps=1.5", "whole number"]),
    (["callbacks.checkpoint.every_n_minutes=abc"], ["callbacks.checkpoint.every_n_minutes=abc", "above 0"]),
    # unknown settings and classes
    (["+optimizer.betas=[0.9,0.99]"], ["optimizer.betas", "no such setting"]),
    (["+callbacks.mine._target_=nowhere.Nothing"], ["nowhere.Nothing", "no such class"]),
    (["+callbacks.norm._target_=torch.nn.Identity"], ["callbacks.norm", "no callback"]),
    ([STOP], ["callbacks.stop", "EarlyStopping needs monitor", "callbacks.stop.monitor="]),
    ([STOP, NDS, "+callbacks.stop.mode=up"], ["callbacks.stop", "EarlyStopping", "up"]),
    ([STOP, NDS, "+callbacks.stop.wait=3"], ["callbacks.stop.wait", "no such setting"]),
    (["callbacks.learning_rate.logging_interval=never"], ["callbacks.learning_rate", "logging_interval"]),
    # the Trainer
    (["+trainer.overfit_batches=1"], ["trainer.overfit_batches=1", "experiment=overfit"]),
    (["+trainer.logger=false"], ["trainer.logger=False", "logger=<option>"]),
    (["+trainer.fast_dev_run=true"], ["trainer.fast_dev_run=True", "trainer.max_steps=2"]),
    (["+trainer.barebones=true"], ["trainer.barebones=True", "drop it"]),
    (["+trainer.limit_val_batches=0"], ["trainer.limit_val_batches=0", "data.limit_eval_frames"]),
    (["+trainer.limit_train_batches=0"], ["trainer.limit_train_batches=0", "evaluate.py"]),
    (["trainer.max_steps=few"], ["trainer.max_steps=few", "whole number"]),
    (["trainer.max_epochs=-1"], ["trainer.max_epochs=-1", "must set an end"]),
    (["+trainer.min_epochs=9"], ["trainer.min_epochs=9", "trainer.max_epochs=5"]),
    (["trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val=-1", "0 or more"]),
    (["+trainer.detect_anomaly=maybe"], ["trainer.detect_anomaly=maybe", "true or false"]),
    (["trainer.accelerator=tpu"], ["trainer.accelerator=tpu", "auto, cpu, gpu"]),
    (["trainer.use_distributed_sampler=true"], ["trainer.use_distributed_sampler=true", "drop it"]),
    (["trainer.precision=64-true", *PAIR], ["trainer.precision=64-true", "bf16-mixed"]),
    (["+trainer.strategy=fsdp"], ["trainer.strategy=fsdp", "choose trainer=ddp"]),
    (["+trainer.sync_batchnorm=true"], ["trainer.sync_batchnorm=true", "drop it"]),
]
"""Overrides, and parts of the sentence."""


@pytest.mark.parametrize(("overrides", "parts"), MISTAKES, ids=[" ".join(case[0]) for case in MISTAKES])
def test_a_mistake_is_explained_in_one_sentence(overrides: list[str], parts: list[str]) -> None:
    nowhere = NOWHERE[1:] if overrides[0].startswith("experiment=") else NOWHERE  # which chooses the data
    with pytest.raises(UserError) as refused:
        check_config(composed(*FOLDERS, *LOGGERS, *nowhere, *overrides), overrides)
    message = str(refused.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_build_turns_refusals_into_sentences_and_nothing_else() -> None:
    def target(name: str, **values: object) -> DictConfig:
        return OmegaConf.create({"_target_": name, **values})

    with pytest.raises(UserError, match=r"^residual_weight=3: must be a number from 0 to 1"):
        build(target("cmt_aqr.aqr.Modulator", residual_weight=3))
    with pytest.raises(UserError, match="No supported gpu backend found"):
        build(target("pytorch_lightning.Trainer", accelerator="gpu", logger=False, barebones=True))
    with pytest.raises(Exception, match="ZeroDivisionError") as kept:
        build(target("operator.truediv", _args_=[1, 0]))
    assert not isinstance(kept.value, UserError)


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["model.network.head.task_kernel=2"], "model.network.head.task_kernel=2"),
        (["model.heads=3"], "model.heads=3"),  # model.network.decoder.heads is ${model.heads}
        (["aqr.generator.num_heads=3"], "aqr.generator.num_heads=3"),  # model.network.aqr is ${aqr}
        (["modulator.activation=gelu"], "modulator.activation=gelu"),  # and aqr.modulator ${modulator}
        (["model.network.lidar=null", "model.network.image=null"], "model.network.lidar=null"),
        (["model.grid.sparse_shape=[11,2,2]"], "model.grid.sparse_shape="),
        # of no single parameter
        (["model.network.lidar.encoder_paddings=[[0,1,1],[0,1,1]]"], "model.network.lidar: a sparse grid of"),
    ],
)
def test_a_refusal_names_the_key_that_holds_the_value(overrides: list[str], start: str) -> None:
    with pytest.raises(UserError) as refused:
        build(composed(*overrides).model.network)
    assert str(refused.value).startswith(start)
