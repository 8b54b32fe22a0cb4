"""Delayed sensors: points or images of an earlier frame of the split, as if they were recorded now."""

from collections.abc import Mapping

import torch
from numpy.random import Generator

from cmt_aqr.constants import CAMERAS
from cmt_aqr.data.corruptions.corruption import condition_generator
from cmt_aqr.data.corruptions.sweeps import returns_of
from cmt_aqr.data.dataset import generator_of_frame
from cmt_aqr.data.errors import DataError
from cmt_aqr.structures import Frame, FrameSource, Returns

FIRST_DELAYED = 2  # number in the split of the first frame whose points MultiCorrupt replaces


def source_of(frame: Frame) -> FrameSource:
    """The source of a frame.

    Raises:
        DataError: it was not read from a split.
    """
    if frame.source is None:
        raise DataError(f"frame {frame.token}: it was not read from a split, so the frame before it is unknown")
    return frame.source


def delay_points(frame: Frame, random: Generator, probability: float) -> Frame:
    """With a probability, replace all sweeps by those of the previous frame in the split, of whatever scene.

    The new sweeps keep the motions and time lags of this frame's. If the frames have different numbers of sweeps,
    only the keyframe's own is replaced.
    """
    source = source_of(frame)
    previous = source.earlier(1, same_scene=False)
    if random.random() >= probability or source.number < FIRST_DELAYED or previous is None:
        return frame
    points, returns = previous.points()
    now = returns_of(frame)
    assert returns is not None
    replaced = len(now.motions) if len(returns.motions) == len(now.motions) else 1
    parts, sweeps, rings = [], [], []
    for sweep, motion in enumerate(now.motions):
        from_points, from_returns = (points, returns) if sweep < replaced else (frame.points, now)
        rows = from_returns.sweep == sweep
        part = from_points[rows]
        if sweep < replaced:
            move = (motion @ torch.linalg.inv(returns.motions[sweep])).float()
            part[:, :3] = part[:, :3] @ move[:3, :3].T + move[:3, 3]
            lag = frame.points[now.sweep == sweep, 4]
            part[:, 4] = lag[0] if len(lag) else 0.0
        parts.append(part)
        sweeps.append(from_returns.sweep[rows])
        rings.append(from_returns.ring[rows])
    merged = Returns(sweep=torch.cat(sweeps), ring=torch.cat(rings), motions=now.motions)
    return frame.replace(points=torch.cat(parts), returns=merged)


def delay_images(frame: Frame, random: Generator, probability: float) -> Frame:
    """With a probability, replace each image by that of the previous frame in the split, of whatever scene."""
    assert frame.images is not None
    previous = source_of(frame).earlier(1, same_scene=False)
    delayed = random.random(len(frame.images)) < probability
    return frame if previous is None else with_images(frame, dict.fromkeys(delayed.nonzero()[0], previous))


def with_images(frame: Frame, sources: Mapping[int, FrameSource]) -> Frame:
    """A frame with the images of some views taken from other frames."""
    if not sources:
        return frame
    assert frame.images is not None
    images = frame.images.clone()
    for view, source in sources.items():
        images[view] = source.image(view)
    return frame.replace(images=images)


class Stuck:
    """A sensor that repeats an old frame of its scene: nuScenes-R's stuck LiDAR and cameras.

    With ``burst=1``, a stuck sample repeats the previous keyframe. With ``burst=4``, every start makes four
    samples stuck, which repeat the last one that was not; a share 1 - (1 - p)^(1/4) of the samples are starts, so
    that a share p is stuck. The first sample of a scene is never stuck. nuScenes-R shuffles the split and takes
    exactly a share p; here each sample is stuck with probability p, independent of the order of the split.

    Args:
        name: of the condition, to repeat the draws of earlier samples.
        probability: p.
        burst: number of samples that a start makes stuck: 1 or 4.
        cameras: affects each camera independently, instead of the LiDAR with its sweeps.
    """

    def __init__(self, name: str, probability: float, burst: int = 1, cameras: bool = False) -> None:
        self.name = name
        self.start = 1 - (1 - probability) ** (1 / burst)
        self.burst = burst
        self.cameras = cameras

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """The frame with what the stuck sensors repeat."""
        source = source_of(frame)
        sensors = len(CAMERAS) if self.cameras else 1
        sources = [self.source_shown(source, random, sensor, sensors) for sensor in range(sensors)]
        if self.cameras:
            return with_images(frame, {view: old for view, old in enumerate(sources) if old is not source})
        if sources[0] is source:
            return frame
        points, returns = sources[0].points()
        return frame.replace(points=points, returns=returns)

    def source_shown(self, source: FrameSource, random: Generator, sensor: int, sensors: int) -> FrameSource:
        """The frame that one of ``sensors`` sensors, which share a draw, shows in place of ``source``."""
        while (previous := source.earlier(1)) is not None and self._is_stuck(source, random, sensor, sensors):
            source = previous
            if self.burst == 1:
                break
        return source

    def _is_stuck(self, source: FrameSource, random: Generator, sensor: int, sensors: int) -> bool:
        for back in range(self.burst):
            start = source.earlier(back)
            if start is None or start.earlier(1) is None:
                return False  # the first sample of a scene is no start
            start_random = condition_generator(generator_of_frame(random, start.number), self.name)
            if start_random.random(sensors)[sensor] < self.start:
                return True
        return False
