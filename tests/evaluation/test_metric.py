"""The metric against the devkit's own evaluation of a results file."""

import io
import socket
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nuscenes import NuScenes
from nuscenes.eval.common.loaders import load_gt
from nuscenes.eval.detection.data_classes import DetectionBox
from rich.console import Console

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.ground_truth import GroundTruth, load_ground_truth
from cmt_aqr.evaluation import metric as metric_module
from cmt_aqr.evaluation.metric import NuScenesMetric
from cmt_aqr.evaluation.official import evaluate_boxes
from cmt_aqr.evaluation.table import metrics_table
from cmt_aqr.outputs import Detections
from cmt_aqr.structures import Frame
from tests.evaluation.test_official import assert_equal_to
from tests.helpers.made_evaluation import devkit_evaluation, to_rows
from tests.helpers.shared_data import KEYFRAME, needs_keyframe
from tests.helpers.small_data import edited, linked_copy, ready


def official(root: Path, split: str, metric: NuScenesMetric, folder: Path) -> dict[str, Any]:
    """The devkit's DetectionEval of the results file that the metric writes."""
    path = folder / "results_nusc.json"
    metric.write(path, use_camera=True, use_lidar=True)
    tables = NuScenes("v1.0-mini", str(root), verbose=False)
    return devkit_evaluation(tables, path, folder / "devkit", split).evaluate()[0].serialize()


def frames_of(root: Path, cache: Path, split: str) -> list[Frame]:
    dataset = ready("validate", root, cache, val_split=split, cameras=False, sweeps=0).dataset("val")
    return [dataset[number] for number in range(len(dataset))]


