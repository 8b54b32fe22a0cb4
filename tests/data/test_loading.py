"""Order, sharing between processes, and stopping and going on anywhere."""

import multiprocessing
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from cmt_aqr.data.augmentation import ImageAugmentation, SceneAugmentation
from cmt_aqr.data.collate import collate
from cmt_aqr.data.dataset import FrameLoader, FrameSampler, SampleKey, frame_generator
from cmt_aqr.data.errors import DataError
from cmt_aqr.structures import Batch
from tests.helpers.commands import environment
from tests.helpers.small_data import datamodule, ready
from tests.helpers.trainers import quiet_trainer


def test_order_is_decided_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = FrameSampler(20, 2, training=True, seed=seed)
        sampler.set_epoch(epoch)
        assert {key.epoch for key in sampler} == {epoch}
        return [key.frame for key in sampler]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert sorted(order(0, 3)) == list(range(20))


def test_ranks_make_the_batches_of_one_process_with_a_larger_batch() -> None:
    whole = list(FrameSampler(26, 6, training=True))
    ranks = [FrameSampler(26, 2, training=True, num_replicas=3, rank=rank) for rank in range(3)]
    assert len(whole) == 24
    assert [len(rank) for rank in ranks] == [8, 8, 8]
    assert [rank.batches for rank in ranks] == [4, 4, 4]
    for step in range(4):
        together = [key for rank in ranks for key in list(rank)[2 * step : 2 * step + 2]]
        assert sorted(together) == sorted(whole[6 * step : 6 * step + 6])


