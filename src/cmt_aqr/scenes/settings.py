"""Settings of a synthetic data set, and their checks."""

from dataclasses import dataclass

from cmt_aqr.checks import is_whole, require, require_number, require_whole

GENERATOR_VERSION = 1
"""Incremented whenever the same settings would give different data."""

KEYFRAME_RATE = 2  # keyframes per second, as in nuScenes
RINGS = 32  # rings of nuScenes' LiDAR
ASPECT = (16, 9)  # width to height of nuScenes' images, 1600 x 900
MAX_SCENES = 750  # the devkit's validation split has 150 names, a fifth of these
MINI_SCENES = 10  # a set of at most this many scenes is a v1.0-mini, a larger one a v1.0-trainval


@dataclass(frozen=True)
class Settings:
    """Everything that the content of a synthetic data set depends on, byte for byte.

    Scene names are those of the devkit's splits, about a fifth for validation. The images' height is 9/16 of their
    width, and the intrinsics scale with it.
    """

    scenes: int = 10  # 2 or more
    seed: int = 0
    samples_per_scene: int = 20  # keyframes per scene, two per second
    sweep_rate: int = 10  # LiDAR sweeps per second, an even number, since there are two keyframes per second
    azimuth_resolution: float = 0.4  # degrees between two columns of the LiDAR
    beams: int = RINGS  # number of the LiDAR's 32 rings, evenly spaced from the lowest to the highest
    image_width: int = 400  # pixels, a multiple of 16
    jpeg_quality: int = 90  # OpenCV's
    annotated_range: float = 60.0  # metres from the ego vehicle; objects beyond are rendered without a box

    def __post_init__(self) -> None:
        require_whole("scenes", self.scenes, 2, MAX_SCENES)
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
        """Height and width of the images in pixels."""
        return self.image_width * ASPECT[1] // ASPECT[0], self.image_width

    @property
    def columns(self) -> int:
        """Columns of the LiDAR: rays of one ring in one turn."""
        return round(360 / self.azimuth_resolution)

    @property
    def rings(self) -> list[int]:
        """The rings of the LiDAR, from 0, the lowest, to 31."""
        return [round(ring * (RINGS - 1) / (self.beams - 1)) for ring in range(self.beams)]

    @property
    def sweeps_per_keyframe(self) -> int:
        """LiDAR sweeps per keyframe, its own included."""
        return self.sweep_rate // KEYFRAME_RATE

    @property
    def duration(self) -> float:
        """Seconds from the first keyframe of a scene to its last."""
        return (self.samples_per_scene - 1) / KEYFRAME_RATE

    @property
    def version(self) -> str:
        """The nuScenes version that the set imitates, and the name of its folder of tables."""
        return "v1.0-mini" if self.scenes <= MINI_SCENES else "v1.0-trainval"

    def split_names(self) -> tuple[str, str]:
        """The devkit's names of the training and the validation split."""
        return ("mini_train", "mini_val") if self.version == "v1.0-mini" else ("train", "val")

    def scene_names(self) -> list[str]:
        """Names of the scenes, from the devkit's splits: training first, then about a fifth for validation."""
        # The devkit takes seconds to import, and the processes that render the scenes do not need it.
        from nuscenes.utils import splits

        validation = max(1, round(0.2 * self.scenes))
        train, val = (getattr(splits, name) for name in self.split_names())
        return [*train[: self.scenes - validation], *val[:validation]]
