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
from tests.helpers.struck import driving

COUNT = 20_000
generator = np.random.default_rng


def ring(distance: float) -> Frame:
    """A frame of COUNT points at one distance, of two sweeps."""
    angle = torch.linspace(0, 2 * math.pi, COUNT)
    flat, height = distance * math.cos(0.1), torch.full((COUNT,), distance * math.sin(0.1))
    lag = torch.where(torch.arange(COUNT) % 2 == 0, 0.0, 0.25)
    columns = (flat * angle.cos(), flat * angle.sin(), height, torch.full((COUNT,), 200.0), lag)
    return driving().replace(points=torch.stack(columns, dim=1), returns=None)


def photographed(images: torch.Tensor) -> Frame:
    """A frame whose six images are all (height, width), stored with the channel last."""
    images = images.to(torch.uint8)[None, ..., None].repeat(6, 1, 1, 3)
    return ring(20.0).replace(images=images.permute(0, 3, 1, 2))


GREY = photographed(torch.full((60, 60), 90))


@pytest.mark.parametrize("distance", [1.0, 5.0, 20.0, 40.0])
def test_returns_survive_and_dim_by_beer_and_lambert(distance: float) -> None:
    fog = Fog(visibility=50.0, clutter=0.0)
    assert fog.alpha == pytest.approx(0.0599, abs=1e-4)
    expected = math.exp(-2 * math.log(20) / 50.0 * distance)
    left = fog(ring(distance), generator(0)).points
    assert abs(len(left) / COUNT - expected) < 4 * math.sqrt(expected * (1 - expected) / COUNT)
    torch.testing.assert_close(left[:, 3], torch.full((len(left),), 200 * expected))
    torch.testing.assert_close(left[:, :3].norm(dim=1), torch.full((len(left),), distance))
    # Both sweeps lose as many.
    assert abs((left[:, 4] == 0).float().mean().item() - 0.5) < 0.05


def test_echoes_lie_before_their_target_and_get_fewer_with_distance() -> None:
    fog = Fog(visibility=50.0, clutter=0.4)
    foggy = fog(ring(20.0), generator(0)).points
    distance = foggy[:, :3].norm(dim=1)
    echoes = distance < 19.99
    rate = 2 * fog.alpha
    lost_between = math.exp(-rate * NEAREST_ECHO) - math.exp(-rate * 20)
    assert echoes.sum().item() / COUNT == pytest.approx(0.4 * lost_between, abs=0.015)
    assert distance.min() >= NEAREST_ECHO and (foggy[echoes, 3] == 0).all()
    slope = foggy[echoes, 2] / distance[echoes]
    torch.testing.assert_close(slope, torch.full_like(slope, math.sin(0.1)))
    # Depths follow the exponential distribution truncated to [nearest echo, target].
    below = (math.exp(-rate * NEAREST_ECHO) - math.exp(-rate * 6)) / lost_between
    assert (distance[echoes] < 6).float().mean().item() == pytest.approx(below, abs=0.02)


def test_clear_air_changes_almost_nothing_and_the_densest_fog_leaves_nothing() -> None:
    frame = ring(30.0)
    clear = Fog(visibility=1e9)(frame, generator(0))
    torch.testing.assert_close(clear.points, frame.points, rtol=1e-5, atol=1e-5)
    for fog, points in ((Fog(visibility=0.01), frame.points), (Fog(), torch.zeros(0, 5))):
        assert fog(frame.replace(points=points), generator(0)).points.shape == (0, 5)
    # The points of a lost LiDAR are at the origin.
    lost = frame.replace(points=torch.zeros(7, 5))
    assert torch.isfinite(Fog(clutter=1.0)(lost, generator(0)).points).all()


@pytest.mark.parametrize("value", [60, 128, 255])
def test_night_has_the_mean_and_the_variance_of_photons_and_read_noise(value: int) -> None:
    # A linear sensor without saturation: pixel = 255 * 2 * c / 1000, n = 250 * pixel / 255.
    night = Night(light=0.25, electrons=1000.0, read_noise=6.0, gain=2.0, gamma=1.0)
    pixels = night(photographed(torch.full((60, 60), value)), generator(0)).images.double()
    electrons, per_electron = 0.25 * 1000 * value / 255, 255 * 2.0 / 1000
    assert pixels.mean().item() == pytest.approx(electrons * per_electron, rel=0.01)
    variance = (electrons + 6.0**2) * per_electron**2 + 1 / 12  # rounding adds a twelfth
    assert pixels.var().item() == pytest.approx(variance, rel=0.04)


