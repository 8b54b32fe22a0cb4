"""A condition of a suite: what happens to the points and to the images of a frame, and what it draws from."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator

from cmt_aqr.checks import require_whole
from cmt_aqr.data.augmentation import Transform
from cmt_aqr.structures import Frame


def condition_generator(random: Generator, name: str) -> Generator:
    """A generator that depends on a frame's generator as it was made, and on a name; not on what was drawn."""
    sequence = random.bit_generator.seed_seq
    assert isinstance(sequence, np.random.SeedSequence)
    key = (*sequence.spawn_key, zlib.crc32(name.encode()))
    return np.random.default_rng(np.random.SeedSequence(sequence.entropy, spawn_key=key))


class Corruption:
    """A condition: a change of the points, of the images, or of both.

    All that it draws comes from (seed, epoch, frame) and its name, so that every model, every number of workers
    and every order of conditions sees the same frame, and severities of one name strike the same places. Points
    and images draw from generators of their own: a model of one sensor sees what a fused one sees of it.

    Args:
        name: suite and condition, such as ``mome/fov60``.
        lidar: what happens to the points, or ``None``.
        cameras: what happens to the images or their calibration, or ``None``; not asked where a frame has none.
    """

    def __init__(self, name: str, lidar: Transform | None = None, cameras: Transform | None = None) -> None:
        self.name = name
        self.lidar = lidar
        self.cameras = cameras

    @property
    def strikes(self) -> frozenset[str]:
        """The sensors that it touches: ``lidar``, ``camera``."""
        parts = {"lidar": self.lidar, "camera": self.cameras}
        return frozenset(sensor for sensor, part in parts.items() if part is not None)

    @property
    def whole_images(self) -> bool:
        """Whether it changes images, whose sizes in pixels are those of the images as stored."""
        return self.cameras is not None

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Strike the sensors that the frame has."""
        for_lidar, for_cameras = condition_generator(random, self.name).spawn(2)
        if self.lidar is not None and len(frame.points):
            frame = self.lidar(frame, for_lidar)
        if self.cameras is not None and frame.images is not None:
            frame = self.cameras(frame, for_cameras)
        return frame


def over(change: Callable[..., Any], /, **settings: Sequence[Any]) -> list[Callable[..., Any]]:
    """A function by severity, given for each of its settings a value for every severity."""
    by_severity = zip(*settings.values(), strict=True)
    return [partial(change, **dict(zip(settings, values, strict=True))) for values in by_severity]


def graded(
    name: str, lidar: Sequence[Transform] = (), cameras: Sequence[Transform] = ()
) -> Callable[[int], Corruption]:
    """What makes a condition of several severities; refuses others with a ``SettingError``.

    Args:
        name: of the condition, without its severity.
        lidar: what happens to the points at severity 1, 2, ...; empty: nothing.
        cameras: to the images, likewise.
    """

    def make(severity: int = 1) -> Corruption:
        require_whole("severity", severity, 1, len(lidar or cameras))
        return Corruption(name, *(parts[severity - 1] if parts else None for parts in (lidar, cameras)))

    return make
