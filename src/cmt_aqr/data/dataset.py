"""Frames in an order that depends on (seed, epoch) only, and a loader that can resume anywhere."""

import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import Dataset, DistributedSampler

from cmt_aqr.data.augmentation import Transform, apply_transforms
from cmt_aqr.data.collate import collate
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.reading import FrameReader
from cmt_aqr.data.resampling import occurrences
from cmt_aqr.data.sampling import ObjectSampler
from cmt_aqr.data.workers import WorkerLoader
from cmt_aqr.structures import Batch, Frame


class SampleKey(NamedTuple):
    """The key of a frame in a data set.

    It includes the epoch, so that worker processes, which live as long as the run, need not be told about it.
    """

    epoch: int  # counted from 0
    frame: int  # position in the index
    repeat: int = 0  # occurrence of the frame in this epoch, if resampling repeats it


def frame_generator(seed: int, key: SampleKey) -> Generator:
    """The random generator of a frame, a function of seed and key."""
    return np.random.default_rng((seed, key.epoch, key.frame, key.repeat))


log = logging.getLogger(__name__)

_SAMPLING_STREAM = 0x6715
"""Separates the draws of object sampling from the others of a frame."""

_MAX_TRIES = 1000
"""Frames to try in place of one without a box."""


def generator_of_frame(random: Generator, frame: int) -> Generator:
    """The generator of another frame in the same epoch that corresponds to ``random`` of this frame.

    ``random`` is from :func:`frame_generator`, or spawned from such a generator.
    """
    sequence = random.bit_generator.seed_seq
    assert isinstance(sequence, np.random.SeedSequence) and isinstance(sequence.entropy, Sequence)
    seed, epoch, _, repeat = sequence.entropy
    other = np.random.SeedSequence((seed, epoch, frame, repeat), spawn_key=sequence.spawn_key)
    return np.random.default_rng(other)


@dataclass(eq=False)
class FrameDataset(Dataset[Frame]):
    """Reads a frame and transforms it."""

    reader: FrameReader
    transforms: Sequence[Transform]  # applied in this order
    seed: int = 0
    cache_frames: bool = False  # keep frames as read in memory (of each worker process); for small data sets
    replace_empty: bool = False  # replace a frame without boxes by random frames until one has a box
    sampler: ObjectSampler | None = None  # pastes objects into frames as read, before all transforms

    def __post_init__(self) -> None:
        self._cache: dict[int, Frame] = {}

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: SampleKey | int) -> Frame:
        """The frame of a key; an integer is a frame in epoch 0."""
        if not isinstance(key, SampleKey):
            key = SampleKey(epoch=0, frame=int(key))
        random = frame_generator(self.seed, key)
        frame = apply_transforms(self.stored(key), self.transforms, random)
        if not self.replace_empty:
            return frame
        for _ in range(_MAX_TRIES):
            if len(frame.boxes):
                return frame
            other = key._replace(frame=int(random.integers(len(self))))
            frame = apply_transforms(self.stored(other), self.transforms, random)
        raise DataError(
            f"{_MAX_TRIES} frames in a row have no box with data.min_points LiDAR points within data.point_range: "
            "widen the range, lower min_points, or allow frames without a box: data.replace_empty_frames=false"
        )

    def stored(self, key: SampleKey) -> Frame:
        """The frame as read, with the objects pasted into it in that epoch."""
        frame = self._read(key.frame)
        if self.sampler is None or not self.sampler.sampling.active(key.epoch):
            return frame
        # A separate generator, so that all other draws are the same with and without sampling.
        random = np.random.default_rng((self.seed, *key, _SAMPLING_STREAM))
        return self.sampler(frame, self.reader.obstacles(key.frame, self.sampler.min_points), random)

    def log_fade(self, epoch: int) -> None:
        """Log the start of the first epoch without object sampling."""
        if self.sampler is not None and epoch == self.sampler.sampling.until_epoch:
            rank_zero_only(log.info)(
                "data.sampling.until_epoch=%d: no objects are pasted into frames from here on", epoch
            )

    def _read(self, index: int) -> Frame:
        if not self.cache_frames:
            return self.reader.read(index)
        if index not in self._cache:
            self._cache[index] = self.reader.read(index)
        return self._cache[index]


