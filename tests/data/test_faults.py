"""Faults follow their formulas, touch one sensor, and depend on the frame's generator alone."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from cmt_aqr.data.augmentation import (
    ImageAugmentation,
    ImageProcessing,
    SceneAugmentation,
    TrainingFilter,
    Transform,
)
from cmt_aqr.data.dataset import SampleKey
from cmt_aqr.data.faults import NEAREST_ECHO, Fog, Night, SomeFrames
from cmt_aqr.data.masking import GridMask, MaskModality
from cmt_aqr.runs.configuration import build_data
from cmt_aqr.structures import Frame
from tests.helpers.composed import composed
from tests.helpers.small_data import RANGE, ready

COUNT = 20_000


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ring(distance: float) -> torch.Tensor:
    """Points (COUNT, 5) around the sensor at one distance, of two sweeps."""
    angle = torch.linspace(0, 2 * math.pi, COUNT)
    flat, height = distance * math.cos(0.1), torch.full((COUNT,), distance * math.sin(0.1))
    lag = torch.where(torch.arange(COUNT) % 2 == 0, 0.0, 0.25)
    return torch.stack((flat * angle.cos(), flat * angle.sin(), height, torch.full((COUNT,), 200.0), lag), dim=1)


def frame_of(points: torch.Tensor | None = None, images: torch.Tensor | None = None) -> Frame:
    return Frame(
        token="token",
        points=ring(20.0) if points is None else points,
        images=images,
        lidar2img=torch.eye(4).repeat(6, 1, 1),
        boxes=torch.ones(3, 9),
        labels=torch.arange(3),
        box_points=torch.full((3,), 9),
        lidar2global=torch.eye(4, dtype=torch.float64),
    )


def grey(value: int, size: int = 60) -> torch.Tensor:
    """Six images of one value, stored with the channel last, as they are read."""
    return torch.full((6, size, size, 3), value, dtype=torch.uint8).permute(0, 3, 1, 2)


@pytest.mark.parametrize("distance", [1.0, 5.0, 20.0, 40.0])
def test_returns_survive_and_dim_by_beer_and_lambert(distance: float) -> None:
    fog = Fog(visibility=50.0, clutter=0.0)
    assert fog.alpha == pytest.approx(0.0599, abs=1e-4)
    expected = math.exp(-2 * math.log(20) / 50.0 * distance)
    left = fog(frame_of(ring(distance)), generator()).points
    share = len(left) / COUNT
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / COUNT)
    torch.testing.assert_close(left[:, 3], torch.full((len(left),), 200 * expected))
    torch.testing.assert_close(left[:, :3].norm(dim=1), torch.full((len(left),), distance))
    # Sweeps before the keyframe's lose as many.
    assert abs((left[:, 4] == 0).float().mean().item() - 0.5) < 0.05


def test_echoes_lie_before_their_target_and_get_fewer_with_distance() -> None:
    fog = Fog(visibility=50.0, clutter=0.4)
    foggy = fog(frame_of(ring(20.0)), generator()).points
    distance = foggy[:, :3].norm(dim=1)
    echoes = distance < 19.99
    rate = 2 * fog.alpha
    lost_between = math.exp(-rate * NEAREST_ECHO) - math.exp(-rate * 20)
    assert echoes.sum().item() / COUNT == pytest.approx(0.4 * lost_between, abs=0.015)
    assert distance.min() >= NEAREST_ECHO
    assert (foggy[echoes, 3] == 0).all()
    torch.testing.assert_close(
        foggy[echoes, 2] / distance[echoes], torch.full((int(echoes.sum()),), math.sin(0.1))
    )
    # Depths follow the exponential distribution cut to [nearest echo, target].
    below = (math.exp(-rate * NEAREST_ECHO) - math.exp(-rate * 6)) / lost_between
    assert (distance[echoes] < 6).float().mean().item() == pytest.approx(below, abs=0.02)


def test_clear_air_changes_next_to_nothing_and_the_densest_fog_leaves_nothing() -> None:
    frame = frame_of(ring(30.0))
    clear = Fog(visibility=1e9)(frame, generator())
    torch.testing.assert_close(clear.points, frame.points, rtol=1e-5, atol=1e-5)
    assert Fog(visibility=0.01)(frame, generator()).points.shape == (0, 5)
    nothing = frame_of(torch.zeros(0, 5))
    assert Fog()(nothing, generator()).points.shape == (0, 5)
    # A lost LiDAR's points lie in the sensor itself.
    assert torch.isfinite(Fog(clutter=1.0)(frame_of(torch.zeros(7, 5)), generator()).points).all()


@pytest.mark.parametrize("value", [60, 128, 255])
def test_night_has_the_mean_and_the_variance_of_photons_and_read_noise(value: int) -> None:
    # A linear sensor with light enough that nothing is cut off: pixel = 255 * 2 * c / 1000, n = 250 * pixel / 255.
    night = Night(light=0.25, electrons=1000.0, read_noise=6.0, gain=2.0, gamma=1.0)
    dark = night(frame_of(images=grey(value)), generator()).images
    electrons = 0.25 * 1000 * value / 255
    per_electron = 255 * 2.0 / 1000
    pixels = dark.double()
    assert pixels.mean().item() == pytest.approx(electrons * per_electron, rel=0.01)
    variance = (electrons + 6.0**2) * per_electron**2 + 1 / 12  # rounding adds a twelfth
    assert pixels.var().item() == pytest.approx(variance, rel=0.04)


def test_night_is_dark_noisy_and_stays_in_range() -> None:
    images = (
        torch.arange(256, dtype=torch.uint8).repeat(6, 40, 1)[..., None].repeat(1, 1, 1, 3).permute(0, 3, 1, 2)
    )
    dark = Night()(frame_of(images=images), generator()).images
    assert dark.shape == images.shape
    assert dark.dtype == torch.uint8
    assert dark.is_contiguous(memory_format=torch.channels_last) == images.is_contiguous(
        memory_format=torch.channels_last
    )
    assert dark.float().mean() < 0.4 * images.float().mean()
    white, black = dark[..., 255].float(), dark[..., 0].float()
    assert white.mean() > black.mean() + 20
    assert white.std() > 5
    bright = Night(light=1.0, gain=1000.0)(frame_of(images=images), generator()).images
    assert bright[..., 255].min() == 255


CHANGES: list[Transform] = [
    Fog(),
    Night(),
    SomeFrames(1.0, fog=Fog(), night=Night()),
    SceneAugmentation((-0.785, 0.785), (0.9, 1.1), (0.5, 0.5, 0.5), 0.5, 0.5),
    TrainingFilter(RANGE),
    MaskModality(0.5, 0.5),
    ImageProcessing((50, 60), augmentation=ImageAugmentation((0.9, 1.3), 0.5, GridMask(1.0))),
]


def tensors_of(frame: Frame) -> dict[str, torch.Tensor]:
    held = {field.name: getattr(frame, field.name) for field in dataclasses.fields(frame)}
    return {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_the_generator_decides_nothing_changes_in_place_and_a_fault_has_one_sensor(change: Transform) -> None:
    frame = frame_of(images=grey(90))
    before = {name: value.clone() for name, value in tensors_of(frame).items()}
    for seed in range(6):
        changed, again = (tensors_of(change(frame, generator(seed))) for _ in range(2))
        assert all(torch.equal(again[name], value) for name, value in changed.items())
        different = {name for name, value in before.items() if not torch.equal(changed[name], value)}
        assert different in ({"points"}, {"images"}) or change not in CHANGES[:3]
    assert all(torch.equal(value, before[name]) for name, value in tensors_of(frame).items())


def test_share_of_frames_and_of_each_fault() -> None:
    some = SomeFrames(0.4, fog=Fog(), night=Night(), no=None)
    drawn = [some.draw(generator(seed)) for seed in range(3000)]
    assert drawn.count(None) / 3000 == pytest.approx(0.6, abs=0.03)
    assert drawn.count("fog") / 3000 == pytest.approx(0.2, abs=0.025)
    assert drawn.count("night") / 3000 == pytest.approx(0.2, abs=0.025)


def test_all_else_is_drawn_as_without_faults_and_severity_does_not_choose_frames() -> None:
    frame = frame_of(images=grey(90))
    mild, dense = (SomeFrames(0.5, fog=Fog(visibility), night=Night()) for visibility in (500.0, 5.0))
    for seed in range(8):
        randoms = [generator(seed) for _ in range(3)]
        results = [mild(frame, randoms[0]), dense(frame, randoms[1])]
        assert len({random.random() for random in randoms}) == 1
        foggy = [len(result.points) < COUNT for result in results]
        assert foggy[0] == foggy[1]


def test_evaluation_draws_the_same_every_time(small_root: Path, tmp_path: Path) -> None:
    fault = SomeFrames(1.0, fog=Fog(), night=Night())
    loader = ready("validate", small_root, tmp_path, eval_fault=fault).val_dataloader()
    first = list(loader)
    loader.frame_sampler.set_epoch(5)
    plain = ready("validate", small_root, tmp_path).val_dataloader()
    for left, right, clean in zip(first, loader, plain, strict=True):
        assert all(torch.equal(getattr(left, name), getattr(right, name)) for name in ("points", "images"))
        assert all(torch.equal(getattr(left, name), getattr(clean, name)) for name in ("boxes", "lidar2img"))
        assert left.tokens == clean.tokens
        assert not torch.equal(left.images, clean.images) or left.point_counts != clean.point_counts


@pytest.mark.parametrize("damage", [False, True])
def test_faults_know_which_rows_the_crop_drops(small_root: Path, tmp_path: Path, damage: bool) -> None:
    """Where damage is told, whole images are struck: it is told of whole images."""
    known = []

    def fault(frame: Frame, random: np.random.Generator) -> Frame:
        known.append(frame.unseen_rows)
        return frame

    cropped = {"image_size": (20, 160), "train_fault": fault, "eval_fault": fault, "damage": damage}
    data = ready("fit", small_root, tmp_path, **cropped)
    frames = [data.dataset(name)[0] for name in ("train", "val")]
    assert len(known) == 2 and all((rows > 0) != damage for rows in known)
    assert all(frame.unseen_rows == 0 for frame in frames)


@pytest.mark.parametrize("name", ["fog", "night", "fog_or_night"])
def test_the_groups_name_the_same_faults(name: str) -> None:
    training = OmegaConf.to_container(composed(f"fault={name}").fault)
    evaluation = OmegaConf.to_container(composed(f"eval_fault={name}").eval_fault)
    assert isinstance(training, dict) and isinstance(evaluation, dict)
    assert (training.pop("share"), evaluation.pop("share")) == (0.5, 1.0)
    assert training == evaluation
    assert set(training) - {"_target_"} == set(name.split("_or_"))


def test_a_configuration_s_faults_reach_their_frames(small_root: Path, tmp_path: Path) -> None:
    where = (f"data.root={small_root}", f"data.cache_dir={tmp_path}", "data.num_workers=0")
    config = composed("fault=fog", "fault.share=1", "eval_fault=night", "eval_fault.night.light=0.02", *where)
    plain = build_data(composed(*where))
    data = build_data(config)
    for module in (data, plain):
        module.prepare_data()
        module.setup("fit")
    key = SampleKey(0, 1)
    foggy, clear = data.dataset("train")[key], plain.dataset("train")[key]
    assert len(foggy.points) < len(clear.points)
    assert torch.equal(foggy.images, clear.images)
    assert torch.equal(foggy.boxes, clear.boxes)
    dark, light = data.dataset("val")[key], plain.dataset("val")[key]
    assert torch.equal(dark.points, light.points)
    assert dark.images.float().mean() < light.images.float().mean()
    # A checkpoint from before there were faults has no such groups.
    old = build_data(
        OmegaConf.masked_copy(config, [name for name in config if name not in ("fault", "eval_fault")])
    )
    old.setup("fit")
    assert torch.equal(old.dataset("train")[key].points, clear.points)
