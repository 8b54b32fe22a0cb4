"""Sensor faults: a LiDAR in fog, cameras at night, and the choice of a fault for each frame.

A fault is a :class:`~cmt_aqr.data.augmentation.Transform` that degrades a sensor. Boxes and labels do not change:
a detector is evaluated on what is present, not on what the degraded sensor still shows.
"""

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
"""Metres; at shorter range a LiDAR's beam and receiver do not overlap, and fog gives no echo."""


class Fog:
    """The LiDAR in fog: distant returns are lost, near ones are dimmed, and the fog itself returns some.

    Light passes through the fog to the target and back and is attenuated by the Beer-Lambert law. The power of a
    return from range r is

        P_fog(r) / P_clear(r) = exp(-2 alpha r),    alpha = ln(20) / visibility

    with alpha the extinction coefficient (Hahner et al., "Fog Simulation on Real LiDAR Point Clouds for 3D Object
    Detection in Adverse Weather", ICCV 2021) and the visibility the meteorological optical range, over which
    contrast falls to 5 %. Intensities are multiplied by that ratio. The detection threshold is unknown, so a
    return survives with the same probability, exp(-2 alpha r): a depth t is drawn from an exponential distribution
    of rate 2 alpha, and the return is lost if t < r. A share ``clutter`` of the lost returns becomes echoes of the
    fog at depth t of the same ray, with intensity 0.

    Ranges are measured from the keyframe's LiDAR, also for points of earlier sweeps. Images stay clear, so that
    only one sensor is degraded. 50 m is dense fog: 9 % of the returns from 20 m survive.
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
        """The frame with points lost, dimmed and scattered."""
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
    """The cameras at night: with little light, images are dark; with few photons, they are noisy.

    Pixels are converted to light by a power law, a sensor counts a small share of it, and the count is converted
    back:

        expected electrons  n = light * electrons * (pixel / 255)^gamma
        counted             c ~ Poisson(n) + Normal(0, read_noise^2)
        pixel               255 * min(max(gain * c / electrons, 0), 1)^(1 / gamma), rounded

    The Poisson part is shot noise, the normal part read noise (Foi et al., "Practical Poissonian-Gaussian Noise
    Modeling and Fitting for Single-Image Raw-Data", IEEE Transactions on Image Processing, 2008). Applies to
    images as read, before they are resized and normalised. Points do not change.
    """

    def __init__(
        self,
        light: float = 0.01,  # remaining share of the light of the original image
        electrons: float = 2000.0,  # count of a white pixel in the original image
        read_noise: float = 4.0,  # standard deviation in electrons
        gain: float = 4.0,  # amplification of the count
        gamma: float = 2.2,  # exponent from pixels to light
    ) -> None:
        self.light = require_number("light", light, above=0, high=1)
        self.electrons = require_above_zero("electrons", electrons)
        self.read_noise = require_number("read_noise", read_noise, 0)
        self.gain = require_above_zero("gain", gain)
        self.gamma = require_above_zero("gamma", gamma)
        self._expected = self.light * self.electrons * (np.arange(256) / 255) ** self.gamma

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """The frame with dark and noisy images, if it has images."""
        if frame.images is None:
            return frame
        # View by view: the counts of all six would take several hundred megabytes.
        views = frame.images.permute(0, 2, 3, 1).numpy()
        dark = np.stack([self._expose(view, random) for view in views])
        return frame.replace(images=torch.from_numpy(dark).permute(0, 3, 1, 2))

    def _expose(self, image: NDArray[np.uint8], random: Generator) -> NDArray[np.uint8]:
        """The image (height, width, 3) at night."""
        count = random.poisson(self._expected[image]).astype(np.float32)
        count += self.read_noise * random.standard_normal(image.shape, np.float32)
        light = np.clip(count * (self.gain / self.electrons), 0, 1)
        return np.rint(255 * light ** (1 / self.gamma)).astype(np.uint8)


class SomeFrames:
    """Applies one of several faults, with equal probability, to a share of the frames.

    The choice and the fault draw from a generator of their own, spawned from the frame's. Everything else that is
    drawn for a frame is the same with and without faults, and the choice of frames does not depend on the
    severity.

    Args:
        share: probability that a frame has a fault.
        severity: for faults that refer to it, so that one key sets it for a mix.
        **faults: by name; ``None`` removes one.

    Raises:
        SettingError: the share is not a probability, it is above 0 without a fault, or a fault is not callable.
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
        """The sensors, ``lidar`` and ``camera``, that one of the faults may affect."""
        both = ("lidar", "camera")
        return frozenset().union(*(getattr(fault, "strikes", both) for fault in self.faults.values()))

    @property
    def needs_full_size(self) -> bool:
        """Whether a fault corrupts images, whose parameters may be in pixels of the stored images."""
        return any(getattr(fault, "needs_full_size", False) for fault in self.faults.values())

    def draw(self, random: Generator) -> str | None:
        """Name of the fault for a frame, or ``None``."""
        faulty, choice = random.random() < self.share, random.random()
        return list(self.faults)[int(choice * len(self.faults))] if faulty else None

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """The frame after the fault that was drawn for it."""
        fault_random = random.spawn(1)[0]
        name = self.draw(fault_random)
        return frame if name is None else self.faults[name](frame, fault_random)
