"""Corruptions of points, against slow and obvious versions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cmt_aqr.data.corruptions import mome, multicorrupt, nuscenes_c
from cmt_aqr.data.corruptions.lidar import cutout
from cmt_aqr.data.corruptions.sweeps import move_sweeps
from cmt_aqr.data.corruptions.weather import TARGET_REFLECTIVITY, echo_table, fog_points
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.faults import Fog
from cmt_aqr.geometry import points_in_boxes
from tests.helpers.shared_data import KEYFRAME, needs_keyframe
from tests.helpers.small_data import ready
from tests.helpers.struck import driving, generator, own_frames


def test_each_sweep_is_moved_by_its_own_transform() -> None:
    frame = driving()
    inverse = torch.linalg.inv(frame.returns.motions).float()
    moved = move_sweeps(frame.points[:, :3], frame.returns.sweep, inverse)
    torch.testing.assert_close(moved, own_frames(frame).float(), atol=1e-4, rtol=0)
    assert torch.equal(moved[:400], frame.points[:400, :3])  # the identity changes no bit
    order = torch.randperm(len(moved), generator=torch.Generator().manual_seed(0))
    mixed = frame.keep_points(order)
    moved_mixed = move_sweeps(mixed.points[:, :3], mixed.returns.sweep, inverse)
    torch.testing.assert_close(moved_mixed, moved[order], atol=1e-5, rtol=0)


def test_four_beams_near_the_horizon_of_each_sweep() -> None:
    frame, corruption = driving(), mome.beams4_horizon()
    elevations = [math.asin(point[2] / point.norm()) for point in own_frames(frame)]
    bounds = [(0.1862 - 0.023275 * i - 0.012, 0.1862 - 0.023275 * (i - 1) - 0.012) for i in (7, 9, 11, 13)]
    kept = [row for row, angle in enumerate(elevations) if any(low < angle < high for low, high in bounds)]
    struck = corruption(frame, generator())
    assert torch.equal(struck.points, frame.points[kept])
    assert set(struck.returns.ring.tolist()) == {18, 20, 22, 24}
    # Seen from the keyframe, instead of from each sweep, other points are near the horizon.
    one_sweep = frame.returns.replace(sweep=torch.zeros_like(frame.returns.sweep))
    assert not torch.equal(corruption(frame.replace(returns=one_sweep), generator()).points, struck.points)


@needs_keyframe
def test_the_beams_of_a_real_lidar_are_those_rings(tmp_path: Path) -> None:
    data = ready("validate", KEYFRAME, tmp_path, val_split="mini_train", train_split=None)
    frame = data.dataset("val").reader.read(0)
    struck = mome.beams4_horizon()(frame, generator())
    ring = struck.returns.ring[struck.points[:, :3].norm(dim=1) > 2]  # rays without a return end in the sensor
    assert set(ring.tolist()) == {18, 20, 22, 24} and len(ring) > 2000


RINGS = [(1, set(range(1, 32, 2))), (2, {1, 5, 9, 13, 17, 21, 25, 29}), (3, {1, 9, 17, 25})]


@pytest.mark.parametrize(("severity", "rings"), RINGS)
def test_rings_that_remain(severity: int, rings: set[int]) -> None:
    frame = driving()
    chosen = [row for row, ring in enumerate(frame.returns.ring.tolist()) if ring in rings]
    struck = multicorrupt.beamsreducing(severity)(frame, generator())
    assert torch.equal(struck.points, frame.points[chosen])


def test_files_without_rings_are_refused() -> None:
    frame, corruption = driving(), multicorrupt.beamsreducing(1)
    flat = frame.replace(returns=frame.returns.replace(ring=torch.zeros_like(frame.returns.ring)))
    with pytest.raises(DataError, match=r"frame token: .*no ring.*fifth column"):
        corruption(flat, generator())
    added = frame.replace(points=torch.cat((frame.points, frame.points[:3])))
    with pytest.raises(ValueError, match="1200 of 1203 points"):
        corruption(added, generator())
    foggy = Fog()(frame, generator())  # a fault that drops points updates their rings
    assert 0 < len(corruption(foggy, generator()).points) < len(foggy.points)


@pytest.mark.parametrize(("severity", "share"), [(1, 0.3), (2, 0.2), (3, 0.1)])
def test_a_share_of_each_sweep_remains(severity: int, share: float) -> None:
    frame = driving()
    struck = multicorrupt.pointsreducing(severity)(frame, generator())
    assert torch.bincount(struck.returns.sweep).tolist() == [round(400 * share)] * 3
    points = frame.points.tolist()
    rows = [points.index(point) for point in struck.points.tolist()]
    assert rows == sorted(set(rows))


@pytest.mark.parametrize(("severity", "limit"), [(1, 105), (2, 90), (3, 75), (4, 60), (5, 45)])
def test_the_field_of_view_is_around_the_y_axis(severity: int, limit: int) -> None:
    degrees = torch.arange(-179.5, 180)
    points = torch.zeros(360, 5)
    points[:, 0], points[:, 1] = 9 * torch.deg2rad(degrees).sin(), 9 * torch.deg2rad(degrees).cos()
    struck = nuscenes_c.fov_lost(severity)(driving().replace(points=points, returns=None), generator())
    assert torch.equal(struck.points, points[degrees.abs() < limit])


def test_objects_lose_their_points_in_half_of_the_frames() -> None:
    frame = driving(4000)
    outside = frame.points[~points_in_boxes(frame.points, frame.boxes).any(dim=1)]
    struck = [mome.object_failure()(frame, generator(number)).points for number in range(300)]
    counts = [len(points) for points in struck]
    assert set(counts) == {len(frame.points), len(outside)} and torch.equal(min(struck, key=len), outside)
    assert counts.count(len(outside)) / 300 == pytest.approx(0.5, abs=0.1)


def test_a_lost_lidar_has_as_many_points_at_the_origin() -> None:
    frame = driving()
    assert torch.equal(mome.lidar_drop()(frame, generator()).points, torch.zeros_like(frame.points))


def test_sweeps_are_rotated_and_shifted_in_their_own_frames() -> None:
    frame, before = driving(), own_frames(driving())
    c, s = math.cos(math.radians(2)), math.sin(math.radians(2))
    about_x = torch.tensor(((1, 0, 0), (0, c, s), (0, -s, c)), dtype=torch.float64)
    about_y = torch.tensor(((c, 0, -s), (0, 1, 0), (s, 0, c)), dtype=torch.float64)
    about_z = torch.tensor(((c, s, 0), (-s, c, 0), (0, 0, 1)), dtype=torch.float64)
    rotated = before @ (about_x @ about_y @ about_z).T + torch.tensor((2.0, 0.0, 0.0))
    struck = 0
    for number in range(60):
        after = own_frames(multicorrupt.spatialmisalignment(2)(frame, generator(number)))
        for sweep in range(3):
            rows = frame.returns.sweep == sweep
            moved = bool((after[rows] - before[rows]).abs().max() > 0.1)
            torch.testing.assert_close(after[rows], (rotated if moved else before)[rows], atol=1e-3, rtol=0)
            struck += moved
    assert struck / 180 == pytest.approx(0.4, abs=0.12)


def test_motion_blur_shifts_sweeps_and_jitters_points() -> None:
    frame = driving(5000)
    frame.returns.motions[1, :2, :2] = torch.tensor(((0.0, -1.0), (1.0, 0.0)))
    shifts, jitter = [], 0.13 * torch.tensor((0.15, 0.2, 0.12)).double()
    for number in range(40):
        change = own_frames(multicorrupt.motionblur(3)(frame, generator(number))) - own_frames(frame)
        for sweep in change.view(3, 5000, 3):
            shifts.append(sweep.mean(dim=0))
            torch.testing.assert_close(sweep.std(dim=0), jitter, atol=0, rtol=0.06)
    assert torch.stack(shifts).std().item() == pytest.approx(0.13, rel=0.15)


@pytest.mark.parametrize("alpha", [0.02, 0.06])
def test_echoes_of_fog_are_the_largest_values_of_the_integral(alpha: float) -> None:
    ranges, strengths = echo_table(alpha)
    speed, pulse = 299_792_458.0, 2e-8
    times = np.linspace(0, 2 * pulse, 4001)

    def response(at: float) -> float:
        r = at - speed * times / 2
        overlap, r = np.clip((r - 0.9) / 0.1, 0, 1), np.maximum(r, 0.5)
        power = np.sin(math.pi * times / (2 * pulse)) ** 2 * np.exp(-2 * alpha * r) * overlap / r**2
        return power.sum() * (times[1] - times[0])

    candidates = np.linspace(0, 200, 2000)
    for target in (1.5, 3.0, 8.0, 60.0):
        near = candidates[(candidates <= target) & (candidates < 12)]
        values = [response(at) for at in near]
        entry = round(10 * target)
        assert strengths[entry] == pytest.approx(max(values), rel=2e-3)
        assert ranges[entry] == pytest.approx(near[int(np.argmax(values))] - speed * pulse / 2, abs=0.11)
    assert strengths[0] == 0 and (np.diff(strengths) >= 0).all()
    # As in the published tables, from 5 m on the echo comes from about 1.3 m whatever the target.
    assert len(set(strengths[60:])) == 1 and 1 < ranges[-1] < 2.5


def test_fog_dims_points_or_moves_them_to_its_echo() -> None:
    frame, before = driving(), own_frames(driving())
    points = fog_points(frame, generator(), 0.06, 0.05).points
    after = own_frames(frame.replace(points=points)).numpy()
    draws = generator().random(len(points), np.float32)
    r, intensity = before.norm(dim=1).numpy(), frame.points[:, 3].double().numpy()
    echo, strength = (table[np.rint(r * 10).astype(int)] for table in echo_table(0.06))
    hard = np.rint(intensity * np.exp(-2 * 0.06 * r))
    soft = strength * intensity * r**2 * 0.05 / TARGET_REFLECTIVITY
    moved = soft > hard
    factor = np.where(moved, echo / (r - 10 + 20 * draws), 1)[:, None]
    np.testing.assert_allclose(after, before.numpy() * factor, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(points[:, 3], np.where(moved, soft, hard), rtol=1e-4)
    assert moved.any() and not moved.all()


def test_density_and_cutout() -> None:
    frame = driving(2000)
    count = len(frame.points)
    assert len(nuscenes_c.density(5)(frame, generator()).points) == count - int(0.3 * count)
    rows, random = list(range(count)), generator()
    for _ in range(3):
        centre = frame.points[rows[int(random.integers(len(rows)))]]
        distance = {row: float((frame.points[row] - centre).square().sum()) for row in rows}
        rows = sorted(sorted(rows, key=distance.__getitem__)[int(0.02 * count) :])
    assert torch.equal(cutout(frame, generator(), 3).points, frame.points[rows])


def test_noise_on_points() -> None:
    frame = driving(2000)

    def noise(name: str) -> Tensor:
        return getattr(nuscenes_c, name)(5)(frame, generator()).points - frame.points

    for name, share in (("crosstalk", 0.02), ("impulse_lidar", 0.1)):
        assert noise(name).any(dim=1).float().mean().item() == pytest.approx(share, abs=0.001)
    impulses = noise("impulse_lidar")
    impulses = impulses[impulses.any(dim=1)]
    torch.testing.assert_close(impulses.abs(), torch.full_like(impulses, 0.1), atol=1e-4, rtol=0)
    assert noise("gaussian_lidar").std().item() == pytest.approx(0.1, rel=0.02)
    uniform = noise("uniform_lidar")
    assert uniform.abs().max().item() == pytest.approx(0.1, rel=0.01)
    assert uniform.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
