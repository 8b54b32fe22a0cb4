"""Suites as configuration, their random numbers, delayed or miscalibrated sensors, and what is refused."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.spatial.transform import Rotation

from cmt_aqr.constants import CAMERAS
from cmt_aqr.data.corruptions import multicorrupt, nuscenes_r
from cmt_aqr.data.corruptions.corruption import Corruption, condition_generator
from cmt_aqr.data.corruptions.delays import Stuck, delay_points
from cmt_aqr.data.corruptions.nuscenes_r import EGO_IN_LIDAR, draw_extrinsic_errors
from cmt_aqr.data.dataset import SampleKey, frame_generator
from cmt_aqr.data.faults import SomeFrames
from cmt_aqr.data.sampling import with_more_points
from cmt_aqr.errors import UserError
from cmt_aqr.runs.configuration import build, build_data
from cmt_aqr.structures import Frame, FrameSource
from tests.helpers.composed import CONF, composed
from tests.helpers.small_data import ready
from tests.helpers.struck import cameras_around, driving, generator, photograph

SUITES = {"mome": 6, "multicorrupt": 10, "nuscenes_r": 12, "nuscenes_c": 10}
OPTIONS = sorted(
    path.relative_to(CONF / "eval_fault").with_suffix("").as_posix()
    for path in (CONF / "eval_fault").rglob("*.yaml")
    if path.stem not in ("any", "none")
)
CONDITIONS = [option for option in OPTIONS if "/" in option]


@cache
def everything() -> dict[str, Any]:
    """Every option of ``fault`` and ``eval_fault``, and the conditions of all suites, composed at once."""
    overrides = []
    for group in ("fault", "eval_fault"):
        for option in OPTIONS:
            path = Path(group, option)
            overrides.append(f"+{path.parent}@{group}s.{option.replace('/', '.')}={path.name}")
    return OmegaConf.to_container(composed("+suite=all", *overrides))


def test_every_condition_is_in_its_suite_and_may_be_trained_on() -> None:
    training, evaluation, conditions = (everything()[name] for name in ("faults", "eval_faults", "conditions"))
    assert {suite: len(members) for suite, members in conditions.items()} == SUITES
    assert {suite: evaluation[suite] for suite in SUITES} == conditions
    for option in OPTIONS:
        suite, _, name = option.rpartition("/")
        faults = [(group[suite] if suite else group)[name] for group in (training, evaluation)]
        assert [fault["share"] for fault in faults] == [0.5, 1.0]
        assert faults[0] | {"share": 1.0} == faults[1]


@pytest.mark.parametrize("suite", SUITES)
def test_a_mix_draws_from_all_conditions_of_a_suite(suite: str) -> None:
    severity = ["fault.severity=2"] if suite == "multicorrupt" else []
    config = composed(f"fault={suite}/any", *severity).fault
    assert len(build(config).faults) == SUITES[suite]
    severities = {fault.severity for fault in config.values() if "severity" in getattr(fault, "keys", list)()}
    assert severities <= ({2} if severity else {1})


def test_a_mix_of_ones_own() -> None:
    assert set(build(composed("fault=fog", "+fault/mome@fault=fov60").fault).faults) == {"fog", "fov60"}


@pytest.fixture(scope="module")
def frame(small_root: Path, cache: Path) -> Frame:
    return ready("validate", small_root, cache).dataset("val").reader.read(2)


@pytest.mark.parametrize("option", CONDITIONS)
def test_a_condition_strikes_its_sensors_and_changes_nothing_in_place(option: str, frame: Frame) -> None:
    suite, name = option.split("/")
    (fault,) = build(OmegaConf.create(everything()["eval_faults"][suite][name])).faults.values()
    before = frame.replace(points=frame.points.clone(), images=frame.images.clone())
    changed: set[str] = set()
    for number in range(16):
        key = SampleKey(0, 2)
        struck = fault(frame, frame_generator(number, key))
        fields = {"points": "lidar", "images": "camera", "lidar2img": "camera"}
        pairs = {field: (getattr(struck, field), getattr(before, field)) for field in fields}
        changed |= {fields[field] for field, pair in pairs.items() if not torch.equal(*pair)}
        assert changed <= fault.strikes
        if changed == fault.strikes:
            break
    assert changed == fault.strikes and struck.images.dtype == torch.uint8
    again = fault(frame, frame_generator(number, key))
    assert torch.equal(again.points, struck.points) and torch.equal(again.images, struck.images)
    lidar_only = fault(frame.replace(images=None), frame_generator(number, key))
    assert torch.equal(lidar_only.points, struck.points)
    camera_only = fault(frame.replace(points=torch.zeros(0, 5), returns=None), frame_generator(number, key))
    assert torch.equal(camera_only.images, struck.images)
    assert torch.equal(frame.points, before.points) and torch.equal(frame.images, before.images)


def test_random_numbers_do_not_depend_on_how_frames_are_loaded(small_root: Path, tmp_path: Path) -> None:
    faults = SomeFrames(
        0.8, 2, a=multicorrupt.fog(2), b=multicorrupt.motionblur(3), c=nuscenes_r.camera_stuck(0.9)
    )

    def loaded(epoch: int = 0, fault: SomeFrames | None = faults, **changes: Any) -> list[torch.Tensor]:
        """Points and images of the training frames and, evaluated in some epoch, of the validation frames."""
        data = ready("fit", small_root, tmp_path, train_fault=fault, eval_fault=fault, batch_size=1, **changes)
        loader = data.val_dataloader()
        loader.frame_sampler.set_epoch(epoch)
        batches = [*data.train_dataloader(), *loader]
        return [tensor for batch in batches for tensor in (batch.points, batch.images)]

    first = loaded()
    for other in (loaded(num_workers=2), loaded(cache_frames=True), loaded(epoch=5)):
        assert all(torch.equal(left, right) for left, right in zip(first, other, strict=True))
    for other in (loaded(seed=1), loaded(fault=None)):
        assert not all(torch.equal(left, right) for left, right in zip(first, other, strict=True))


def test_random_numbers_depend_on_frame_and_name_but_not_on_severity() -> None:
    frame = driving().replace(images=photograph())
    used, fault = generator(), multicorrupt.missingcamera(2)
    used.random(100)
    assert torch.equal(fault(frame, used).images, fault(frame, generator()).images)
    renamed = Corruption("another", cameras=fault.cameras)
    drawn = [[one(frame, generator(number)).images for number in range(6)] for one in (fault, renamed)]
    assert not all(torch.equal(left, right) for left, right in zip(*drawn, strict=True))
    lost = [multicorrupt.missingcamera(severity)(frame, generator(3)).images for severity in (1, 2, 3)]
    dark = [(images == 0).flatten(1).all(dim=1) for images in lost]
    assert (dark[0] <= dark[1]).all() and (dark[1] <= dark[2]).all()


@pytest.mark.parametrize(
    ("model", "option", "sensor"),
    [("tiny_lidar", "mome/view_drop", "cameras"), ("tiny_camera", "mome/fov60", "LiDAR")],
)
def test_a_failure_of_a_sensor_that_is_not_read_is_refused(
    model: str, option: str, sensor: str, tmp_path: Path
) -> None:
    where = (f"model={model}", f"data.root={tmp_path}", f"data.cache_dir={tmp_path}", "aqr=none")
    for group in ("fault", "eval_fault"):
        with pytest.raises(UserError, match=rf"{group}: .*{sensor}"):
            build_data(composed(f"{group}={option}", *where))
    build_data(composed("eval_fault=multicorrupt/fog", *where))


def test_half_size_images_are_refused_where_pixels_count(tmp_path: Path) -> None:
    where = (f"data.root={tmp_path}", f"data.cache_dir={tmp_path}", "data.half_size_images=true")
    with pytest.raises(UserError, match=r"data.half_size_images=true with eval_fault="):
        build_data(composed("eval_fault=multicorrupt/motionblur", *where))
    build_data(composed("eval_fault=mome/fov60", "fault=multicorrupt/motionblur", *where))


def test_pasted_points_get_a_sweep_and_a_ring() -> None:
    frame = driving()
    joined = with_more_points(frame.keep_points(torch.arange(0, 1200, 2)), frame.points[1::2])
    expected = frame.keep_points(torch.tensor([*range(0, 1200, 2), *range(1, 1200, 2)]))
    assert torch.equal(joined.points, expected.points)
    assert torch.equal(joined.returns.sweep, expected.returns.sweep)
    assert torch.equal(joined.returns.ring, expected.returns.ring)


class Source:
    """A frame of a split with scenes of 30 frames, without files."""

    def __init__(self, number: int) -> None:
        self.number = number

    def earlier(self, count: int, same_scene: bool = True) -> FrameSource | None:
        number = self.number - count
        if number < 0 or (same_scene and number // 30 != self.number // 30):
            return None
        return Source(number)


def shown(stuck: Stuck, frames: int, sensors: int = 1, sensor: int = 0) -> list[int]:
    sources = [(Source(number), generator(number)) for number in range(frames)]
    return [stuck.source_shown(source, random, sensor, sensors).number for source, random in sources]


def test_stuck_sensors_show_the_previous_keyframe() -> None:
    delay = np.arange(1500) - shown(Stuck("name", 0.3), 1500)
    assert set(delay) == {0, 1} and not delay[::30].any()
    assert delay.sum() / (1500 - 50) == pytest.approx(0.3, abs=0.04)
    assert shown(Stuck("name", 0.3), 60, 6, 2) != shown(Stuck("name", 0.3), 60, 6, 3)
    assert shown(Stuck("name", 1.0), 3) == [0, 0, 1]


def test_sensors_stuck_in_bursts_show_the_last_frame_that_was_not() -> None:
    numbers = np.array(shown(Stuck("name", 0.5, burst=4), 1800))
    is_stuck = numbers != np.arange(1800)
    assert is_stuck.mean() == pytest.approx(0.5 * 29 / 30, abs=0.06)
    np.testing.assert_array_equal(numbers, np.maximum.accumulate(np.where(is_stuck, 0, np.arange(1800))))
    starts = np.flatnonzero(is_stuck & ~np.roll(is_stuck, 1))
    lengths = [int(np.argmin(np.append(is_stuck[start:], False))) for start in starts if start % 30 < 25]
    assert min(lengths) == 4


@pytest.fixture(scope="module")
def frames(small_root: Path, cache: Path) -> list[Frame]:
    data = ready("validate", small_root, cache, val_split="mini_train", sweeps=1)
    return [data.dataset("val").reader.read(number) for number in range(3)]


def test_delayed_sweeps_take_the_places_of_a_frames_own(frames: list[Frame]) -> None:
    before, frame = frames[1], frames[2].replace(points=frames[2].points + torch.tensor((0, 0, 0, 0, 0.01)))
    delayed = delay_points(frame, generator(), 1.0)
    # The previous keyframe's own sweep is not moved; every sweep's motion and lag are this frame's.
    own, expected = (one.points[one.returns.sweep == 0, :4] for one in (delayed, before))
    assert torch.equal(own, expected)
    motions = zip(frame.returns.motions, before.returns.motions, strict=True)
    for sweep, (now, then) in enumerate(motions):
        moved = delayed.points[delayed.returns.sweep == sweep]
        move = now @ torch.linalg.inv(then)
        expected = before.points[before.returns.sweep == sweep, :3].double() @ move[:3, :3].T + move[:3, 3]
        torch.testing.assert_close(moved[:, :3].double(), expected, atol=1e-4, rtol=0)
        assert set(moved[:, 4].tolist()) == set(frame.points[frame.returns.sweep == sweep, 4].tolist())


def test_delays_have_their_probability_and_begin_at_the_third_and_the_second_frame(frames: list[Frame]) -> None:
    sweeps, images = np.zeros(3), np.zeros((3, len(CAMERAS)))
    for number in range(3):
        frame, before = frames[number], frames[max(number - 1, 0)]
        for seed in range(40):
            delayed = multicorrupt.temporalmisalignment(3)(frame, frame_generator(seed, SampleKey(0, number)))
            sweeps[number] += not torch.equal(delayed.points, frame.points)
            late = (delayed.images != frame.images).flatten(1).any(dim=1)
            assert torch.equal(delayed.images[late], before.images[late])
            images[number] += late.numpy()
    assert sweeps[:2].sum() == 0 and sweeps[2] / 40 == pytest.approx(0.6, abs=0.25)
    assert images[0].sum() == 0 and images[1:].mean() / 40 == pytest.approx(0.6, abs=0.08)
    stuck = nuscenes_r.lidar_stuck(1.0)(frames[1], frame_generator(0, SampleKey(0, 1)))
    assert torch.equal(stuck.points, frames[0].points)


def test_wrong_extrinsics_rotate_about_the_ego_frame() -> None:
    errors = draw_extrinsic_errors(3000, np.random.default_rng(0))
    rotations, centre = errors[:, :3, :3], np.array(EGO_IN_LIDAR)
    shifts = np.abs(rotations @ centre + errors[:, :3, 3] - centre)
    assert shifts.min() >= 0.005 and shifts.max() <= 0.01
    vectors = Rotation.from_matrix(rotations).as_rotvec(degrees=True)
    angles = np.linalg.norm(vectors, axis=1)
    assert 0.5 <= angles.min() < 0.6 and 2.4 < angles.max() <= 2.5
    axes = vectors / angles[:, None]  # uniform on the sphere
    assert np.abs(axes.mean(axis=0)).max() < 0.03 and np.ptp(axes.var(axis=0)) < 0.03


@pytest.mark.parametrize(("together", "errors"), [(True, 1), (False, 6)])
def test_cameras_share_an_error_or_have_their_own(together: bool, errors: int) -> None:
    frame = driving().replace(images=photograph(), lidar2img=torch.eye(4).repeat(6, 1, 1))
    lidar2img = nuscenes_r.extrinsics(together)(frame, generator()).lidar2img
    assert len(lidar2img.unique(dim=0)) == errors
    angle = math.degrees(math.acos((float(lidar2img[0, :3, :3].trace()) - 1) / 2))
    assert 0.4 < angle < 2.6


def test_wrong_extrinsics_move_points_before_the_cameras_see_them() -> None:
    right = cameras_around(90, 160)
    frame, random = driving().replace(images=photograph(), lidar2img=right), generator()
    wrong = nuscenes_r.extrinsics(together=False)(frame, random).lidar2img
    of_cameras = condition_generator(generator(), "nuscenes_r/extrinsics").spawn(2)[1]
    errors = torch.from_numpy(draw_extrinsic_errors(6, of_cameras))
    torch.testing.assert_close(wrong @ errors, right, rtol=0, atol=1e-9)
