"""Suites as configuration, what they draw from, sensors that are late or moved, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.constants import CAMERAS
from cmt_aqr.data.corruptions import multicorrupt, nuscenes_r
from cmt_aqr.data.corruptions.corruption import Corruption
from cmt_aqr.data.corruptions.delays import Stuck
from cmt_aqr.data.corruptions.nuscenes_r import EGO_IN_LIDAR, draw_extrinsic_errors
from cmt_aqr.data.dataset import SampleKey, frame_generator
from cmt_aqr.data.faults import SomeFrames
from cmt_aqr.data.sampling import with_more_points
from cmt_aqr.errors import UserError
from cmt_aqr.runs.configuration import build, build_data
from cmt_aqr.structures import Frame, FrameSource
from tests.helpers.composed import CONF, composed
from tests.helpers.small_data import ready
from tests.helpers.struck import driving, generator, photograph

OPTIONS = sorted(
    f"{path.parent.name}/{path.stem}" for path in (CONF / "eval_fault").glob("*/*.yaml") if path.stem != "any"
)
SUITES = {"mome": 6, "multicorrupt": 10, "nuscenes_r": 12, "nuscenes_c": 10}
IN_SUITES = [option for option in OPTIONS if option.split("/")[0] in SUITES]


def test_every_condition_is_in_its_suite_and_may_be_trained_on() -> None:
    config = composed("+suite=all")
    listed = sorted(f"{suite}/{name}" for suite, members in config.conditions.items() for name in members)
    assert listed == IN_SUITES
    assert {suite: len(members) for suite, members in config.conditions.items()} == SUITES
    for option in IN_SUITES:
        both = composed(f"fault={option}", f"eval_fault={option}")
        training, evaluation = both.fault, both.eval_fault
        assert (training.share, evaluation.share) == (0.5, 1.0)
        training.share = 1.0
        assert training == evaluation
        suite, name = option.split("/")
        assert OmegaConf.to_container(config.conditions[suite][name]) == OmegaConf.to_container(evaluation)
        assert len(build(evaluation).faults) == 1


@pytest.mark.parametrize("suite", SUITES)
def test_a_mix_draws_from_all_conditions_of_a_suite(suite: str) -> None:
    config = composed(f"fault={suite}/any", *(["fault.severity=2"] if "corrupt" in suite else [])).fault
    assert len(build(config).faults) == SUITES[suite]
    severities = {
        fault.severity for fault in config.values() if isinstance(fault, DictConfig) and "severity" in fault
    }
    assert severities <= ({2} if suite == "multicorrupt" else {1})
    both = build(
        composed("fault=fog", f"+fault/{OPTIONS[0].split('/')[0]}@fault={OPTIONS[0].split('/')[1]}").fault
    )
    assert set(both.faults) == {"fog", OPTIONS[0].split("/")[1]}


def of_option(option: str) -> Corruption:
    (fault,) = build(composed(f"eval_fault={option}").eval_fault).faults.values()
    return fault


@pytest.mark.parametrize("option", OPTIONS)
def test_a_condition_strikes_what_it_says_and_changes_nothing_in_place(
    option: str, small_root: Path, tmp_path: Path
) -> None:
    data = ready("validate", small_root, tmp_path)
    frame, fault = data.dataset("val").reader.read(2), of_option(option)
    before = (frame.points.clone(), frame.images.clone(), frame.lidar2img.clone())
    changed = {"lidar": False, "camera": False}
    for number in range(16):
        struck = fault(frame, frame_generator(number, SampleKey(0, 2)))
        assert struck.images.dtype == torch.uint8
        changed["lidar"] |= not torch.equal(struck.points, before[0])
        changed["camera"] |= not torch.equal(struck.images, before[1])
        changed["camera"] |= not torch.equal(struck.lidar2img, before[2])
        alone = fault(frame.replace(images=None), frame_generator(number, SampleKey(0, 2)))
        assert torch.equal(alone.points, struck.points)  # a LiDAR-only model sees the same points
        again = fault(frame, frame_generator(number, SampleKey(0, 2)))
        assert torch.equal(again.points, struck.points) and torch.equal(again.images, struck.images)
    assert {sensor for sensor, is_changed in changed.items() if is_changed} == fault.strikes
    blind = fault(frame.replace(points=torch.zeros(0, 5), returns=None), frame_generator(15, SampleKey(0, 2)))
    assert torch.equal(blind.images, struck.images)
    assert torch.equal(frame.points, before[0]) and torch.equal(frame.images, before[1])


def test_draws_depend_on_seed_frame_and_name_alone(small_root: Path, tmp_path: Path) -> None:
    faults = SomeFrames(
        0.8, 2, a=multicorrupt.fog(2), b=multicorrupt.motionblur(3), c=nuscenes_r.camera_stuck(0.9)
    )

    def loaded(**changes: Any) -> list[torch.Tensor]:
        data = ready("fit", small_root, tmp_path, train_fault=faults, eval_fault=faults, batch_size=1, **changes)
        batches = [*data.train_dataloader(), *data.val_dataloader()]
        return [tensor for batch in batches for tensor in (batch.points, batch.images) if tensor is not None]

    here = loaded()
    for other in (loaded(num_workers=2), loaded(cache_frames=True)):
        assert all(torch.equal(left, right) for left, right in zip(here, other, strict=True))
    assert not all(torch.equal(left, right) for left, right in zip(here, loaded(seed=1), strict=True))
    frame = driving().replace(images=photograph())
    used = generator()
    used.random(100)
    fault = multicorrupt.missingcamera(2)
    assert torch.equal(fault(frame, used).images, fault(frame, generator()).images)
    renamed = Corruption("another", cameras=fault.cameras)
    drawn = [[one(frame, generator(number)).images for number in range(6)] for one in (fault, renamed)]
    assert not all(torch.equal(left, right) for left, right in zip(*drawn, strict=True))
    # What is struck at a severity is struck at the next.
    lost = [multicorrupt.missingcamera(severity)(frame, generator(3)).images for severity in (1, 2, 3)]
    dark = [(images == 0).flatten(1).all(dim=1) for images in lost if images is not None]
    assert (dark[0] <= dark[1]).all() and (dark[1] <= dark[2]).all()


def test_a_failure_of_a_sensor_that_is_not_read_is_refused(tmp_path: Path) -> None:
    where = (f"data.root={tmp_path}", f"data.cache_dir={tmp_path}", "aqr=none")
    for model, option, sensor in (
        ("tiny_lidar", "mome/view_drop", "cameras"),
        ("tiny_camera", "mome/fov60", "LiDAR"),
    ):
        for group in ("fault", "eval_fault"):
            with pytest.raises(
                UserError, match=rf"{group}: it strikes the {sensor} alone, which this model does not"
            ):
                build_data(composed(f"model={model}", f"{group}={option}", *where))
        build_data(composed(f"model={model}", "eval_fault=multicorrupt/fog", *where))


def test_images_at_half_size_are_refused_where_pixels_count(tmp_path: Path) -> None:
    where = (f"data.root={tmp_path}", f"data.cache_dir={tmp_path}", "data.half_size_images=true")
    with pytest.raises(UserError, match=r"data.half_size_images=true with eval_fault="):
        build_data(composed("eval_fault=multicorrupt/motionblur", *where))
    build_data(composed("eval_fault=mome/fov60", "fault=multicorrupt/motionblur", *where))


def test_pasted_points_get_a_file_and_a_ring() -> None:
    frame = driving()
    whole = with_more_points(frame.keep_points(torch.arange(0, 1200, 2)), frame.points[1::2])
    order = [*range(0, 1200, 2), *range(1, 1200, 2)]
    assert torch.equal(whole.points, frame.points[order])
    assert torch.equal(whole.returns.sweep, frame.returns.sweep[order])
    assert torch.equal(whole.returns.ring, frame.returns.ring[order])


class Source:
    """A split of two scenes without files: what a sensor shows is the number of the frame."""

    def __init__(self, number: int, scene: int = 30) -> None:
        self.number = number
        self.scene = scene

    def earlier(self, count: int, same_scene: bool = True) -> FrameSource | None:
        number = self.number - count
        if number < 0 or (same_scene and number // self.scene != self.number // self.scene):
            return None
        return Source(number, self.scene)


def shown_numbers(stuck: Stuck, frames: int, sensors: int = 1, sensor: int = 0) -> list[int]:
    return [
        stuck.source_shown(Source(number), generator(number), sensor, sensors).number for number in range(frames)
    ]


def test_stuck_sensors_show_the_keyframe_before() -> None:
    shown = shown_numbers(Stuck("name", 0.3), 1500)
    late = np.arange(1500) - shown
    assert set(late) == {0, 1} and not late[::30].any()
    assert late.sum() / (1500 - 50) == pytest.approx(0.3, abs=0.04)
    assert shown_numbers(Stuck("name", 0.3), 60, 6, 2) != shown_numbers(Stuck("name", 0.3), 60, 6, 3)
    assert shown_numbers(Stuck("name", 1.0), 40)[:3] == [0, 0, 1]


def test_sensors_stuck_in_bursts_show_the_last_that_was_not() -> None:
    stuck = Stuck("name", 0.5, burst=4)
    shown = np.array(shown_numbers(stuck, 1800))
    is_stuck = shown != np.arange(1800)
    assert is_stuck.mean() == pytest.approx(0.5 * 29 / 30, abs=0.06)
    for number in range(1800):
        expected = number
        while is_stuck[expected]:
            expected -= 1
        assert shown[number] == expected
    starts = np.flatnonzero(is_stuck & ~np.roll(is_stuck, 1))
    lengths = [int(np.argmin(np.append(is_stuck[start:], False))) for start in starts if start % 30 < 25]
    assert min(lengths) == 4


def test_late_files_take_the_places_of_a_frame_s_own(small_root: Path, tmp_path: Path) -> None:
    data = ready("validate", small_root, tmp_path, val_split="mini_train", sweeps=1)
    reader = data.dataset("val").reader
    frames = [reader.read(number) for number in range(3)]
    late = multicorrupt.temporalmisalignment(3)
    struck, images = 0, 0
    for seed in range(40):
        for number, frame in enumerate(frames):
            shown: Frame = late(frame, frame_generator(seed, SampleKey(0, number)))
            for view in range(len(CAMERAS)):
                same = torch.equal(shown.images[view], frame.images[view])
                assert same or (number and torch.equal(shown.images[view], frames[number - 1].images[view]))
                images += not same
            if torch.equal(shown.points, frame.points):
                continue
            assert number == 2  # from the third frame on
            struck += 1
            before, own = frames[1], frame.returns
            # The keyframe's file of the frame before, at its own coordinates, as if they were this frame's.
            assert torch.equal(shown.points[shown.returns.sweep == 0], before.points[before.returns.sweep == 0])
            for sweep, (now, then) in enumerate(zip(own.motions, before.returns.motions, strict=True)):
                expected = before.points[before.returns.sweep == sweep]
                move = now @ torch.linalg.inv(then)
                moved = expected[:, :3].double() @ move[:3, :3].T + move[:3, 3]
                found = shown.points[shown.returns.sweep == sweep]
                torch.testing.assert_close(found[:, :3].double(), moved, atol=1e-4, rtol=0)
                assert set(found[:, 4].tolist()) == set(frame.points[own.sweep == sweep, 4].tolist())
    assert struck / 40 == pytest.approx(0.6, abs=0.25) and images / (40 * 2 * 6) == pytest.approx(0.6, abs=0.08)
    stuck = nuscenes_r.lidar_stuck(1.0)(frames[1], frame_generator(0, SampleKey(0, 1)))
    assert torch.equal(stuck.points, frames[0].points)


def test_moved_cameras_turn_about_the_ego_frame() -> None:
    frame = driving().replace(images=photograph(), lidar2img=torch.eye(4).repeat(6, 1, 1))
    angles, shifts = [], []
    for number in range(200):
        moved = nuscenes_r.extrinsics()(frame, generator(number)).lidar2img.double()
        assert torch.equal(moved, moved[:1].expand(6, 4, 4))
        back = torch.linalg.inv(moved[0])  # what the error does to points
        angles.append(np.degrees(np.arccos(np.clip((float(back[:3, :3].trace()) - 1) / 2, -1, 1))))
        centre = torch.tensor(EGO_IN_LIDAR, dtype=torch.float64)
        shifts.append((back[:3, :3] @ centre + back[:3, 3] - centre).abs())
    assert min(angles) + 1e-3 >= 0.5 and max(angles) <= 2.5 + 1e-3 and max(angles) - min(angles) > 1.8
    assert torch.stack(shifts).min() + 1e-6 >= 0.005 and torch.stack(shifts).max() <= 0.01 + 1e-6
    single = nuscenes_r.extrinsics(together=False)(frame, generator()).lidar2img
    assert len({tuple(matrix.flatten().tolist()) for matrix in single}) == 6
    moves = draw_extrinsic_errors(3000, np.random.default_rng(0), (10.0, 10.0), (0.0, 0.0))
    axes = np.stack(
        [moves[:, 2, 1] - moves[:, 1, 2], moves[:, 0, 2] - moves[:, 2, 0], moves[:, 1, 0] - moves[:, 0, 1]]
    )
    assert np.abs(axes.mean(axis=1)).max() < 0.02 and np.ptp(axes.var(axis=1)) < 0.01