@dataclass(eq=False)
class FrameSampler(DistributedSampler[SampleKey]):
    """The keys of one rank in an epoch, from any batch on.

    A ``DistributedSampler``, so that Lightning does not replace it. Rank r of n takes every n-th key, so the n
    batches of a step are together the batch of one process with an n times larger batch size.

    Training shuffles by (seed, epoch), and drops frames that do not fill a batch on all ranks. With fewer frames
    than that, each rank gets one smaller batch; the first frames are repeated if they do not divide evenly,
    because all ranks must take the same number of steps.

    Evaluation takes all frames once, in order; ranks may differ by one frame. With fewer frames than ranks, the
    first are repeated, because Lightning skips the evaluation on a rank without frames; the metric counts each
    frame once.
    """

    frames: int  # per epoch
    batch_size: int  # frames per step and rank
    training: bool
    seed: int = 0  # of the order
    num_replicas: int = 1  # number of ranks
    rank: int = 0
    resampled: NDArray[np.int64] | None = None  # (frames,) the frames of an epoch; None: all, once

    def __post_init__(self) -> None:
        self._numbers = np.arange(self.frames) if self.resampled is None else self.resampled
        self._repeats = occurrences(self._numbers)
        self.epoch = self.batches_done = 0

    def __len__(self) -> int:
        """Number of frames of this rank in an epoch, whatever the position."""
        if not self.training:
            return max(1, len(range(self.rank, self.frames, self.num_replicas)))
        step = self.batch_size * self.num_replicas
        if self.frames < step:
            return -(-self.frames // self.num_replicas)
        return self.frames // step * self.batch_size

    @property
    def batches(self) -> int:
        """Number of batches of this rank in an epoch."""
        return -(-len(self) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch, unless the position is already within it. Called by Lightning."""
        if epoch != self.epoch:
            self.set_position(epoch, 0)

    def set_position(self, epoch: int, batches_done: int) -> None:
        """Start after ``batches_done`` batches of ``epoch``; the end of an epoch is the start of the next."""
        if self.training and batches_done >= self.batches:
            epoch, batches_done = epoch + 1, 0
        self.epoch, self.batches_done = epoch, batches_done

    def __iter__(self) -> Iterator[SampleKey]:
        order = np.arange(self.frames)
        if self.training:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.frames)
            # np.resize repeats from the start, or truncates.
            order = np.resize(order, len(self) * self.num_replicas)
        elif self.frames < self.num_replicas:
            order = np.resize(order, self.num_replicas)
        # Lightning sets the epoch of evaluation loaders, too, but evaluation must draw the same in every epoch.
        epoch = self.epoch if self.training else 0
        remaining = order[self.rank :: self.num_replicas][self.batches_done * self.batch_size :]
        frames, repeats = self._numbers[remaining].tolist(), self._repeats[remaining].tolist()
        return map(SampleKey, itertools.repeat(epoch), frames, repeats)


class FrameLoader(WorkerLoader[Batch]):
    """A data loader whose position Lightning saves and restores with every checkpoint.

    See ``torch.utils.data.DataLoader`` and, for ``mask_per_frame``, :func:`cmt_aqr.data.collate.collate`.
    """

    def __init__(
        self,
        dataset: FrameDataset,
        sampler: FrameSampler,
        num_workers: int = 0,
        pin_memory: bool = False,
        mask_per_frame: bool = False,
    ) -> None:
        super().__init__(
            dataset,
            sampler,
            num_workers,
            batch_size=sampler.batch_size,
            collate_fn=functools.partial(collate, mask_per_frame=mask_per_frame),
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
        )
        self.frames, self.frame_sampler = dataset, sampler
        self._epoch, self._batches_done = sampler.epoch, sampler.batches_done

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Iterate from the sampler's position on; a training loader then moves on to the next epoch.

        Nothing is read before the first ``next``, because Lightning sets the epoch after it creates the iterator.
        """
        sampler = self.frame_sampler
        self._epoch, self._batches_done = sampler.epoch, sampler.batches_done
        if sampler.training:
            self.frames.log_fade(sampler.epoch)
        for batch in self.loaded():
            self._batches_done += 1
            yield batch
        if sampler.training:
            sampler.set_position(self._epoch, self._batches_done)

    def set_position(self, epoch: int, batches_done: int) -> None:
        """Start the next iteration after ``batches_done`` batches of ``epoch``."""
        self.frame_sampler.set_position(epoch, batches_done)
        self._epoch, self._batches_done = self.frame_sampler.epoch, self.frame_sampler.batches_done

    def _layout(self) -> dict[str, int]:
        """What must not change between saving and restoring a position within an epoch."""
        sampler = self.frame_sampler
        return {
            "frames": sampler.frames,
            "batch_size": sampler.batch_size,
            "ranks": sampler.num_replicas,
            "seed": sampler.seed,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position, counted in batches that were returned, and the layout that it refers to."""
        return {"epoch": self._epoch, "batches_done": self._batches_done, **self._layout()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved position.

        Raises:
            DataError: it lies within an epoch, and the number of frames, batch size, ranks or seed have changed.
        """
        changed = [
            f"{name} {state[name]} -> {value}" for name, value in self._layout().items() if state[name] != value
        ]
        within = 0 < state["batches_done"] * state["batch_size"] < state["frames"] // state["ranks"]
        if changed and within:
            raise DataError(
                f"the checkpoint is from within epoch {state['epoch']}, after {state['batches_done']} "
                f"batches, and the batches have changed since ({', '.join(changed)}): restore these settings, "
                "or start a new run from its weights"
            )
        self.set_position(state["epoch"], state["batches_done"])