@pytest.mark.parametrize(("frames", "ranks", "expected"), [(1, 1, 1), (1, 2, 1), (3, 2, 2), (5, 2, 3), (6, 2, 3)])
def test_few_frames_still_make_one_step(frames: int, ranks: int, expected: int) -> None:
    samplers = [FrameSampler(frames, 3, True, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    assert {len(list(sampler)) for sampler in samplers} == {len(samplers[0])} == {expected}
    assert {key.frame for sampler in samplers for key in sampler} == set(range(frames))


@pytest.mark.parametrize(("frames", "ranks"), [(7, 2), (6, 2), (3, 3), (10, 4)])
def test_evaluation_sees_every_frame_once(frames: int, ranks: int) -> None:
    samplers = [FrameSampler(frames, 2, False, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    seen = [key.frame for sampler in samplers for key in sampler]
    assert sorted(seen) == list(range(frames))
    assert [len(list(sampler)) for sampler in samplers] == [len(sampler) for sampler in samplers]


def test_in_evaluation_every_rank_has_a_frame() -> None:
    """Lightning leaves the evaluation out on a rank without one, and the others would wait for it."""
    samplers = [FrameSampler(2, 2, False, num_replicas=5, rank=rank) for rank in range(5)]
    assert [[key.frame for key in sampler] for sampler in samplers] == [[0], [1], [0], [1], [0]]
    assert {len(sampler) for sampler in samplers} == {1}


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
    data = ready("fit", root, cache, num_workers=workers, **AUGMENTED)
    return data.train_dataloader()


def digest(batch: Batch) -> tuple:
    parts = (batch.points, batch.images, batch.lidar2img, batch.boxes, batch.labels)
    return batch.tokens, tuple(part.double().sum().item() for part in parts)


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_in_the_middle_of_an_epoch(small_root: Path, tmp_path: Path, workers: int) -> None:
    unbroken = training_loader(small_root, tmp_path, 0)
    expected = [[digest(batch) for batch in unbroken] for _ in range(3)]
    assert len({tokens for tokens, _ in expected[0]}) == 3
    assert expected[0] != expected[1]

    stopped = training_loader(small_root, tmp_path, workers)
    list(stopped)
    iterator = iter(stopped)
    head = [digest(next(iterator)), digest(next(iterator))]
    assert head == expected[1][:2]
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


def test_position_in_other_batches_is_refused(small_root: Path, tmp_path: Path) -> None:
    loader = training_loader(small_root, tmp_path, 0)
    state = loader.state_dict()
    within = {**state, "batches_done": 1, "batch_size": 2, "frames": 8, "ranks": 1}
    with pytest.raises(DataError, match=r"within epoch 0, after 1 batches.*frames 8 -> 3, batch_size 2 -> 1"):
        loader.load_state_dict(within)
    loader.load_state_dict({**within, "batches_done": 0, "epoch": 4})
    assert loader.frame_sampler.epoch == 4


class Recorder(pl.LightningModule):
    """Remembers what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[tuple] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch_idx, *digest(batch)))
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(pl.Callback):
    """Saves a checkpoint after a step, as ModelCheckpoint does, and stops there, as a kill would."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def fit(
    root: Path, cache: Path, workers: int, callbacks: Sequence[pl.Callback] = (), ckpt: Path | None = None
) -> list:
    trainer = quiet_trainer(max_epochs=3, num_sanity_val_steps=0, callbacks=list(callbacks))
    module = Recorder()
    data = datamodule(root, cache, num_workers=workers, **AUGMENTED)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=ckpt)
    except (KeyboardInterrupt, SystemExit):
        assert callbacks
    return module.seen


@pytest.mark.filterwarnings("ignore")
def test_lightning_goes_on_with_the_same_batches(small_root: Path, tmp_path: Path) -> None:
    expected = fit(small_root, tmp_path, 0)
    assert len(expected) == 9
    for step in (1, 4, 5, 6):
        path, workers = tmp_path / f"stopped{step}.ckpt", 2 if step == 4 else 0
        assert fit(small_root, tmp_path, workers, [SaveAt(step, path)]) == expected[:step]
        assert fit(small_root, tmp_path, 0, ckpt=path) == expected[step:]


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
    alone = collate(frames[:1])  # megabytes that are not copied
    assert torch.equal(alone.images[0], batch.images[0])
    assert alone.images.data_ptr() == frames[0].images.data_ptr()
    assert alone.points.data_ptr() == frames[0].points.data_ptr() and alone.points.shape == frames[0].points.shape


@pytest.mark.parametrize("method", ["forkserver", "spawn", "loky"])
def test_workers_start_alike_whatever_the_default(small_root: Path, tmp_path: Path, method: str) -> None:
    """Other libraries change the process' way to start processes: joblib's launcher does."""
    if method == "loky":
        pytest.importorskip("joblib.externals.loky.backend", reason="pip install -e '.[sweeps]'")
    expected, before = (
        list(map(digest, training_loader(small_root, tmp_path, 0))),
        multiprocessing.get_start_method(),
    )
    multiprocessing.set_start_method(method, force=True)
    try:
        loader = training_loader(small_root, tmp_path, 2)
        assert list(map(digest, loader)) == expected
        assert loader.multiprocessing_context.get_start_method() == (
            "fork" if sys.platform == "linux" else "spawn"
        )
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_own_workers_end_with_their_process_and_with_no_other_and_other_children_are_not_killed(
    small_root: Path, tmp_path: Path
) -> None:
    """Workers ignore SIGTERM, with which Python ends daemonic children and which others may answer.

    A copy of the process may end by itself, and the workers go on for the process that started them.
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
    printed = done.stdout
    # Python's own handler complains of a copy in the same way; ours must not.
    assert "_end_workers" not in printed
    assert printed.endswith("1\n")
    assert (tmp_path / "ended").read_text(encoding="utf-8") == "in its own way"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sentence_arrives_whole_from_a_worker(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DataError("/d/x DataError: y.bin is truncated: copy it again")

    monkeypatch.setattr("cmt_aqr.data.reading.read_image", refuse)
    with pytest.raises(DataError) as error:
        next(iter(training_loader(small_root, tmp_path, workers)))
    assert str(error.value) == "/d/x DataError: y.bin is truncated: copy it again"