def test_night_is_dark_noisy_and_stays_in_range() -> None:
    frame = photographed(torch.arange(256).repeat(40, 1))
    dark = Night()(frame, generator(0)).images
    assert (dark.shape, dark.dtype, dark.stride()) == (frame.images.shape, torch.uint8, frame.images.stride())
    assert dark.float().mean() < 0.4 * frame.images.float().mean()
    white, black = dark[..., 255].float(), dark[..., 0].float()
    assert white.mean() > black.mean() + 20 and white.std() > 5
    assert Night(light=1.0, gain=1000.0)(frame, generator(0)).images[..., 255].min() == 255


FAULTS: list[Transform] = [Fog(), Night(), SomeFrames(1.0, fog=Fog(), night=Night())]
CHANGES: list[Transform] = [
    *FAULTS,
    SceneAugmentation((-0.785, 0.785), (0.9, 1.1), (0.5, 0.5, 0.5), 0.5, 0.5),
    TrainingFilter(RANGE),
    MaskModality(0.5, 0.5),
    ImageProcessing((50, 60), augmentation=ImageAugmentation((0.9, 1.3), 0.5, GridMask(1.0))),
]


def tensors_of(frame: Frame) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(frame, field.name) for field in dataclasses.fields(frame)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_the_generator_decides_nothing_changes_in_place_and_a_fault_has_one_sensor(change: Transform) -> None:
    before = {name: value.clone() for name, value in tensors_of(GREY).items()}
    for seed in range(6):
        changed, again = (tensors_of(change(GREY, generator(seed))) for _ in range(2))
        assert all(torch.equal(again[name], value) for name, value in changed.items())
        different = {name for name, value in before.items() if not torch.equal(changed[name], value)}
        assert different in ({"points"}, {"images"}) or change not in FAULTS
    assert all(torch.equal(value, before[name]) for name, value in tensors_of(GREY).items())


def test_share_of_frames_and_of_each_fault() -> None:
    some = SomeFrames(0.4, fog=Fog(), night=Night(), no=None)
    drawn = [some.draw(generator(seed)) for seed in range(3000)]
    for name, share in ((None, 0.6), ("fog", 0.2), ("night", 0.2)):
        assert drawn.count(name) / 3000 == pytest.approx(share, abs=0.03)


def test_other_draws_are_as_without_faults_and_severity_does_not_choose_frames() -> None:
    mild, dense = (SomeFrames(0.5, fog=Fog(visibility), night=Night()) for visibility in (500.0, 5.0))
    for seed in range(8):
        randoms = [generator(seed) for _ in range(3)]
        foggy = [len(fault(GREY, randoms[n]).points) < COUNT for n, fault in enumerate((mild, dense))]
        assert len({random.random() for random in randoms}) == 1
        assert foggy[0] == foggy[1]


@pytest.mark.parametrize("damage", [False, True])
def test_faults_know_which_rows_the_crop_drops(small_root: Path, tmp_path: Path, damage: bool) -> None:
    """Damage is measured on full images, so they are corrupted completely."""
    unseen = []

    def fault(frame: Frame, random: np.random.Generator) -> Frame:
        unseen.append(frame.unseen_rows)
        return frame

    cropped = {"image_size": (20, 160), "train_fault": fault, "eval_fault": fault, "damage": damage}
    data = ready("fit", small_root, tmp_path, **cropped)
    frames = [data.dataset(name)[0] for name in ("train", "val")]
    assert len(unseen) == 2 and all((rows > 0) != damage for rows in unseen)
    assert all(frame.unseen_rows == 0 for frame in frames)


def test_the_faults_of_a_configuration_reach_their_frames(small_root: Path, tmp_path: Path) -> None:
    where = (f"data.root={small_root}", f"data.cache_dir={tmp_path}", "data.num_workers=0")
    config = composed("fault=fog", "fault.share=1", "eval_fault=night", "eval_fault.night.light=0.02", *where)
    # A checkpoint from before there were faults has no such groups.
    old = OmegaConf.masked_copy(config, [name for name in config if name not in ("fault", "eval_fault")])
    modules = [build_data(each) for each in (config, composed(*where), old)]
    for module in modules:
        module.prepare_data()
        module.setup("fit")
    key = SampleKey(0, 1)
    foggy, clear, without = (module.dataset("train")[key] for module in modules)
    assert len(foggy.points) < len(clear.points) and torch.equal(without.points, clear.points)
    assert torch.equal(foggy.images, clear.images) and torch.equal(foggy.boxes, clear.boxes)
    dark, light, _ = (module.dataset("val")[key] for module in modules)
    assert torch.equal(dark.points, light.points) and dark.images.float().mean() < light.images.float().mean()
