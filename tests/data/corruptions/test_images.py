"""Corruptions of images, against slow and obvious versions."""

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

from cmt_aqr.data.corruptions import mome, multicorrupt, nuscenes_c, nuscenes_r
from cmt_aqr.data.corruptions.corruption import Corruption, condition_generator
from cmt_aqr.data.corruptions.images import motion_blur, random_bytes
from cmt_aqr.data.corruptions.occlusion import MASKS, mud_mask
from cmt_aqr.data.corruptions.weather import (
    add_snow,
    darken,
    flakes,
    fog_image,
    haze,
    plasma,
    sharp_flakes,
)
from cmt_aqr.errors import SettingError
from cmt_aqr.structures import Frame
from tests.helpers.struck import driving, generator, photograph

FRAME = driving(10).replace(images=photograph())


def views_of(frame: Frame) -> np.ndarray:
    return frame.images.permute(0, 2, 3, 1).numpy()


VIEWS = views_of(FRAME)


def corrupted(corruption: Corruption, frame: Frame = FRAME, number: int = 0) -> np.ndarray:
    return views_of(corruption(frame, generator(number)))


def randoms(corruption: Corruption) -> list[np.random.Generator]:
    """The generators of the six images of :func:`corrupted`."""
    return condition_generator(generator(), corruption.name).spawn(2)[1].spawn(6)


@pytest.mark.parametrize(("severity", "share"), [(1, 0.2), (2, 0.4), (3, 0.6)])
def test_images_are_black_independently(severity: int, share: float) -> None:
    corruption = multicorrupt.missingcamera(severity)
    black = np.array([~corrupted(corruption, number=number).any(axis=(1, 2, 3)) for number in range(300)])
    assert black.mean() == pytest.approx(share, abs=0.04)
    assert black.mean(axis=0) == pytest.approx(share, abs=0.11)


def test_all_or_named_images_are_black() -> None:
    assert not corrupted(mome.view_drop()).any()
    named = corrupted(nuscenes_r.missing_cameras(["CAM_BACK"]))
    assert [bool(view.any()) for view in named] == [True, True, True, False, True, True]


