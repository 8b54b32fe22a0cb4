"""Frames in an order that (seed, epoch) alone decide, and loading that can stop and resume anywhere."""

from __future__ import annotations

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
    """What a sampler asks a data set for.

    The epoch travels with the index, so a worker process that lives for the whole run needs no news of it.
    """

    epoch: int  # counted from 0
    frame: int  # its number in the index
    repeat: int = 0  # which occurrence of the frame in this epoch, where resampling repeats it


def frame_generator(seed: int, key: SampleKey) -> Generator:
    """The generator of a frame's augmentation: depends on the seed and the key, on nothing else."""
    return np.random.default_rng((seed, key.epoch, key.frame, key.repeat))


log = logging.getLogger(__name__)

_SAMPLING = 0x6715
"""Keeps what is drawn for sampling apart from a frame's other draws."""

_MOST_TRIES = 1000
"""Frames that are read in place of one without a box."""


def generator_of_frame(random: Generator, frame: int) -> Generator:
    """The generator that another frame of the same epoch has where this frame has ``random``, not used yet.

    ``random`` is of :func:`frame_generator`, or spawned from it.
    """
    sequence = random.bit_generator.seed_seq
    assert isinstance(sequence, np.random.SeedSequence) and isinstance(sequence.entropy, Sequence)
    seed, epoch, _, repeat = sequence.entropy
    other = np.random.SeedSequence((seed, epoch, frame, repeat), spawn_key=sequence.spawn_key)
    return np.random.default_rng(other)


