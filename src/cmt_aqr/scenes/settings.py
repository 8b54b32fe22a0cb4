"""What a synthetic data set is made from, and the checks of those values."""

from __future__ import annotations

from dataclasses import dataclass

from cmt_aqr.checks import is_whole, require, require_number, require_whole

GENERATOR_VERSION = 1
"""Raised whenever the same settings would give other data."""

KEYFRAME_RATE = 2
"""Keyframes per second, as in nuScenes."""

RINGS = 32
"""Rings of nuScenes' LiDAR."""

ASPECT = (16, 9)
"""Width to height of nuScenes' images, 1600 x 900."""

MOST_SCENES = 750
"""The devkit's validation split has 150 names, a fifth of so many scenes."""

MINI_SCENES = 10
"""Up to this many scenes a set is a ``v1.0-mini``, above a ``v1.0-trainval``."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the content of a synthetic data set. Same settings, same bytes.

    Up to 10 scenes make a ``v1.0-mini``, more a ``v1.0-trainval``, with names from the devkit's splits, about a
    fifth for validation. The pictures' height is 9/16 of their width and the intrinsics scale along.
    """

    scenes: int = 10  # 2 or more
    seed: int = 0
    samples_per_scene: int = 20  # keyframes of a scene, two a second
    sweep_rate: int = 10  # LiDAR sweeps per second, an even number: every keyframe interval has half of them
    azimuth_resolution: float = 0.4  # degrees between two columns of the LiDAR
    beams: int = RINGS  # rings of the LiDAR: so many of its 32, spread from the lowest to the highest
    image_width: int = 400  # pixels, a multiple of 16
    jpeg_quality: int = 90  # as OpenCV counts it
    annotated_range: float = 60.0  # metres from the ego vehicle; what is farther away is rendered but has no box

    def __post_init__(self) -> None:
        require_whole("scenes", self.scenes, 2, MOST_SCENES)
        require_whole("seed", self.seed, 0, 2**63 - 1)
        require_whole("samples_per_scene", self.samples_per_scene, 2, 80)
        require_whole("beams", self.beams, 2, RINGS)
        require_whole("jpeg_quality", self.jpeg_quality, 30, 100)
        for name, low, high, unit in (
            ("sweep_rate", KEYFRAME_RATE, 20, KEYFRAME_RATE),
            ("image_width", 160, 1600, ASPECT[0]),
        ):
            value = getattr(self, name)
            fits = is_whole(value, low, high) and value % unit == 0
            require(fits, name, value, f"a multiple of {unit} from {low} to {high}")
        require_number("azimuth_resolution", self.azimuth_resolution, 0.1, 4)
        require_number("annotated_range", self.annotated_range, 10, 60)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return self.image_width * ASPECT[1] // ASPECT[0], self.image_width

    @property
    def columns(self) -> int:
        """Columns of the LiDAR: rays of one ring in one turn."""
        return round(360 / self.azimuth_resolution)

    @property
    def rings(self) -> list[int]:
        """Numbers of the LiDAR's rings, of 0, the lowest, to 31."""
        return [round(ring * (RINGS - 1) / (self.beams - 1)) for ring in range(self.beams)]

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
        # The devkit takes seconds to import, and the processes that render the scenes do not need it.
        from nuscenes.utils import splits

        validation = max(1, round(0.2 * self.scenes))
        if self.version == "v1.0-mini":
            train, val = splits.mini_train, splits.mini_val
        else:
            train, val = splits.train, splits.val
        return [*train[: self.scenes - validation], *val[:validation]]

    def split_names(self) -> tuple[str, str]:
        """The devkit's names of the training and the validation split."""
        return ("mini_train", "mini_val") if self.version == "v1.0-mini" else ("train", "val")
