"""A condition of a suite: a corruption of the points, of the images, or of both, and its random numbers."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator

from cmt_aqr.checks import require_whole
from cmt_aqr.data.augmentation import Transform
from cmt_aqr.structures import Frame


def condition_generator(random: Generator, name: str) -> Generator:
    """A generator that depends on the seed of ``random`` and on a name, not on what ``random`` has drawn."""
    sequence = random.bit_generator.seed_seq
    assert isinstance(sequence, np.random.SeedSequence)
    key = (*sequence.spawn_key, zlib.crc32(name.encode()))
    return np.random.default_rng(np.random.SeedSequence(sequence.entropy, spawn_key=key))


@dataclass(frozen=True)
class Corruption:
    """A condition: a corruption of the points, of the images, or of both.

    All random numbers depend on (seed, epoch, frame) and the name: every model, number of workers and order of
    conditions gets the same frame, and severities of one name hit the same places. Points and images have
    separate generators, so a LiDAR-only model gets the same points as a fused one.
    """

    name: str  # suite and condition, such as mome/fov60
    lidar: Transform | None = None  # corrupts the points
    cameras: Transform | None = None  # corrupts the images or their calibration

    @property
    def strikes(self) -> frozenset[str]:
        """The sensors that it corrupts: ``lidar``, ``camera``."""
        parts = {"lidar": self.lidar, "camera": self.cameras}
        return frozenset(sensor for sensor, part in parts.items() if part is not None)

    @property
    def needs_full_size(self) -> bool:
        """Whether it corrupts images, whose parameters may be in pixels of the stored images."""
        return self.cameras is not None

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Corrupt the sensors that the frame has."""
        lidar_random, camera_random = condition_generator(random, self.name).spawn(2)
        if self.lidar is not None and len(frame.points):
            frame = self.lidar(frame, lidar_random)
        if self.cameras is not None and frame.images is not None:
            frame = self.cameras(frame, camera_random)
        return frame


def by_severity(function: Callable[..., Any], /, **settings: Sequence[Any]) -> list[Callable[..., Any]]:
    """The function at severity 1, 2, ..., from the values that each setting takes."""
    values = zip(*settings.values(), strict=True)
    return [partial(function, **dict(zip(settings, row, strict=True))) for row in values]


def graded(
    name: str, lidar: Sequence[Transform] = (), cameras: Sequence[Transform] = ()
) -> Callable[[int], Corruption]:
    """A constructor of a condition from its severity, which refuses unknown severities with a ``SettingError``.

    Args:
        name: suite and condition, without the severity.
        lidar: corruptions of the points at severity 1, 2, ...; empty: none.
        cameras: corruptions of the images at severity 1, 2, ...; empty: none.
    """

    def make(severity: int = 1) -> Corruption:
        require_whole("severity", severity, 1, len(lidar or cameras))
        return Corruption(name, *(parts[severity - 1] if parts else None for parts in (lidar, cameras)))

    return make