@pytest.mark.parametrize(("severity", "added"), [(1, 0.5), (2, 0.6), (3, 0.7)])
def test_brightness_raises_the_value(severity: int, added: float) -> None:
    bright = corrupted(multicorrupt.brightness(severity))
    hsv = rgb_to_hsv(VIEWS[..., ::-1] / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    expected = np.floor(255 * hsv_to_rgb(hsv)[..., ::-1] + 1e-6)
    # Next to an integer, rounding may go either way.
    assert np.abs(bright - expected).max() <= 1 and (bright == expected).mean() > 0.999


@pytest.mark.parametrize(("severity", "sigma"), [(1, 6), (3, 13)])
def test_motion_blur_is_a_sum_of_shifted_images(severity: int, sigma: float) -> None:
    corruption = multicorrupt.motionblur(severity)
    weights = np.exp(-(np.arange(31) ** 2) / (2 * sigma**2))
    rows, columns = np.arange(60), np.arange(90)
    for image, blurred, random in zip(VIEWS, corrupted(corruption), randoms(corruption), strict=True):
        angle = math.radians(random.uniform(-45, 45))
        total = np.zeros(image.shape)
        for tap, weight in enumerate(weights / weights.sum()):
            down, right = -math.ceil(tap * math.sin(angle) - 0.5), -math.ceil(tap * math.cos(angle) - 0.5)
            # Shifted by (down, right), edges repeated.
            total += weight * image[np.clip(rows - down, 0, 59)][:, np.clip(columns - right, 0, 89)]
        expected = np.floor(total + 1e-4)
        assert np.abs(blurred - expected).max() <= 1 and (blurred == expected).mean() > 0.99
    flat = np.full((40, 50, 3), 255, dtype=np.uint8)
    assert (motion_blur(flat, generator(), 13.0) == 255).all()


@pytest.mark.parametrize("condition", [multicorrupt.motionblur, multicorrupt.fog, multicorrupt.snow])
def test_skipping_unseen_rows_does_not_change_those_below(condition: Callable[[int], Corruption]) -> None:
    lower = corrupted(condition(3), FRAME.replace(unseen_rows=23))
    np.testing.assert_array_equal(lower[:, 23:], corrupted(condition(3))[:, 23:])
    np.testing.assert_array_equal(lower[:, :23], VIEWS[:, :23])


@pytest.mark.parametrize(("scale", "photons", "std"), [(0.6, 250, 0.008), (0.3, 50, 0.026)])
def test_darkness_has_the_distribution_of_photons_and_read_noise(scale: float, photons: int, std: float) -> None:
    random = np.random.default_rng(0)
    values = (30, 90, 180, 250)
    image = np.repeat(np.array(values, dtype=np.uint8), 30_000).reshape(400, 300, 1).repeat(3, axis=2)
    dark = darken(image, generator(), scale, photons, std)
    for value in values:
        y = scale * ((value - 30) / 220) ** 2
        counted = np.minimum(random.poisson(y * photons, 400_000) / photons, 1)
        expected = (255 * np.clip(counted + random.normal(0, std, 400_000), 0, 1)).astype(np.uint8)
        pixels = dark[image == value]
        assert pixels.mean() == pytest.approx(expected.mean(), abs=0.02 * expected.std() + 0.05)
        assert pixels.std() == pytest.approx(expected.std(), rel=0.03, abs=0.02)
        shares = [np.bincount(drawn, minlength=256) / len(drawn) for drawn in (pixels, expected)]
        assert np.abs(np.cumsum(shares[0] - shares[1])).max() < 0.012


def test_fog_over_an_image() -> None:
    image, random = VIEWS[0], generator()
    height, width = image.shape[:2]
    drawn = random_bytes((height, width), random) / 256
    clouds = haze(height, width, random)
    rows, columns = np.mgrid[:height, :width]
    down = np.clip(np.maximum(rows - int(height * 0.99), int(height * 0.65) - rows), 0, None)
    across = np.clip(np.maximum(columns - int(width * 0.85), int(width * 0.1) - columns), 0, None)
    distance = 2 * np.hypot(down, across) * (1 + drawn / 4) + math.sqrt(max(height, width))
    clear, brightest = np.exp(-0.002 * distance)[..., None], image.max() / 255
    hazy = (image / 255 + 4.0 * clouds[..., None]) * brightest / (brightest + 4.0)
    expected = np.minimum(hazy, 1) * clear + 0.5 * (1 - clear)
    assert np.abs(fog_image(image, generator(), 4.0, 0.002) - 255 * expected).max() < 1.01


def test_plasma_is_a_diamond_square_fractal() -> None:
    """The same numbers, cell by cell, for a field small enough to be drawn completely."""
    size, count = 16, 2
    random, arrays = generator(), np.zeros((count, size, size))
    step, wibble = size, 100.0
    while step >= 2:
        half, cells = step // 2, size // step
        noise = [2 * random.random((count, cells, cells), np.float32) - 1 for _ in range(3)]
        for field, array in enumerate(arrays):
            before = array.copy()
            corners = [(i, j, i * step, j * step) for i in range(cells) for j in range(cells)]
            for i, j, y, x in corners:
                total = sum(before[(y + a) % size, (x + b) % size] for a in (0, step) for b in (0, step))
                array[y + half, x + half] = total / 4 + wibble**2 * noise[0][field, i, j]
            for i, j, y, x in corners:
                above = array[(y - half) % size, x + half] + array[y + half, x + half]
                above += array[y, x] + array[y, (x + step) % size]
                array[y, x + half] = above / 4 + wibble**2 * noise[1][field, i, j]
                beside = array[y + half, (x - half) % size] + array[y + half, x + half]
                beside += array[y, x] + array[(y + step) % size, x]
                array[y + half, x] = beside / 4 + wibble**2 * noise[2][field, i, j]
        step, wibble = half, wibble / 1.7
    arrays -= arrays.min(axis=(1, 2), keepdims=True)
    arrays /= arrays.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(plasma(size, count, generator()), arrays, atol=1e-5)


def test_snow_lies_over_a_pale_image() -> None:
    image = VIEWS[0]
    snowy = add_snow(image, generator(), 0.5, 3, 0.8, 10, 0.8)
    layer = flakes(60, 90, generator(), 0.5, 3, 0.8, 10).astype(int)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(float)[..., None]
    pale = 0.8 * image + 0.2 * np.maximum(image, 1.5 * grey + 127.5)
    expected = np.clip(0.9 * pale + (layer + layer[::-1, ::-1])[..., None], 0, 255)
    assert layer.any() and np.abs(snowy - expected).max() < 1.01
    # Before the blur, flakes are what is above the threshold: at (0.8 - 0.5) / 0.3 = one standard deviation.
    shares = [(sharp_flakes(200, 300, generator(), mean, 1, 0.8) > 0).mean() for mean in (0.5, 0.2)]
    assert shares == pytest.approx([0.159, 0.023], abs=0.006)


@pytest.mark.parametrize("own", [True, False])
def test_mud_hides_the_image_by_the_cube_of_the_mask(own: bool, tmp_path: Path) -> None:
    masks = [np.random.default_rng(number).integers(0, 256, (90, 60, 3)) for number in range(MASKS)]
    for number, mask in enumerate(masks):
        cv2.imwrite(str(tmp_path / f"{number:02d}.png"), mask)
    corruption = mome.occlusion() if own else mome.occlusion(str(tmp_path))
    for image, muddy, random in zip(VIEWS, corrupted(corruption), randoms(corruption), strict=True):
        number = int(random.integers(MASKS))
        mask = mud_mask(number, 60, 90)[..., None] if own else np.rot90(masks[number])  # counter-clockwise
        through = (mask / 255) ** 3
        np.testing.assert_array_equal(muddy, np.floor(through * image + (1 - through) * mask + 1e-6))
    (tmp_path / "00.png").unlink()
    for folder, reason in ((tmp_path, "15 images"), (tmp_path / "absent", "no such folder")):
        with pytest.raises(SettingError, match=rf"masks={folder}: .*{reason}"):
            mome.occlusion(str(folder))


def test_every_mud_mask_hides_a_part() -> None:
    hidden = [1 - (mud_mask(number, 90, 160) / 255.0) ** 3 for number in range(MASKS)]
    assert all(0.05 < share.mean() < 0.8 for share in hidden)


def test_noise_on_images() -> None:
    flat = FRAME.replace(images=torch.full((6, 3, 100, 150), 128, dtype=torch.uint8))
    names = ("gaussian_camera", "uniform_camera", "impulse_camera")
    gaussian, uniform, impulse = (corrupted(getattr(nuscenes_c, name)(2), flat) / 255 for name in names)
    assert gaussian.std() == pytest.approx(0.12, rel=0.02)
    assert uniform.std() == pytest.approx(0.12 / math.sqrt(3), rel=0.02)
    assert np.abs(uniform - 128 / 255).max() <= 0.125
    for colour in (0, 1):
        assert (impulse == colour).mean() == pytest.approx(0.03, abs=0.003)
