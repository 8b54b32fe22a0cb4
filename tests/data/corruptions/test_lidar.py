"""What happens to points, against slow and obvious versions."""

import math

import numpy as np
import pytest
import torch

from cmt_aqr.data.corruptions import mome, multicorrupt, nuscenes_c
from cmt_aqr.data.corruptions.fog import TARGET_REFLECTIVITY, echo_table, fog_points
from cmt_aqr.data.corruptions.lidar import cutout, keep_sector
from cmt_aqr.data.corruptions.sweeps import in_sweep_frames, move_sweeps
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.faults import Fog
from cmt_aqr.geometry import points_in_boxes
from cmt_aqr.structures import Frame
from tests.helpers.shared_data import KEYFRAME, needs_keyframe
from tests.helpers.struck import driving, generator, own_frames


def returns(frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
    return frame.returns.sweep, frame.returns.ring


def test_points_go_back_to_the_frames_of_their_files() -> None:
    frame = driving()
    own = in_sweep_frames(frame)
    torch.testing.assert_close(own, own_frames(frame).float(), atol=1e-4, rtol=0)
    assert torch.equal(own[:400], frame.points[:400, :3])  # the keyframe's own file is not moved at all
    torch.testing.assert_close(
        move_sweeps(own, frame.returns.sweep, frame.returns.motions.float()),
        frame.points[:, :3],
        atol=1e-4,
        rtol=0,
    )
    mixed = torch.randperm(len(own), generator=torch.Generator().manual_seed(0))
    shuffled = frame.keep_points(mixed)
    torch.testing.assert_close(in_sweep_frames(shuffled), own[mixed], atol=1e-5, rtol=0)


def test_four_beams_near_the_horizon_of_each_file() -> None:
    frame = driving()
    struck = mome.beams4_horizon()(frame, generator())
    kept = []
    for row, point in enumerate(own_frames(frame)):
        elevation = math.asin(point[2] / point.norm())
        bounds = [(0.1862 - 0.023275 * i - 0.012, 0.1862 - 0.023275 * (i - 1) - 0.012) for i in (7, 9, 11, 13)]
        if any(low < elevation < high for low, high in bounds):
            kept.append(row)
    assert torch.equal(struck.points, frame.points[kept])
    assert set(returns(struck)[1].tolist()) == {18, 20, 22, 24}
    # Rings of the horizon seen from the keyframe, instead of from each file, would be others.
    assert not torch.equal(
        struck.points, mome.beams4_horizon()(frame.replace(returns=one_file(frame)), generator()).points
    )


def one_file(frame: Frame):  # noqa: ANN201
    return frame.returns.replace(sweep=torch.zeros_like(frame.returns.sweep))


@needs_keyframe
def test_the_beams_of_a_real_lidar_are_those_rings(tmp_path) -> None:  # noqa: ANN001
    data = NuScenesDataModule(
        KEYFRAME,
        "v1.0-mini",
        (-54, -54, -5, 54, 54, 3),
        val_split="mini_train",
        train_split=None,
        cache_dir=tmp_path,
    )
    data.prepare_data()
    data.setup("validate")
    frame = data.dataset("val").reader.read(0)
    left = mome.beams4_horizon()(frame, generator())
    ring = returns(left)[1][left.points[:, :3].norm(dim=1) > 2]  # rays without a return end in the sensor itself
    assert set(ring.tolist()) == {18, 20, 22, 24} and len(ring) > 2000
    for severity, count in ((1, 16), (2, 8), (3, 4)):
        left = multicorrupt.beamsreducing(severity)(frame, generator())
        assert len(returns(left)[1].unique()) == count


@pytest.mark.parametrize(
    ("severity", "rings"), [(1, set(range(1, 32, 2))), (2, {1, 5, 9, 13, 17, 21, 25, 29}), (3, {1, 9, 17, 25})]
)
def test_rings_that_stay(severity: int, rings: set[int]) -> None:
    frame = driving()
    left = multicorrupt.beamsreducing(severity)(frame, generator())
    chosen = [row for row, ring in enumerate(returns(frame)[1].tolist()) if ring in rings]
    assert torch.equal(left.points, frame.points[chosen])


def test_files_without_a_ring_are_refused_by_name() -> None:
    frame = driving()
    flat = frame.replace(returns=frame.returns.replace(ring=torch.zeros_like(frame.returns.ring)))
    with pytest.raises(DataError, match=r"frame token: .*no ring.*fifth column"):
        multicorrupt.beamsreducing(1)(flat, generator())
    added = frame.replace(points=torch.cat((frame.points, frame.points[:3])))
    with pytest.raises(ValueError, match="1200 of 1203 points"):
        multicorrupt.beamsreducing(1)(added, generator())
    fogged = Fog()(frame, generator())  # a fault that drops points keeps count
    assert len(multicorrupt.beamsreducing(1)(fogged, generator()).points) < len(fogged.points)


@pytest.mark.parametrize(("severity", "share"), [(1, 0.3), (2, 0.2), (3, 0.1)])
def test_a_share_of_each_file_stays(severity: int, share: float) -> None:
    frame = driving()
    left = multicorrupt.pointsreducing(severity)(frame, generator())
    assert torch.bincount(returns(left)[0]).tolist() == [round(400 * share)] * 3
    rows = [frame.points.tolist().index(point) for point in left.points.tolist()]
    assert rows == sorted(set(rows))


def test_sectors_look_ahead_along_y() -> None:
    angles = torch.deg2rad(torch.tensor((0.0, 59.9, 60.1, -59.9, -60.1, 180.0)))
    points = torch.zeros(6, 5)
    points[:, 0], points[:, 1] = 9 * angles.sin(), 9 * angles.cos()
    frame = driving().replace(points=points, returns=None)
    assert torch.equal(keep_sector(frame, generator(), 60).points, points[[0, 1, 3]])
    angles = torch.deg2rad(torch.arange(0.5, 180))
    points = torch.zeros(180, 5)
    points[:, 0], points[:, 1] = 9 * angles.sin(), 9 * angles.cos()
    seen = [nuscenes_c.fov_lost(severity)(frame.replace(points=points), generator()) for severity in range(1, 6)]
    assert [len(one.points) for one in seen] == [105, 90, 75, 60, 45]


def test_objects_are_emptied_in_half_of_the_frames() -> None:
    frame = driving(4000)
    inside = points_in_boxes(frame.points, frame.boxes).any(dim=1)
    assert inside.any()
    struck = [mome.object_failure()(frame, generator(number)).points for number in range(300)]
    counts = [len(points) for points in struck]
    assert set(counts) == {len(frame.points), int((~inside).sum())}
    assert torch.equal(min(struck, key=len), frame.points[~inside])
    assert counts.count(len(frame.points)) / 300 == pytest.approx(0.5, abs=0.1)


def test_a_lost_lidar_has_as_many_points_in_the_origin() -> None:
    frame = driving()
    assert torch.equal(mome.lidar_drop()(frame, generator()).points, torch.zeros_like(frame.points))


def test_files_are_turned_and_shifted_in_their_own_frames() -> None:
    frame = driving()
    corruption = multicorrupt.spatialmisalignment(2)
    c, s = math.cos(math.radians(2)), math.sin(math.radians(2))
    about_x = torch.tensor(((1, 0, 0), (0, c, s), (0, -s, c)), dtype=torch.float64)
    about_y = torch.tensor(((c, 0, -s), (0, 1, 0), (s, 0, c)), dtype=torch.float64)
    about_z = torch.tensor(((c, s, 0), (-s, c, 0), (0, 0, 1)), dtype=torch.float64)
    turned = own_frames(frame) @ (about_x @ about_y @ about_z).T + torch.tensor((2.0, 0.0, 0.0))
    struck = 0
    for number in range(60):
        own = own_frames(corruption(frame, generator(number)))
        for sweep in range(3):
            rows = returns(frame)[0] == sweep
            moved = (own[rows] - own_frames(frame)[rows]).abs().max() > 0.1
            expected = turned if moved else own_frames(frame)
            torch.testing.assert_close(own[rows], expected[rows], atol=1e-3, rtol=0)
            struck += int(moved)
    assert struck / 180 == pytest.approx(0.4, abs=0.12)


def test_a_blurred_lidar_shifts_files_and_lets_points_tremble() -> None:
    frame = driving(5000)
    shifts = []
    for number in range(40):
        own = own_frames(multicorrupt.motionblur(3)(frame, generator(number))) - own_frames(frame)
        for sweep in range(3):
            file = own[returns(frame)[0] == sweep]
            shifts.append(file.mean(dim=0))
            torch.testing.assert_close(
                file.std(dim=0), 0.13 * torch.tensor((0.15, 0.2, 0.12)).double(), atol=0, rtol=0.06
            )
    assert torch.stack(shifts).std().item() == pytest.approx(0.13, rel=0.15)


@pytest.mark.parametrize("alpha", [0.02, 0.06])
def test_echoes_of_fog_are_the_integral_s_largest_value(alpha: float) -> None:
    """At some ranges, by a sum over the pulse, one value after another."""
    ranges, strengths = echo_table(alpha)
    speed, pulse = 299_792_458.0, 2e-8

    def response(at: float) -> float:
        times = np.linspace(0, 2 * pulse, 4001)
        total = 0.0
        for time in times:
            r = at - speed * time / 2
            overlap = min(max((r - 0.9) / 0.1, 0), 1)
            if overlap:
                total += math.sin(math.pi * time / (2 * pulse)) ** 2 * math.exp(-2 * alpha * r) * overlap / r**2
        return total * (times[1] - times[0])

    for target in (1.5, 3.0, 8.0, 60.0):
        candidates = np.linspace(0, 200, 2000)
        candidates = candidates[(candidates <= target) & (candidates < 12)]
        values = [response(at) for at in candidates]
        entry = round(10 * target)
        assert strengths[entry] == pytest.approx(max(values), rel=2e-3)
        assert ranges[entry] == pytest.approx(candidates[int(np.argmax(values))] - speed * pulse / 2, abs=0.11)
    assert strengths[0] == 0 and (np.diff(strengths) >= 0).all()
    # As in the published tables, from 5 m on the echo comes from about 1.3 m and does not depend on the target.
    assert len(set(strengths[60:])) == 1 and 1 < ranges[-1] < 2.5


def test_fog_dims_points_or_moves_them_to_its_echo() -> None:
    frame = driving()
    points = fog_points(frame, generator(), 0.06, 0.05).points
    draws = generator().random(len(points), np.float32)
    echoes, strengths = echo_table(0.06)
    own, moved = own_frames(frame), own_frames(frame.replace(points=points))
    kinds = set()
    for row, (before, after) in enumerate(zip(own, moved, strict=True)):
        r, intensity = float(before.norm()), float(frame.points[row, 3])
        hard = round(intensity * math.exp(-2 * 0.06 * r))
        soft = strengths[round(r * 10)] * intensity * r**2 * 0.05 / TARGET_REFLECTIVITY
        kinds.add(soft > hard)
        if soft > hard:
            place = before * echoes[round(r * 10)] / r * (r / (r - 10 + 20 * draws[row]))
            torch.testing.assert_close(after, place, rtol=1e-3, atol=1e-3)
            assert float(points[row, 3]) == pytest.approx(soft, rel=1e-4)
        else:
            torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
            assert float(points[row, 3]) == hard
    assert len(points) == len(frame.points) and True in kinds


def test_points_are_lost_in_holes_doubled_and_noisy() -> None:
    frame = driving(2000)
    count = len(frame.points)
    assert len(nuscenes_c.density(5)(frame, generator()).points) == count - int(0.3 * count)
    holes = cutout(frame, generator(), 3)
    size = int(0.02 * count)
    rows, random = list(range(count)), generator()
    for _ in range(3):
        centre = frame.points[rows[int(random.integers(len(rows)))]]
        apart = {row: float((frame.points[row] - centre).square().sum()) for row in rows}
        rows = sorted(sorted(rows, key=apart.__getitem__)[size:])
    assert torch.equal(holes.points, frame.points[rows])
    for corruption, changed in ((nuscenes_c.crosstalk(5), 0.02), (nuscenes_c.impulse_lidar(5), 0.1)):
        difference = corruption(frame, generator()).points - frame.points
        struck = (difference != 0).any(dim=1)
        assert struck.float().mean().item() == pytest.approx(changed, abs=0.001)
    torch.testing.assert_close(
        difference[struck].abs(), torch.full_like(difference[struck], 0.1), atol=1e-4, rtol=0
    )
    normal = nuscenes_c.gaussian_lidar(5)(frame, generator()).points - frame.points
    even = nuscenes_c.uniform_lidar(5)(frame, generator()).points - frame.points
    assert normal.std().item() == pytest.approx(0.1, rel=0.02)
    assert even.abs().max().item() == pytest.approx(0.1, rel=0.01)
    assert even.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
