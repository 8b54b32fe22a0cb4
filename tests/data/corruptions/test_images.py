"""What happens to images, against slow and obvious versions."""

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
from cmt_aqr.data.corruptions.darkness import darken
from cmt_aqr.data.corruptions.fog import fog_image, haze, plasma
from cmt_aqr.data.corruptions.images import motion_blur, random_bytes
from cmt_aqr.data.corruptions.occlusion import MASKS, mud_mask
from cmt_aqr.data.corruptions.snow import add_snow, flakes, sharp_flakes
from cmt_aqr.errors import SettingError
from cmt_aqr.structures import Frame
from tests.helpers.struck import driving, generator, photograph


def frame_of(images: torch.Tensor) -> Frame:
    return driving(10).replace(images=images)


def views_of(frame: Frame) -> np.ndarray:
    return frame.images.permute(0, 2, 3, 1).numpy()


def randoms(corruption: Corruption, frame: int = 0) -> list[np.random.Generator]:
    """The generators of the six images."""
    return condition_generator(generator(frame), corruption.name).spawn(2)[1].spawn(6)


def test_black_images_are_drawn_one_by_one() -> None:
    frame = frame_of(photograph())
    for severity, share in ((1, 0.2), (2, 0.4), (3, 0.6)):
        corruption = multicorrupt.missingcamera(severity)
        black = np.array(
            [(views_of(corruption(frame, generator(number))) == 0).all(axis=(1, 2, 3)) for number in range(300)]
        )
        assert black.mean() == pytest.approx(share, abs=0.04)
        assert black.mean(axis=0) == pytest.approx(share, abs=0.11)
    assert (views_of(mome.view_drop()(frame, generator())) == 0).all()
    named = nuscenes_r.missing_cameras(["CAM_BACK"])(frame, generator())
    assert [bool((view == 0).all()) for view in views_of(named)] == [False, False, False, True, False, False]


