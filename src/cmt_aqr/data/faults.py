"""Sensor faults: a LiDAR in fog, cameras at night, and how many frames have which.

A fault is a :class:`~cmt_aqr.data.augmentation.Transform` that makes one sensor worse. Boxes, labels and
calibration stay as they are, so a detector is asked for what is there, not for what the bad sensor still shows.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from cmt_aqr.checks import require_above_zero, require_fraction, require_number
from cmt_aqr.data.augmentation import Transform
from cmt_aqr.errors import SettingError
from cmt_aqr.structures import Frame

NEAREST_ECHO = 1.0
"""Metres; nearer than that a LiDAR's beam and receiver do not overlap, and fog gives no echo."""


class Fog:
    """The LiDAR in fog: far returns are lost, near ones are dimmer, some come from the fog itself.

    Light travels to the target and back through fog of extinction coefficient alpha and loses power by
    Beer and Lambert's law, so that of a return from range r arrives

        P_fog(r) / P_clear(r) = exp(-2 alpha r),    alpha = ln(20) / visibility

    (Hahner et al., "Fog Simulation on Real LiDAR Point Clouds for 3D Object Detection in Adverse Weather",
    ICCV 2021; visibility is the meteorological optical range, over which contrast falls to 5 %). Intensities
    are multiplied by that. Whether a return is detected depends on a threshold that data sets do not tell;
    here it survives with the same probability, exp(-2 alpha r): a depth t is drawn from an exponential
    distribution of rate 2 alpha, and the return is lost if t < r. A share ``clutter`` of the lost ones comes
    back from the fog at depth t of the same ray, with intensity 0.

    Ranges are measured from the keyframe's LiDAR, for points of earlier sweeps too. Images stay clear, so that
    one sensor is bad and not two.

    50 m is dense fog: alpha 0.06, of the returns from 20 m 9 % are left. Below 1000 m it is called fog.
    """

    def __init__(
        self,
        visibility: float = 50.0,  # meteorological optical range in metres
        clutter: float = 0.1,  # share of the lost returns that become echoes of the fog
    ) -> None:
        self.visibility = require_above_zero("visibility", visibility)
        self.clutter = require_fraction("clutter", clutter)
        self.alpha = math.log(20) / self.visibility
        """Extinction coefficient, 1/m."""

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Lose, dim and scatter points; all else stays."""
        points = frame.points.clone()
        count = len(points)
        distance = points[:, :3].norm(dim=1)
        depth = torch.from_numpy(random.exponential(1 / (2 * self.alpha), count).astype(np.float32))
        scattered = torch.from_numpy(random.random(count, np.float32) < self.clutter)
        returned = depth >= distance
        echo = ~returned & scattered & (depth >= NEAREST_ECHO)
        points[:, :3] *= torch.where(echo, depth / distance, 1.0)[:, None]
        points[:, 3] *= torch.where(echo, 0.0, torch.exp(-2 * self.alpha * distance))
        return frame.keep_points(returned | echo, points)


class Night:
    """The cameras at night: little light, so images are dark, and few photons, so they are noisy.

    Pixels are taken back to light by a power law, a sensor counts what little of it arrives, and the count is
    turned into pixels again:

        expected electrons  n = light * electrons * (pixel / 255)^gamma
        counted             c ~ Poisson(n) + Normal(0, read_noise^2)
        pixel               255 * min(max(gain * c / electrons, 0), 1)^(1 / gamma), rounded

    Poisson's part is shot noise, the normal one read noise (Foi et al., "Practical Poissonian-Gaussian Noise
    Modeling and Fitting for Single-Image Raw-Data", IEEE Transactions on Image Processing, 2008). Acts on
    images as they were read, before they are resized and normalised. Points stay as they are.
    """

    def __init__(
        self,
        light: float = 0.01,  # what is left of the light of the picture as it was taken
        electrons: float = 2000.0,  # how many a white pixel counts in that picture
        read_noise: float = 4.0,  # standard deviation in electrons
        gain: float = 4.0,  # amplification of what was counted
        gamma: float = 2.2,  # exponent from pixels to light
    ) -> None:
        self.light = require_number("light", light, above=0, high=1)
        self.electrons = require_above_zero("electrons", electrons)
        self.read_noise = require_number("read_noise", read_noise, 0)
        self.gain = require_above_zero("gain", gain)
        self.gamma = require_above_zero("gamma", gamma)
        self._expected = self.light * self.electrons * (np.arange(256) / 255) ** self.gamma

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Darken and roughen the images; a frame without images stays as it is."""
        if frame.images is None:
            return frame
        # Views one by one: the counts of all six at once would take several hundred megabytes.
        views = frame.images.permute(0, 2, 3, 1).numpy()
        dark = np.stack([self._take(view, random) for view in views])
        return frame.replace(images=torch.from_numpy(dark).permute(0, 3, 1, 2))

    def _take(self, picture: NDArray[np.uint8], random: Generator) -> NDArray[np.uint8]:
        """The picture (height, width, 3) as it is at night."""
        counted = random.poisson(self._expected[picture]).astype(np.float32)
        counted += self.read_noise * random.standard_normal(picture.shape, np.float32)
        light = np.clip(counted * (self.gain / self.electrons), 0, 1)
        return np.rint(255 * light ** (1 / self.gamma)).astype(np.uint8)


class SomeFrames:
    """Gives a share of the frames one of several faults, each as often as the others.

    The fault draws from a generator of its own, which descends from the frame's: what else is drawn for a
    frame is the same with and without faults, and which frames are bad does not depend on how bad they are.

    Args:
        share: probability that a frame has a fault.
        severity: of the faults that refer to it; stands here so that one key sets it for a mix.
        **faults: by name; None leaves one out.

    Raises:
        SettingError: the share is no probability, or there is no fault to share.
    """

    def __init__(self, share: float, severity: int | None = None, **faults: Transform | None) -> None:
        self.share = require_fraction("share", share)
        self.faults = {name: fault for name, fault in faults.items() if fault is not None}
        for name, fault in self.faults.items():
            if not callable(fault):
                raise SettingError(f"{name}={fault}: must be a fault, given by its _target_, or null")
        if self.share and not self.faults:
            raise SettingError(f"share={share}: there is no fault; choose one, such as fault=fog")

    @property
    def strikes(self) -> frozenset[str]:
        """The sensors, of ``lidar`` and ``camera``, that one of the faults may touch."""
        every = ("lidar", "camera")
        return frozenset().union(*(getattr(fault, "strikes", every) for fault in self.faults.values()))

    @property
    def whole_images(self) -> bool:
        """Whether one of the faults is defined in pixels of images as they are stored."""
        return any(getattr(fault, "whole_images", False) for fault in self.faults.values())

    def draw(self, random: Generator) -> str | None:
        """Name of the fault that a frame gets, or None."""
        bad, which = random.random() < self.share, random.random()
        return list(self.faults)[int(which * len(self.faults))] if bad else None

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Apply what was drawn for this frame."""
        own = random.spawn(1)[0]
        name = self.draw(own)
        return frame if name is None else self.faults[name](frame, own)
