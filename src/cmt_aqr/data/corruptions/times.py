"""Sensors that are late: points or images of an earlier frame of the split, shown as if they were of this one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from numpy.random import Generator

from cmt_aqr.data.corruptions.corruption import condition_generator
from cmt_aqr.data.dataset import generator_of_frame
from cmt_aqr.data.errors import DataError
from cmt_aqr.structures import Frame, FrameSource, Returns

FIRST = 2
"""Number in the split of the first frame whose points MultiCorrupt replaces."""


def source_of(frame: Frame) -> FrameSource:
    """A frame's files.

    Raises:
        DataError: it was not read from any.
    """
    if frame.source is None:
        raise DataError(
            f"frame {frame.token}: it was not read from a split, which alone knows the frame before it"
        )
    return frame.source


def earlier_files(frame: Frame, random: Generator, probability: float) -> Frame:
    """With a probability, the LiDAR's files are those of the frame before in the split, of whatever scene.

    They take the places of this frame's, and are moved by this frame's motions; if the two have different numbers
    of sweeps, only the keyframe's file is.
    """
    source, own = source_of(frame), frame.returns
    before = source.earlier(1, same_scene=False)
    if random.random() >= probability or source.number < FIRST or before is None:
        return frame
    points, returns = before.points()
    assert own is not None and returns is not None
    whole = len(returns.motions) == len(own.motions)
    parts, sweeps, rings = [], [], []
    for sweep, now in enumerate(own.motions):
        replaced = whole or sweep == 0
        from_points, from_returns = (points, returns) if replaced else (frame.points, own)
        chosen = from_returns.sweep == sweep
        part = from_points[chosen].clone()
        if replaced:
            move = (now @ torch.linalg.inv(returns.motions[sweep])).float()
            part[:, :3] = part[:, :3] @ move[:3, :3].T + move[:3, 3]
            lag = frame.points[own.sweep == sweep, 4]
            part[:, 4] = lag[0] if len(lag) else 0.0
        parts.append(part)
        sweeps.append(from_returns.sweep[chosen])
        rings.append(from_returns.ring[chosen])
    kept = Returns(sweep=torch.cat(sweeps), ring=torch.cat(rings), motions=own.motions)
    return frame.replace(points=torch.cat(parts), returns=kept)


def earlier_images(frame: Frame, random: Generator, probability: float) -> Frame:
    """Each image, with a probability, is that of the frame before in the split, of whatever scene."""
    assert frame.images is not None
    before = source_of(frame).earlier(1, same_scene=False)
    struck = random.random(len(frame.images)) < probability
    if before is None:
        return frame
    return with_images(frame, dict.fromkeys(struck.nonzero()[0], before))


def with_images(frame: Frame, sources: Mapping[int, FrameSource]) -> Frame:
    """A frame with some images replaced by those of other frames, by view."""
    if not sources:
        return frame
    assert frame.images is not None
    images = frame.images.clone()
    for view, source in sources.items():
        images[view] = source.image(view)
    return frame.replace(images=images)


class Stuck:
    """A sensor that shows an old frame of its scene again: nuScenes-R's stuck LiDAR and cameras.

    One at a time: a stuck sample shows the previous keyframe. In bursts: from a start on, four samples are stuck,
    and a stuck sample shows the last one that was not; a share 1 - (1 - p)^(1/4) of the samples are starts, so
    that p are stuck. The first sample of a scene is never stuck. nuScenes-R shuffles the split and takes a share p
    exactly; here each sample has the probability p, so that it depends on no other.

    Args:
        name: of the condition, for the draws of other samples.
        probability: p.
        burst: how many samples a start makes stuck: 1 or 4.
        cameras: each camera on its own, instead of the LiDAR with its sweeps.
    """

    def __init__(self, name: str, probability: float, burst: int = 1, cameras: bool = False) -> None:
        self.name = name
        self.start = 1 - (1 - probability) ** (1 / burst)
        self.burst = burst
        self.cameras = cameras

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Show what the sensor shows."""
        source = source_of(frame)
        if not self.cameras:
            shown = self.shown(source, random, 0, 1)
            if shown is source:
                return frame
            points, returns = shown.points()
            return frame.replace(points=points, returns=returns)
        assert frame.images is not None
        views = len(frame.images)
        sources = {view: self.shown(source, random, view, views) for view in range(views)}
        return with_images(frame, {view: shown for view, shown in sources.items() if shown is not source})

    def shown(self, source: FrameSource, random: Generator, sensor: int, sensors: int) -> FrameSource:
        """The frame that a sensor, of several that draw together, shows at the time of another."""
        while (before := source.earlier(1)) is not None and self._is_stuck(source, random, sensor, sensors):
            source = before
            if self.burst == 1:
                break
        return source

    def _is_stuck(self, source: FrameSource, random: Generator, sensor: int, sensors: int) -> bool:
        for back in range(self.burst):
            start = source.earlier(back)
            if start is None or start.earlier(1) is None:
                return False  # the scene's first sample starts nothing
            own = condition_generator(generator_of_frame(random, start.number), self.name)
            if own.random(sensors)[sensor] < self.start:
                return True
        return False
