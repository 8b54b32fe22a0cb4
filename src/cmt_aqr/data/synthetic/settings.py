"""What a synthetic data set is made from, and the checks of those values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from nuscenes.utils import splits

GENERATOR_VERSION = 1
"""Raised whenever the same settings would give other data."""

KEYFRAME_RATE = 2
"""Keyframes per second, as in nuScenes."""

ASPECT = (16, 9)
"""Width to height of nuScenes' images, 1600 x 900."""

MINI_SCENES = 10
"""Up to this many scenes a set is a ``v1.0-mini``, above a ``v1.0-trainval``."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the content of a synthetic data set. Same settings, same bytes.

    Attributes:
        scenes: number of scenes, 2 or more, so that there is one to train on and one to evaluate on.
        seed: any integer from 0 on.
        samples_per_scene: keyframes of a scene, two a second.
        sweep_rate: LiDAR sweeps a second, an even number: every keyframe interval has half of them.
        azimuth_resolution: degrees between two columns of the LiDAR.
        image_width: pixels, a multiple of 16; the height is 9/16 of it and the intrinsics scale along.
        jpeg_quality: of the pictures, as OpenCV counts it.

    Raises:
        ValueError: a value is out of its range; the message names it and what is allowed.
    """

    scenes: int = 10
    seed: int = 0
    samples_per_scene: int = 20
    sweep_rate: int = 10
    azimuth_resolution: float = 0.5
    image_width: int = 400
    jpeg_quality: int = 90

    def __post_init__(self) -> None:
        most = len(splits.val) * 5
        self._require("scenes", 2 <= self.scenes <= most, f"an integer from 2 to {most}")
        self._require("seed", self.seed >= 0, "an integer from 0 on")
        self._require("samples_per_scene", 2 <= self.samples_per_scene <= 80, "an integer from 2 to 80")
        self._require(
            "sweep_rate",
            2 <= self.sweep_rate <= 20 and self.sweep_rate % KEYFRAME_RATE == 0,
            "an even number from 2 to 20, because keyframes come twice a second",
        )
        self._require("azimuth_resolution", 0.1 <= self.azimuth_resolution <= 4, "from 0.1 to 4 degrees")
        self._require(
            "image_width",
            160 <= self.image_width <= 1600 and self.image_width % ASPECT[0] == 0,
            f"a multiple of {ASPECT[0]} from 160 to 1600",
        )
        self._require("jpeg_quality", 30 <= self.jpeg_quality <= 100, "an integer from 30 to 100")

    def _require(self, name: str, right: bool, allowed: str) -> None:
        if not right:
            raise ValueError(f"{name}={getattr(self, name)}: must be {allowed}")
        wanted = type(next(field.default for field in dataclasses.fields(self) if field.name == name))
        if wanted is int and type(getattr(self, name)) is not int:
            raise ValueError(f"{name}={getattr(self, name)!r}: must be {allowed}")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return self.image_width * ASPECT[1] // ASPECT[0], self.image_width

    @property
    def columns(self) -> int:
        """Columns of the LiDAR: rays of one ring in one turn."""
        return round(360 / self.azimuth_resolution)

    @property
    def sweeps_per_keyframe(self) -> int:
        """LiDAR sweeps from one keyframe to the next, the keyframe's own counted once."""
        return self.sweep_rate // KEYFRAME_RATE

    @property
    def duration(self) -> float:
        """Seconds from the first keyframe of a scene to its last."""
        return (self.samples_per_scene - 1) / KEYFRAME_RATE

    @property
    def version(self) -> str:
        """Name of nuScenes' version that the set pretends to be, and of its folder of tables."""
        return "v1.0-mini" if self.scenes <= MINI_SCENES else "v1.0-trainval"

    def scene_names(self) -> list[str]:
        """Names of the scenes: names of the devkit's splits, training first, about a fifth for validation."""
        validation = max(1, round(0.2 * self.scenes))
        if self.version == "v1.0-mini":
            train, val = splits.mini_train, splits.mini_val
        else:
            train, val = splits.train, splits.val
        return [*train[: self.scenes - validation], *val[:validation]]

    def split_names(self) -> tuple[str, str]:
        """The devkit's names of the training and the validation split."""
        return ("mini_train", "mini_val") if self.version == "v1.0-mini" else ("train", "val")
