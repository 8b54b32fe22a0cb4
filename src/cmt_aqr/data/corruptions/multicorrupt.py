"""The ten corruptions of MultiCorrupt (Beemelmanns et al., IV 2024, arXiv 2402.11677), at severities 1 to 3.

Parameters and formulas are those of its converter (ika-rwth-aachen/MultiCorrupt, ``converter/``). Corruptions of
points treat each sweep of a frame independently. Snow is in the images only: its points need lidarseg labels and
files of snowflakes. Random numbers are ours: the published ones come from a pool of processes and cannot be
reproduced.
"""

from cmt_aqr.data.corruptions import lidar
from cmt_aqr.data.corruptions.corruption import by_severity, graded
from cmt_aqr.data.corruptions.delays import delay_images, delay_points
from cmt_aqr.data.corruptions.images import black_out, brighten, images_by_severity, motion_blur
from cmt_aqr.data.corruptions.weather import add_snow, darken, fog_image, fog_points

_PROBABILITIES = (0.2, 0.4, 0.6)

missingcamera = graded("multicorrupt/missingcamera", cameras=by_severity(black_out, probability=_PROBABILITIES))
"""Each image is black, independently."""

brightness = graded("multicorrupt/brightness", cameras=images_by_severity(brighten, added=(0.5, 0.6, 0.7)))

dark = graded(
    "multicorrupt/dark",
    cameras=images_by_severity(darken, scale=(0.6, 0.4, 0.3), photons=(250, 120, 50), std=(0.008, 0.018, 0.026)),
)

motionblur = graded(
    "multicorrupt/motionblur",
    lidar=by_severity(lidar.motion_blur, std=(0.06, 0.1, 0.13)),
    cameras=images_by_severity(motion_blur, skips_unseen=True, sigma=(6.0, 10.0, 13.0)),
)
"""Images are blurred along a line, sweeps shifted and their points jittered."""

pointsreducing = graded("multicorrupt/pointsreducing", by_severity(lidar.subsample_sweeps, share=(0.3, 0.2, 0.1)))

_RINGS = (range(1, 32, 2), range(1, 30, 4), range(1, 26, 8))

beamsreducing = graded("multicorrupt/beamsreducing", by_severity(lidar.keep_rings, rings=_RINGS))
"""16, 8 or 4 of the 32 rings remain. Needs the ring, the fifth column of the files."""

spatialmisalignment = graded(
    "multicorrupt/spatialmisalignment",
    by_severity(
        lidar.misalign_sweeps, probability=_PROBABILITIES, degrees=(1.0, 2.0, 3.0), shift=[(2.0, 0.0, 0.0)] * 3
    ),
)
"""Sweeps are rotated about all axes and shifted by 2 m to the right."""

temporalmisalignment = graded(
    "multicorrupt/temporalmisalignment",
    lidar=by_severity(delay_points, probability=_PROBABILITIES),
    cameras=by_severity(delay_images, probability=_PROBABILITIES),
)
"""The sweeps, and each image independently, are those of the previous frame in the split."""

fog = graded(
    "multicorrupt/fog",
    lidar=by_severity(fog_points, alpha=(0.02, 0.03, 0.06), beta=(0.008, 0.008, 0.05)),
    cameras=images_by_severity(
        fog_image, skips_unseen=True, strength=(2.0, 3.0, 4.0), beta=(0.0005, 0.001, 0.002)
    ),
)

snow = graded(
    "multicorrupt/snow",
    cameras=images_by_severity(
        add_snow,
        mean=(0.3, 0.4, 0.5),
        zoom=(5, 4, 3),
        threshold=(0.9, 0.85, 0.8),
        radius=(7, 8, 10),
        keep=(0.9, 0.85, 0.8),
    ),
)
"""Flakes over the images; the points stay clear, unlike MultiCorrupt's."""
