"""All experiments compose, and the published ones have the settings of CMT's release."""

import pytest
from omegaconf import OmegaConf

from cmt_aqr.data.sampling import GOALS
from cmt_aqr.runs.configuration import build
from tests.helpers.composed import CONF, composed

FOLDER = CONF / "experiment"
EXPERIMENTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
# Learning rate and its frames per step, peak, factor of the image backbone, masked-modal, pasting, rotation.
PUBLISHED = {
    "cmt_voxel0100_r50_800x320_cbgs": (1.4e-4, 32, 6, 0.01, True, True, 0.785),
    "cmt_aqr_voxel0100_r50_800x320_cbgs": (1.4e-4, 32, 6, 0.01, True, True, 0.785),
    "cmt_voxel0075_vov_1600x640_cbgs": (1e-4, 16, 8, 0.01, True, True, 0.785),
    "cmt_lidar_voxel0075_cbgs": (1e-4, 16, 6, 1.0, False, True, 0.785),
    "cmt_camera_vov_1600x640_cbgs": (1e-4, 16, 8, 0.01, False, False, 0.3925),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    config = composed(f"experiment={name}", "data.root=/data/nuscenes")
    # Callbacks and loggers refer to the run's folder, which exists only in a run.
    config = OmegaConf.masked_copy(config, [key for key in config if key not in ("callbacks", "logger")])
    OmegaConf.resolve(config)
    assert not OmegaConf.missing_keys(config)
    assert build(config.optimizer).lr > 0
    assert build(config.lr_mult).lr


@pytest.mark.parametrize(("name", "values"), PUBLISHED.items())
def test_published_recipes(name: str, values: tuple) -> None:
    lr, frames, peak, backbone, masked, pasted, rotation = values
    config = composed(f"experiment={name}", "data.root=/data/nuscenes")
    settings, factors = build(config.optimizer), build(config.lr_mult)
    assert (settings.scaled_lr(frames), settings.peak, settings.final) == (lr, peak, 1e-4)
    assert settings.scaled_lr(frames // 4) == pytest.approx(lr / 4)
    assert 8 * config.data.batch_size == frames
    assert (settings.warmup, settings.lowest_beta, settings.weight_decay) == (0.4, 0.8052632, 0.01)
    assert factors.lr["img_backbone"] == backbone
    assert factors.lr["img_neck"] == (0.1 if backbone < 1 else 1.0)
    assert factors.weight_decay["img_backbone"] == (5.0 if backbone < 1 else 1.0)
    assert factors.lr["transformer"] == factors.lr["pts_backbone"] == 1.0
    assert config.trainer.max_epochs == 20
    assert config.trainer.gradient_clip_val == 35
    assert (config.data.train_transforms.mask_modality is not None) == masked
    assert config.data.scene_augmentation.rotation == [-rotation, rotation]
    assert config.data.resampling == "cbgs"
    assert (config.data.sampling is not None) == pasted
    if pasted:
        assert dict(config.data.sampling.goals) == GOALS
        assert config.data.sampling.until_epoch == 15
        assert (config.data.sampling.patch_camera, config.data.sampling.patch_behind) == ("last", "third_corner")
        assert config.data.sampling.images == config.data.cameras
    assert config.data.min_points == 1
    assert config.data.replace_empty_frames and config.data.half_points and not config.data.exact_lidar2img
    assert not (
        config.data.image_augmentation and (config.data.image_augmentation.grid_mask or {}).get("per_frame")
    )
    assert (config.aqr is not None) == ("aqr" in name)
    assert config.model.network.decoder.feedforward_dropout == 0
    assert config.model.network.decoder.attention_dropout == 0.1


@pytest.mark.parametrize("preset", ["conservative", "recommended", "aggressive"])
def test_aqr_presets(preset: str) -> None:
    experiment = composed(f"experiment=aqr_{preset}")
    groups = composed(f"renderer={preset}", f"modulator={preset}", f"lr_mult={preset}")
    for group in ("renderer", "modulator", "lr_mult"):
        assert experiment[group] == groups[group]


def test_the_command_line_wins_over_an_experiment() -> None:
    config = composed("experiment=aqr_from_cmt", "model=tiny", "data=synthetic", "weights=some.ckpt")
    assert config.model.network.image.backbone == composed().model.network.image.backbone
    assert config.data.root == "data/synthetic"
    assert config.recipe.needs_weights