def noisy_detections(frames: list[Frame], seed: int = 0) -> list[Detections]:
    """Boxes near the true ones, with scores that fall with the error, some missing and some invented."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for frame in frames:
        kept = torch.rand(len(frame.boxes), generator=random) < 0.8
        boxes, labels = frame.boxes[kept].clone(), frame.labels[kept].clone()
        noise = torch.rand(len(boxes), generator=random)
        shift = torch.randn(len(boxes), 9, generator=random) * noise[:, None]
        boxes[:, :2] += shift[:, :2]
        boxes[:, 3:6] *= (0.2 * shift[:, 3:6]).exp()
        boxes[:, 6:] += 0.3 * shift[:, 6:]
        wrong = torch.rand(len(boxes), generator=random) < 0.15
        labels[wrong] = torch.randint(10, (int(wrong.sum()),), generator=random)
        # Rounded, so that scores tie and their order matters.
        scores = (1 - 0.8 * noise).mul(20).round().div(20)
        found.append(Detections(boxes, scores, labels))
    return found


def filled(truth: GroundTruth, frames: list[Frame], found: list[Detections]) -> NuScenesMetric:
    metric = NuScenesMetric(truth)
    for frame, detections in zip(frames, found, strict=True):
        metric.update([detections], [frame.token], frame.lidar2global[None])
    return metric


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def truth(small_root: Path, cache: Path) -> GroundTruth:
    return load_ground_truth(small_root, "v1.0-mini", "mini_val", cache)


@pytest.fixture
def frames(small_root: Path, cache: Path) -> list[Frame]:
    return frames_of(small_root, cache, "mini_val")


def test_ground_truth_is_the_devkits_from_tables_and_cache(small_root: Path, tmp_path: Path) -> None:
    tables = NuScenes("v1.0-mini", str(small_root), verbose=False)
    with redirect_stderr(io.StringIO()):
        expected = load_gt(tables, "mini_val", DetectionBox)
    for _ in range(2):
        truth = load_ground_truth(small_root, "v1.0-mini", "mini_val", tmp_path)
        assert truth.tokens == tuple(expected.sample_tokens)
        assert [truth.tokens[frame] for frame in truth.frames] == [box.sample_token for box in expected.all]
        np.testing.assert_array_equal(truth.rows, to_rows(expected.all))
        np.testing.assert_array_equal(truth.points, [box.num_pts for box in expected.all])


def test_order_of_arrival_and_repetition_do_not_matter(truth: GroundTruth, frames: list[Frame]) -> None:
    found = noisy_detections(frames)
    expected = filled(truth, frames, found).compute()
    metric = filled(truth, frames[::-1], found[::-1])
    other = noisy_detections(frames, seed=1)
    metric.update([other[0]], [frames[0].token], frames[0].lidar2global[None])  # frame 0 once more
    assert metric.compute() == pytest.approx(expected, abs=0, nan_ok=True)
    metric.reset()
    metric.update(found, [frame.token for frame in frames], torch.stack([f.lidar2global for f in frames]))
    assert metric.compute() == pytest.approx(expected, abs=0, nan_ok=True)


def test_bike_racks_are_filtered_as_by_the_devkit(
    small_root: Path, tmp_path: Path, truth: GroundTruth, frames: list[Frame]
) -> None:
    """A rack over a bicycle or motorcycle removes it from the objects and the detections."""
    root = linked_copy(small_root, tmp_path / "root")
    with (
        edited(root, "category") as categories,
        edited(root, "sample_annotation") as records,
        edited(root, "instance") as instances,
    ):
        categories.append({**categories[0], "token": "rack", "name": "static_object.bicycle_rack"})
        names = {c["token"]: c["name"] for c in categories}
        kinds = {i["token"]: names[i["category_token"]] for i in instances}
        cycles = [r for r in records if kinds[r["instance_token"]] in ("vehicle.bicycle", "vehicle.motorcycle")]
        assert cycles, "no cycle in the tiny data set"
        for number, record in enumerate(cycles):
            rack, annotation = f"rack{number}", f"annotation{number}"
            ends = {
                "first_annotation_token": annotation,
                "last_annotation_token": annotation,
                "nbr_annotations": 1,
            }
            instances.append({**instances[0], "token": rack, "category_token": "rack", **ends})
            alone = {"prev": "", "next": "", "attribute_tokens": [], "size": [3, 3, 3]}
            records.append({**record, "token": annotation, "instance_token": rack, **alone})
    with_racks = load_ground_truth(root, "v1.0-mini", "mini_val", tmp_path / "cache")
    metric = filled(with_racks, frames, noisy_detections(frames))
    ours = metric.compute()
    assert_equal_to(official(root, "mini_val", metric, tmp_path), ours)
    assert ours["AP/bicycle"] == ours["AP/motorcycle"] == 0
    without_racks = evaluate_boxes(truth, metric.detections())
    assert without_racks["AP/bicycle"] + without_racks["AP/motorcycle"] > 0


def perfect(frames: list[Frame], truth: GroundTruth) -> list[Detections]:
    """The annotated boxes, except those that the evaluation ignores for lack of points."""
    found = []
    for frame in frames:
        counted = torch.from_numpy(truth.points[truth.frames == truth.tokens.index(frame.token)] > 0)
        found.append(Detections(frame.boxes[counted], torch.ones(int(counted.sum())), frame.labels[counted]))
    return found


def check_perfect(root: Path, split: str, cache: Path) -> dict[str, float]:
    """The metrics of the ground truth as detections: every class in range is found without an error."""
    truth = load_ground_truth(root, "v1.0-mini", split, cache)
    frames = frames_of(root, cache, split)
    ours = filled(truth, frames, perfect(frames, truth)).compute()
    present = [label for label in CLASSES if ours[f"AP/{label}"] > 0]
    assert ours["mAP"] == pytest.approx(len(present) / 10, abs=1e-6)
    for label in present:
        assert ours[f"AP/{label}"] == pytest.approx(1.0, abs=1e-6)
        assert max(ours[f"ATE/{label}"], ours[f"ASE/{label}"]) < 1e-3
        assert label == "traffic_cone" or ours[f"AOE/{label}"] < 5e-3
    return ours


def test_ground_truth_scores_as_perfect_on_synthetic_data(small_root: Path, cache: Path) -> None:
    ours = check_perfect(small_root, "mini_val", cache)
    assert ours["mAP"] >= 0.5
    moving = [label for label in CLASSES if 0 <= ours[f"AVE/{label}"] < 1]
    assert len(moving) >= 3
    assert all(ours[f"AVE/{label}"] < 0.02 for label in moving)


@needs_keyframe
def test_the_real_keyframe(cache: Path, tmp_path: Path) -> None:
    # Classes are evaluated within 30 to 50 m of the car: of the keyframe's eight classes, the bus, the bicycle and
    # the construction vehicle are further away, so five remain.
    assert check_perfect(KEYFRAME, "mini_train", cache)["mAP"] == pytest.approx(0.5, abs=1e-6)
    truth = load_ground_truth(KEYFRAME, "v1.0-mini", "mini_train", cache)
    frames = frames_of(KEYFRAME, cache, "mini_train")
    metric = filled(truth, frames, noisy_detections(frames))
    ours = metric.compute()
    assert 0.01 < ours["mAP"] < 0.9
    assert_equal_to(official(KEYFRAME, "mini_train", metric, tmp_path), ours)


def test_a_part_of_a_split_is_counted(truth: GroundTruth, frames: list[Frame]) -> None:
    found = perfect(frames, truth)
    part = filled(truth, frames[:1], found[:1]).compute()
    assert (part["frames"], part["frames_of_split"]) == (1, 3)
    names = {CLASSES[label] for label in found[0].labels}
    assert part["mAP"] <= len(names) / 10 + 1e-6
    assert part["AP/car"] == pytest.approx(1.0)
    console = Console(file=io.StringIO(), width=120)
    console.print(metrics_table(part))
    assert "frames: 1 of 3" in console.file.getvalue()  # type: ignore[attr-defined]


def test_refusals(truth: GroundTruth, frames: list[Frame]) -> None:
    metric = NuScenesMetric(truth)
    found = perfect(frames, truth)[0]
    with pytest.raises(DataError, match=r"sample stranger is not in split mini_val of v1\.0-mini"):
        metric.update([found], ["stranger"], frames[0].lidar2global[None])
    with pytest.raises(DataError, match="no frame of split mini_val"):
        evaluate_boxes(truth, NuScenesMetric(truth).detections())


def _rank(rank: int, port: int, truth: GroundTruth, frames: list[Frame], folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = noisy_detections(frames)
    # Three frames on two ranks; a distributed sampler pads with a repeated frame.
    numbers = [0, 2] if rank == 0 else [1, 0]
    if rank == 1:  # it receives the metrics
        metric_module.evaluate_boxes = lambda *_: pytest.fail("computed twice")  # type: ignore[assignment]
    metric = filled(truth, [frames[i] for i in numbers], [found[i] for i in numbers])
    torch.save(metric.compute(), Path(folder) / f"uneven{rank}.pt")
    metric.write(Path(folder) / "results_nusc.json", use_camera=True, use_lidar=True)
    lonely = filled(truth, frames if rank == 0 else [], found if rank == 0 else [])
    torch.save(lonely.compute(), Path(folder) / f"lonely{rank}.pt")
    try:
        filled(truth, [], []).compute()
    except DataError as error:
        torch.save(str(error), Path(folder) / f"error{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_make_the_devkits_number(
    small_root: Path, tmp_path: Path, truth: GroundTruth, frames: list[Frame]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked: a fresh interpreter would spend most of the time on imports.
    arguments = (port, truth, frames, str(tmp_path))
    torch.multiprocessing.start_processes(_rank, arguments, nprocs=2, start_method="fork")
    devkit = official(small_root, "mini_val", filled(truth, frames, noisy_detections(frames)), tmp_path / "one")
    for name in ("uneven", "lonely"):
        for rank in range(2):
            assert_equal_to(devkit, torch.load(tmp_path / f"{name}{rank}.pt"))
        assert torch.load(tmp_path / f"{name}0.pt") == pytest.approx(
            torch.load(tmp_path / f"{name}1.pt"), abs=0, nan_ok=True
        )
    for rank in range(2):
        assert "no frame of split mini_val" in torch.load(tmp_path / f"error{rank}.pt")
    assert (tmp_path / "results_nusc.json").is_file()
