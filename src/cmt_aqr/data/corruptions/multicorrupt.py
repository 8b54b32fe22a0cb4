"""The ten corruptions of MultiCorrupt (Beemelmanns et al., IV 2024, arXiv 2402.11677), at severities 1 to 3.

Parameters and formulas of its converter (ika-rwth-aachen/MultiCorrupt, ``converter/``). What strikes points
strikes every file of a frame, with draws of its own. Of snow there is the images' half only: the points' needs
lidarseg labels and files of snowflakes. Draws are ours: the published ones come from a pool of processes and
cannot be repeated.
"""

from cmt_aqr.data.corruptions import lidar
from cmt_aqr.data.corruptions.corruption import graded, over
from cmt_aqr.data.corruptions.darkness import darken
from cmt_aqr.data.corruptions.fog import echo_fog, fog_over
from cmt_aqr.data.corruptions.pictures import black_views, blur, brighten, over_pictures
from cmt_aqr.data.corruptions.snow import snow_on
from cmt_aqr.data.corruptions.times import earlier_files, earlier_images

_SHARES = (0.2, 0.4, 0.6)
"""Probability by severity of what is struck or not."""

missingcamera = graded("multicorrupt/missingcamera", cameras=over(black_views, probability=_SHARES))
"""Each image is black, independently."""

brightness = graded("multicorrupt/brightness", cameras=over_pictures(brighten, added=(0.5, 0.6, 0.7)))
"""The images' value is raised."""

dark = graded(
    "multicorrupt/dark",
    cameras=over_pictures(darken, scale=(0.6, 0.4, 0.3), photons=(250, 120, 50), std=(0.008, 0.018, 0.026)),
)
"""Low light with photon and read noise."""

motionblur = graded(
    "multicorrupt/motionblur",
    lidar=over(lidar.blur_points, std=(0.06, 0.1, 0.13)),
    cameras=over_pictures(blur, lower=True, sigma=(6.0, 10.0, 13.0)),
)
"""Images blurred along a line, files of points shifted and their points trembling."""

pointsreducing = graded("multicorrupt/pointsreducing", over(lidar.keep_share, share=(0.3, 0.2, 0.1)))
"""A share of the points of each file stays."""

_RINGS = (range(1, 32, 2), range(1, 30, 4), range(1, 26, 8))

beamsreducing = graded("multicorrupt/beamsreducing", over(lidar.keep_rings, rings=_RINGS))
"""16, 8 or 4 of the 32 rings stay. Needs the ring, the fifth column of the files."""

spatialmisalignment = graded(
    "multicorrupt/spatialmisalignment",
    over(lidar.turn_files, probability=_SHARES, degrees=(1.0, 2.0, 3.0), shift=[(2.0, 0.0, 0.0)] * 3),
)
"""Files of points are turned about all axes and shifted by 2 m to the right."""

temporalmisalignment = graded(
    "multicorrupt/temporalmisalignment",
    lidar=over(earlier_files, probability=_SHARES),
    cameras=over(earlier_images, probability=_SHARES),
)
"""The LiDAR's files, and each image on its own, are those of the frame before in the split."""

fog = graded(
    "multicorrupt/fog",
    lidar=over(echo_fog, alpha=(0.02, 0.03, 0.06), beta=(0.008, 0.008, 0.05)),
    cameras=over_pictures(fog_over, lower=True, strength=(2.0, 3.0, 4.0), beta=(0.0005, 0.001, 0.002)),
)
"""Haze over the images, echoes of the fog among the points."""

snow = graded(
    "multicorrupt/snow",
    cameras=over_pictures(
        snow_on,
        mean=(0.3, 0.4, 0.5),
        zoom=(5, 4, 3),
        threshold=(0.9, 0.85, 0.8),
        radius=(7, 8, 10),
        keep=(0.9, 0.85, 0.8),
    ),
)
"""Flakes over the images; the points stay clear, unlike MultiCorrupt's."""