@dataclass(eq=False)
class FrameDataset(Dataset[Frame]):
    """Reads a frame and transforms it."""

    reader: FrameReader  # where frames come from
    transforms: Sequence[Transform]  # applied in this order
    seed: int = 0  # of every frame's generator
    cache_frames: bool = False  # keep frames as read in memory (of each worker process); for small data sets
    replace_empty: bool = False  # give another frame, drawn from all, for one without a box, until one has a box
    sampler: ObjectSampler | None = None  # pastes objects into frames as read, before all transforms

    def __post_init__(self) -> None:
        self._cache: dict[int, Frame] = {}

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: SampleKey | int) -> Frame:
        """The frame of a key; a plain index is the frame in epoch 0."""
        if not isinstance(key, SampleKey):
            key = SampleKey(epoch=0, frame=int(key))
        random = frame_generator(self.seed, key)
        frame = apply_transforms(self.stored(key), self.transforms, random)
        if not self.replace_empty:
            return frame
        for _ in range(_MOST_TRIES):
            if len(frame.boxes):
                return frame
            other = key._replace(frame=int(random.integers(len(self))))
            frame = apply_transforms(self.stored(other), self.transforms, random)
        raise DataError(
            f"{_MOST_TRIES} frames in a row have no box of data.min_points LiDAR points within data.point_range: "
            "widen the one, lower the other, or take frames without a box, too: data.replace_empty_frames=false"
        )

    def stored(self, key: SampleKey) -> Frame:
        """The frame as read, with the objects that are pasted into it in that epoch."""
        frame = self._read(key.frame)
        if self.sampler is None or not self.sampler.sampling.active(key.epoch):
            return frame
        # A generator of its own: what else is drawn for a frame is the same with and without sampling.
        random = np.random.default_rng((self.seed, *key, _SAMPLING))
        return self.sampler(frame, self.reader.obstacles(key.frame, self.sampler.min_points), random)

    def tell_fade(self, epoch: int) -> None:
        """Say, when the first epoch begins that does not sample, that it does not."""
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
    """Keys of one process's frames, by (seed, epoch), from any batch of the epoch on.

    It is a ``DistributedSampler`` so that Lightning leaves it alone. Rank r of n takes every n-th key, so the
    n batches of a step hold together what one process with an n times larger batch would have.

    Training: shuffled by (seed, epoch), and the frames that do not fill the last batch of all ranks sit out
    this epoch. Where there are fewer frames than one such batch, each rank gets one smaller batch, for which
    the first frames are repeated if they do not divide evenly, because ranks must take equal numbers of
    steps. Evaluation: in order, no frame left out, none twice; ranks may differ by one frame. Only where there
    are fewer frames than ranks, the first are repeated, because Lightning leaves out the whole evaluation on a
    rank without any; the metric counts a frame once.
    """

    frames: int  # of an epoch
    batch_size: int  # frames per step on one rank
    training: bool
    seed: int = 0  # of the shuffling
    num_replicas: int = 1  # number of ranks
    rank: int = 0  # this process
    resampled: NDArray[np.int64] | None = None  # (frames,) numbers of an epoch's frames; None: all of them once

    def __post_init__(self) -> None:
        self._numbers = np.arange(self.frames) if self.resampled is None else self.resampled
        self._repeats = occurrences(self._numbers)
        self.epoch = self.batches_done = 0

    def __len__(self) -> int:
        """Frames of this rank in a whole epoch, wherever in it the position is."""
        if not self.training:
            return max(1, len(range(self.rank, self.frames, self.num_replicas)))
        step = self.batch_size * self.num_replicas
        if self.frames < step:
            return -(-self.frames // self.num_replicas)
        return self.frames // step * self.batch_size

    @property
    def batches(self) -> int:
        """Batches of this rank in a whole epoch."""
        return -(-len(self) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless the position is already in that epoch. Lightning calls it."""
        if epoch != self.epoch:
            self.set_position(epoch, 0)

    def set_position(self, epoch: int, batches_done: int) -> None:
        """Resume after ``batches_done`` batches of ``epoch``; the end of an epoch is the start of the next."""
        if self.training and batches_done >= self.batches:
            epoch, batches_done = epoch + 1, 0
        self.epoch, self.batches_done = epoch, batches_done

    def __iter__(self) -> Iterator[SampleKey]:
        order = np.arange(self.frames)
        if self.training:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.frames)
            # np.resize repeats from the start, or cuts.
            order = np.resize(order, len(self) * self.num_replicas)
        elif self.frames < self.num_replicas:
            order = np.resize(order, self.num_replicas)
        own = order[self.rank :: self.num_replicas]
        # Evaluation draws the same in every epoch, which Lightning names to its loaders, too.
        epoch = self.epoch if self.training else 0
        left = own[self.batches_done * self.batch_size :]
        frames, repeats = self._numbers[left].tolist(), self._repeats[left].tolist()
        return map(SampleKey, itertools.repeat(epoch), frames, repeats)


class FrameLoader(WorkerLoader[Batch]):
    """A data loader whose position can be saved and restored; Lightning does so with every checkpoint.

    Args:
        dataset: frames by key.
        sampler: which keys, in which order.
        num_workers: processes that read; 0 reads in this one.
        pin_memory: see ``torch.utils.data.DataLoader``.
        mask_per_frame: see :func:`cmt_aqr.data.collate.collate`.
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
        """Batches from the sampler's position on.

        Nothing is read before the first ``next``: Lightning makes the iterator first and names the epoch
        afterwards. A training loader that ran through an epoch stands at the start of the next.
        """
        sampler = self.frame_sampler
        self._epoch, self._batches_done = sampler.epoch, sampler.batches_done
        if sampler.training:
            self.frames.tell_fade(sampler.epoch)
        for batch in self.loaded():
            self._batches_done += 1
            yield batch
        if sampler.training:
            sampler.set_position(self._epoch, self._batches_done)

    def set_position(self, epoch: int, batches_done: int) -> None:
        """Let the next iteration resume after ``batches_done`` batches of ``epoch``."""
        self.frame_sampler.set_position(epoch, batches_done)
        self._epoch, self._batches_done = self.frame_sampler.epoch, self.frame_sampler.batches_done

    def _identity(self) -> dict[str, int]:
        sampler = self.frame_sampler
        return {
            "frames": sampler.frames,
            "batch_size": sampler.batch_size,
            "ranks": sampler.num_replicas,
            "seed": sampler.seed,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position, counted in batches handed out, and what gives it its meaning."""
        return {"epoch": self._epoch, "batches_done": self._batches_done, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position.

        Raises:
            DataError: it lies within an epoch that was cut into other batches than this loader's.
        """
        changed = [
            f"{name} {state[name]} -> {value}" for name, value in self._identity().items() if state[name] != value
        ]
        within = 0 < state["batches_done"] * state["batch_size"] < state["frames"] // state["ranks"]
        if changed and within:
            raise DataError(
                f"the checkpoint stands within epoch {state['epoch']}, after {state['batches_done']} "
                f"batches, and the batches have changed since ({', '.join(changed)}): restore them, or "
                "start anew from its weights"
            )
        self.set_position(state["epoch"], state["batches_done"])
