"""Order, distribution over ranks, collation, workers, and resuming anywhere."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmt_aqr.data.augmentation import ImageAugmentation, SceneAugmentation
from cmt_aqr.data.collate import collate
from cmt_aqr.data.dataset import FrameLoader, FrameSampler, SampleKey, frame_generator
from cmt_aqr.data.errors import DataError
from cmt_aqr.structures import Batch
from tests.helpers.commands import environment
from tests.helpers.small_data import ready


def test_the_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = FrameSampler(20, 2, training=True, seed=seed)
        sampler.set_epoch(epoch)
        assert {key.epoch for key in sampler} == {epoch}
        return [key.frame for key in sampler]

    assert order(0, 3) == order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert sorted(order(0, 3)) == list(range(20))


def samplers(frames: int, batch_size: int, training: bool, ranks: int) -> list[FrameSampler]:
    found = [FrameSampler(frames, batch_size, training, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    assert [len(list(sampler)) for sampler in found] == list(map(len, found))
    return found


def test_the_ranks_share_the_batches_of_one_process_with_a_larger_batch_size() -> None:
    single, ranks = list(FrameSampler(26, 6, training=True)), samplers(26, 2, True, 3)
    assert len(single) == 24
    assert [(len(rank), rank.batches) for rank in ranks] == [(8, 4)] * 3
    for step in range(4):
        batches = [key for rank in ranks for key in list(rank)[2 * step : 2 * step + 2]]
        assert sorted(batches) == sorted(single[6 * step : 6 * step + 6])


@pytest.mark.parametrize(("frames", "ranks", "length"), [(1, 1, 1), (1, 2, 1), (3, 2, 2), (5, 2, 3), (6, 2, 3)])
def test_few_frames_are_one_step(frames: int, ranks: int, length: int) -> None:
    found = samplers(frames, 3, True, ranks)
    assert set(map(len, found)) == {length}
    assert {key.frame for sampler in found for key in sampler} == set(range(frames))


@pytest.mark.parametrize(("frames", "ranks"), [(7, 2), (6, 2), (3, 3), (10, 4)])
def test_evaluation_takes_every_frame_once(frames: int, ranks: int) -> None:
    assert sorted(key.frame for sampler in samplers(frames, 2, False, ranks) for key in sampler) == [
        *range(frames)
    ]


def test_every_rank_evaluates_a_frame() -> None:
    """Lightning skips the evaluation on a rank without one, and the others would wait for it."""
    assert [[key.frame for key in sampler] for sampler in samplers(2, 2, False, 5)] == [[0], [1], [0], [1], [0]]


def test_generator_depends_on_every_part_of_the_key() -> None:
    keys = [SampleKey(0, 0), SampleKey(1, 0), SampleKey(0, 1), SampleKey(0, 0, 1)]
    draws = [frame_generator(0, key).random() for key in keys] + [frame_generator(1, keys[0]).random()]
    assert len(set(draws)) == 5
    assert frame_generator(0, keys[0]).random() == draws[0]


AUGMENTED = {
    "scene_augmentation": SceneAugmentation((-0.5, 0.5), (0.9, 1.1), (0.5, 0.5, 0.5), 0.5, 0.5),
    "image_augmentation": ImageAugmentation((0.9, 1.2), 0.5),
    "batch_size": 1,
    "sweeps": 1,
}


def training_loader(root: Path, cache: Path, workers: int) -> FrameLoader:
    return ready("fit", root, cache, num_workers=workers, **AUGMENTED).train_dataloader()


def digest(batch: Batch) -> tuple:
    parts = (batch.points, batch.images, batch.lidar2img, batch.boxes, batch.labels)
    return batch.tokens, tuple(part.double().sum().item() for part in parts)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_within_an_epoch(small_root: Path, tmp_path: Path, workers: int) -> None:
    unbroken = training_loader(small_root, tmp_path, 0)
    expected = [[digest(batch) for batch in unbroken] for _ in range(3)]
    assert len({tokens for tokens, _ in expected[0]}) == 3
    assert expected[0] != expected[1]

    stopped = training_loader(small_root, tmp_path, workers)
    list(stopped)
    iterator = iter(stopped)
    assert [digest(next(iterator)) for _ in range(2)] == expected[1][:2]
    state = stopped.state_dict()
    assert (state["epoch"], state["batches_done"]) == (1, 2)

    resumed = training_loader(small_root, tmp_path, 2 - workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert len(resumed) == 3
    resumed.frame_sampler.set_epoch(1)  # as Lightning does
    assert [digest(batch) for batch in resumed] == expected[1][2:]
    resumed.frame_sampler.set_epoch(2)
    assert [digest(batch) for batch in resumed] == expected[2]


def test_a_position_in_other_batches_is_refused(small_root: Path, tmp_path: Path) -> None:
    loader = training_loader(small_root, tmp_path, 0)
    state = loader.state_dict()
    within = {**state, "batches_done": 1, "batch_size": 2, "frames": 8, "ranks": 1}
    with pytest.raises(DataError, match=r"epoch 0, .*frames 8 -> 3, batch_size 2 -> 1"):
        loader.load_state_dict(within)
    loader.load_state_dict({**within, "batches_done": 0, "epoch": 4})
    assert loader.frame_sampler.epoch == 4


def test_collate_keeps_counts_and_order(small_root: Path, tmp_path: Path) -> None:
    data = ready("validate", small_root, tmp_path)
    frames = [data.dataset("val")[number] for number in range(3)]
    batch = collate(frames)
    assert batch.tokens == tuple(frame.token for frame in frames)
    assert batch.point_counts == tuple(len(frame.points) for frame in frames)
    for number, frame in enumerate(frames):
        assert torch.equal(batch.boxes_of_each()[number], frame.boxes)
        assert torch.equal(batch.labels_of_each()[number], frame.labels)
        assert torch.equal(batch.points.split(batch.point_counts)[number], frame.points)
        assert torch.equal(batch.images[number], frame.images)
        assert torch.equal(batch.lidar2img[number], frame.lidar2img.float())
        assert torch.equal(batch.lidar2global[number], frame.lidar2global)
    assert collate([frame.replace(images=None) for frame in frames]).images is None
    single = collate(frames[:1])  # not copied
    assert single.images.shape == (1, *frames[0].images.shape) and single.points.shape == frames[0].points.shape
    assert single.images.data_ptr() == frames[0].images.data_ptr()
    assert single.points.data_ptr() == frames[0].points.data_ptr()


@pytest.mark.parametrize("method", ["forkserver", "spawn", "loky"])
def test_the_start_method_does_not_depend_on_the_default(small_root: Path, tmp_path: Path, method: str) -> None:
    """Other libraries change the default of the process, as joblib's launcher does."""
    if method == "loky":
        pytest.importorskip("joblib.externals.loky.backend", reason="pip install -e '.[sweeps]'")
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        loader = training_loader(small_root, tmp_path, 2)
        assert len(list(loader)) == 3
        actual = loader.multiprocessing_context.get_start_method()
        assert actual == ("fork" if sys.platform == "linux" else "spawn")
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_workers_end_with_their_process_and_other_children_are_not_killed(
    small_root: Path, tmp_path: Path
) -> None:
    """Workers ignore SIGTERM, which Python sends to daemonic children at exit; other children may handle it.

    A forked copy of the process may exit, and the workers continue for the process that started them.
    """
    program = (
        "import multiprocessing, os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from tests.data.test_loading import training_loader\n"
        "root, cache = map(Path, sys.argv[1:])\n"
        "def other(ready):\n"
        "    def ended(*_):\n"
        "        (cache / 'ended').write_text('in its own way')\n"
        "        os._exit(0)\n"
        "    signal.signal(signal.SIGTERM, ended)\n"
        "    ready.set()\n"
        "    time.sleep(60)\n"
        "context = multiprocessing.get_context('fork')\n"
        "ready = context.Event()\n"
        "context.Process(target=other, args=(ready,), daemon=True).start()\n"
        "ready.wait()\n"
        "loader = training_loader(root, cache, 2)\n"
        "list(loader)\n"
        "copy = os.fork()\n"
        "if copy == 0:\n"
        "    sys.stderr = sys.stdout\n"
        "    sys.exit()\n"
        "assert os.waitpid(copy, 0)[1] == 0\n"
        "left = iter(loader)\n"
        "print(next(left).size)\n"
    )
    command = [sys.executable, "-c", program, str(small_root), str(tmp_path)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    # Python's own exit handler fails in the copy, too; ours must not.
    assert "_end_workers" not in done.stdout
    assert done.stdout.endswith("1\n")
    assert (tmp_path / "ended").read_text(encoding="utf-8") == "in its own way"


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_keeps_its_message(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DataError("/d/x DataError: y.bin is truncated: copy it again")

    monkeypatch.setattr("cmt_aqr.data.reading.read_image", refuse)
    with pytest.raises(DataError) as error:
        next(iter(training_loader(small_root, tmp_path, workers)))
    assert str(error.value) == "/d/x DataError: y.bin is truncated: copy it again"