@pytest.mark.parametrize(("severity", "added"), [(1, 0.5), (2, 0.6), (3, 0.7)])
def test_brightness_raises_the_value(severity: int, added: float) -> None:
    frame = frame_of(photograph())
    bright = views_of(multicorrupt.brightness(severity)(frame, generator()))
    hsv = rgb_to_hsv(views_of(frame)[..., ::-1] / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    expected = 255 * hsv_to_rgb(hsv)[..., ::-1]
    # Cut off below the point; next to a whole number, rounding may go either way.
    assert np.abs(bright - np.floor(expected + 1e-6)).max() <= 1
    assert (bright == np.floor(expected + 1e-6)).mean() > 0.999


@pytest.mark.parametrize(("severity", "sigma"), [(1, 6), (3, 13)])
def test_motion_blur_is_a_sum_of_shifted_pictures(severity: int, sigma: float) -> None:
    frame, corruption = frame_of(photograph()), multicorrupt.motionblur(severity)
    blurred = views_of(corruption(frame, generator()))
    weights = np.exp(-(np.arange(31) ** 2) / (2 * sigma**2))
    for view, (picture, random) in enumerate(zip(views_of(frame), randoms(corruption), strict=True)):
        angle = math.radians(random.uniform(-45, 45))
        total = np.zeros(picture.shape)
        rows, columns = np.arange(60), np.arange(90)
        for tap, weight in enumerate(weights / weights.sum()):
            down, right = -math.ceil(tap * math.sin(angle) - 0.5), -math.ceil(tap * math.cos(angle) - 0.5)
            # Shifted by (down, right), edges repeated.
            total += weight * picture[np.clip(rows - down, 0, 59)][:, np.clip(columns - right, 0, 89)]
        assert np.abs(blurred[view] - np.floor(total + 1e-4)).max() <= 1
        assert (blurred[view] == np.floor(total + 1e-4)).mean() > 0.99
    flat = np.full((40, 50, 3), 255, dtype=np.uint8)
    assert (motion_blur(flat, generator(), 13.0) == 255).all()


@pytest.mark.parametrize("condition", [multicorrupt.motionblur, multicorrupt.fog, multicorrupt.snow])
def test_rows_that_nobody_sees_change_nothing_below_them(condition: Callable[[int], Corruption]) -> None:
    frame, corruption = frame_of(photograph()), condition(3)
    whole = views_of(corruption(frame, generator()))
    lower = views_of(corruption(frame.replace(unseen_rows=23), generator()))
    np.testing.assert_array_equal(lower[:, 23:], whole[:, 23:])
    np.testing.assert_array_equal(lower[:, :23], views_of(frame)[:, :23])


@pytest.mark.parametrize("parameters", [(0.6, 250, 0.008), (0.3, 50, 0.026)])
def test_darkness_has_the_distribution_of_photons_and_read_noise(parameters: tuple[float, int, float]) -> None:
    scale, photons, std = parameters
    random = np.random.default_rng(0)
    values = (30, 90, 180, 250)
    picture = np.repeat(np.array(values, dtype=np.uint8), 30_000).reshape(400, 300, 1).repeat(1, axis=2)
    dark = darken(picture, generator(), scale, photons, std)
    for value in values:
        y = scale * ((value - 30) / 220) ** 2
        counted = np.minimum(random.poisson(y * photons, 400_000) / photons, 1)
        expected = (255 * np.clip(counted + random.normal(0, std, 400_000), 0, 1)).astype(np.uint8)
        found = dark[picture == value]
        assert found.mean() == pytest.approx(expected.mean(), abs=0.02 * expected.std() + 0.05)
        assert found.std() == pytest.approx(expected.std(), rel=0.03, abs=0.02)
        shares = (np.bincount(found, minlength=256) / len(found), np.bincount(expected, minlength=256) / 400_000)
        assert np.abs(np.cumsum(shares[0]) - np.cumsum(shares[1])).max() < 0.012


def test_fog_over_a_picture_pixel_by_pixel() -> None:
    picture = views_of(frame_of(photograph(24, 36)))[0]
    foggy = fog_image(picture, generator(), 4.0, 0.002)
    random = generator()
    drawn = random_bytes((24, 36), random) / 256
    clouds = haze(24, 36, random)
    size, brightest = math.sqrt(36), picture.max() / 255
    for row in range(24):
        for column in range(36):
            down = max(0, row - int(24 * 0.99), int(24 * 0.65) - row)
            across = max(0, column - int(36 * 0.85), int(36 * 0.1) - column)
            distance = 2 * math.hypot(down, across) * (1 + drawn[row, column] / 4) + size
            clear = math.exp(-0.002 * distance)
            for channel in range(3):
                value = picture[row, column, channel] / 255 + 4.0 * clouds[row, column]
                value = min(value * brightest / (brightest + 4.0), 1) * clear + 0.5 * (1 - clear)
                assert abs(int(foggy[row, column, channel]) - 255 * value) < 1.01


def test_plasma_is_a_diamond_square_fractal() -> None:
    """The same numbers one after another, for a field small enough to be whole."""
    size, count = 16, 2
    fields = plasma(size, count, generator())
    random, arrays = generator(), np.zeros((count, size, size))
    step, wibble = size, 100.0
    while step >= 2:
        half, cells = step // 2, size // step
        noise = [2 * random.random((count, cells, cells), np.float32) - 1 for _ in range(3)]
        for field in range(count):
            array = arrays[field]
            before = array.copy()
            for i in range(cells):
                for j in range(cells):
                    y, x = i * step, j * step
                    corners = [before[(y + a) % size, (x + b) % size] for a in (0, step) for b in (0, step)]
                    array[y + half, x + half] = sum(corners) / 4 + wibble**2 * noise[0][field, i, j]
            for i in range(cells):
                for j in range(cells):
                    y, x = i * step, j * step
                    above = array[(y - half) % size, x + half] + array[y + half, x + half]
                    above += array[y, x] + array[y, (x + step) % size]
                    array[y, x + half] = above / 4 + wibble**2 * noise[1][field, i, j]
                    beside = array[y + half, (x - half) % size] + array[y + half, x + half]
                    beside += array[y, x] + array[(y + step) % size, x]
                    array[y + half, x] = beside / 4 + wibble**2 * noise[2][field, i, j]
        step, wibble = half, wibble / 1.7
    arrays -= arrays.min(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(fields, arrays / arrays.max(axis=(1, 2), keepdims=True), atol=1e-5)


def test_snow_lies_over_a_pale_picture() -> None:
    picture = views_of(frame_of(photograph(60, 90)))[0]
    snowy = add_snow(picture, generator(), 0.5, 3, 0.8, 10, 0.8)
    layer = flakes(60, 90, generator(), 0.5, 3, 0.8, 10)
    assert layer.shape == (60, 90) and 0 < (layer > 0).mean() <= 1 and layer.max() <= 255
    both = layer + layer[::-1, ::-1]
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(float)[..., None]
    pale = 0.8 * picture + 0.2 * np.maximum(picture, 1.5 * grey + 127.5)
    expected = np.clip(0.9 * pale + both[..., None], 0, 255)
    assert np.abs(snowy - expected).max() < 1.01
    # Before the blur, flakes are what is above the threshold: at (0.8 - 0.5) / 0.3 = one standard deviation.
    sharp = [sharp_flakes(200, 300, generator(), mean, 1, 0.8) for mean in (0.5, 0.2)]
    shares = [(layer > 0).mean() for layer in sharp]
    assert shares == pytest.approx([0.159, 0.023], abs=0.006)


def test_mud_hides_the_picture_by_the_cube_of_the_mask(tmp_path: Path) -> None:
    frame = frame_of(photograph())
    for number in range(MASKS):
        cv2.imwrite(
            str(tmp_path / f"{number:02d}.png"), np.random.default_rng(number).integers(0, 256, (90, 60, 3))
        )
    for corruption, ours in ((mome.occlusion(), True), (mome.occlusion(str(tmp_path)), False)):
        muddy = views_of(corruption(frame, generator()))
        for view, random in enumerate(randoms(corruption)):
            number = int(random.integers(MASKS))
            mask = mud_mask(number, 60, 90)[..., None].astype(float)
            if not ours:
                read = np.asarray(cv2.imread(str(tmp_path / f"{number:02d}.png")))
                mask = np.rot90(read).astype(float)  # counter-clockwise
            through = (mask / 255) ** 3
            expected = through * views_of(frame)[view] + (1 - through) * mask
            assert np.abs(muddy[view] - np.floor(expected + 1e-6)).max() == 0
    hidden = [1 - (mud_mask(number, 90, 160) / 255.0) ** 3 for number in range(MASKS)]
    assert all(0.05 < share.mean() < 0.8 for share in hidden)
    with pytest.raises(SettingError, match=r"masks=.*/absent: there is no such folder"):
        mome.occlusion(str(tmp_path / "absent"))
    (tmp_path / "00.png").unlink()
    with pytest.raises(SettingError, match=r"masks=.*it contains 15 images"):
        mome.occlusion(str(tmp_path))


def test_noise_on_pictures() -> None:
    flat = torch.full((6, 3, 100, 150), 128, dtype=torch.uint8)
    values = {
        name: views_of(getattr(nuscenes_c, name)(2)(frame_of(flat), generator())).astype(float) / 255
        for name in ("gaussian_camera", "uniform_camera", "impulse_camera")
    }
    assert values["gaussian_camera"].std() == pytest.approx(0.12, rel=0.02)
    assert values["uniform_camera"].std() == pytest.approx(0.12 / math.sqrt(3), rel=0.02)
    assert np.abs(values["uniform_camera"] - 128 / 255).max() <= 0.125
    for colour in (0, 1):
        assert (values["impulse_camera"] == colour).mean() == pytest.approx(0.03, abs=0.003)
