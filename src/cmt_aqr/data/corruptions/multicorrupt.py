"""The ten corruptions of MultiCorrupt (Beemelmanns et al., IV 2024, arXiv 2402.11677), at severities 1 to 3.

Parameters and formulas of its converter (ika-rwth-aachen/MultiCorrupt, ``converter/``). What strikes points
strikes every file of a frame, with draws of its own. Of snow there is the images' half only: the points' needs
lidarseg labels and files of snowflakes. Draws are ours: the published ones come from a pool of processes and
cannot be repeated.
"""

from __future__ import annotations

from cmt_aqr.data.corruptions.corruption import Corruption, of_severity
from cmt_aqr.data.corruptions.darkness import Darker
from cmt_aqr.data.corruptions.fog import FogEchoes, FogHaze
from cmt_aqr.data.corruptions.lidar import BlurPoints, KeepRings, KeepShare, TurnFiles
from cmt_aqr.data.corruptions.pictures import BlackViews, Blur, Brighter
from cmt_aqr.data.corruptions.snow import Snow
from cmt_aqr.data.corruptions.times import EarlierFiles, EarlierImages

SHARES = (0.2, 0.4, 0.6)
"""Probability by severity of what is struck or not."""


def missingcamera(severity: int = 1) -> Corruption:
    """Each image is black, independently."""
    name = "multicorrupt/missingcamera"
    return Corruption(name, cameras=BlackViews(of_severity(name, severity, SHARES)))


def brightness(severity: int = 1) -> Corruption:
    """The images' value is raised."""
    name = "multicorrupt/brightness"
    return Corruption(name, cameras=Brighter(of_severity(name, severity, (0.5, 0.6, 0.7))))


def dark(severity: int = 1) -> Corruption:
    """Low light with photon and read noise."""
    name = "multicorrupt/dark"
    parameters = ((0.6, 250, 0.008), (0.4, 120, 0.018), (0.3, 50, 0.026))
    return Corruption(name, cameras=Darker(*of_severity(name, severity, parameters)))


def motionblur(severity: int = 1) -> Corruption:
    """Images blurred along a line, files of points shifted and their points trembling."""
    name = "multicorrupt/motionblur"
    std, sigma = of_severity(name, severity, ((0.06, 6.0), (0.1, 10.0), (0.13, 13.0)))
    return Corruption(name, lidar=BlurPoints(std), cameras=Blur(sigma))


def pointsreducing(severity: int = 1) -> Corruption:
    """A share of the points of each file stays."""
    name = "multicorrupt/pointsreducing"
    return Corruption(name, lidar=KeepShare(of_severity(name, severity, (0.3, 0.2, 0.1))))


def beamsreducing(severity: int = 1) -> Corruption:
    """16, 8 or 4 of the 32 rings stay. Needs the ring, the fifth column of the files."""
    name = "multicorrupt/beamsreducing"
    rings = of_severity(name, severity, (range(1, 32, 2), range(1, 30, 4), range(1, 26, 8)))
    return Corruption(name, lidar=KeepRings(tuple(rings)))


def spatialmisalignment(severity: int = 1) -> Corruption:
    """Files of points are turned about all axes and shifted by 2 m to the right."""
    name = "multicorrupt/spatialmisalignment"
    probability, degrees = of_severity(name, severity, tuple(zip(SHARES, (1.0, 2.0, 3.0), strict=True)))
    return Corruption(name, lidar=TurnFiles(probability, degrees, (2.0, 0.0, 0.0)))


def temporalmisalignment(severity: int = 1) -> Corruption:
    """The LiDAR's files, and each image on its own, are those of the frame before in the split."""
    name = "multicorrupt/temporalmisalignment"
    probability = of_severity(name, severity, SHARES)
    return Corruption(name, lidar=EarlierFiles(probability), cameras=EarlierImages(probability))


def fog(severity: int = 1) -> Corruption:
    """Haze over the images, echoes of the fog among the points."""
    name = "multicorrupt/fog"
    parameters = ((0.02, 0.008, 2.0, 0.0005), (0.03, 0.008, 3.0, 0.001), (0.06, 0.05, 4.0, 0.002))
    alpha, backscatter, strength, beta = of_severity(name, severity, parameters)
    return Corruption(name, lidar=FogEchoes(alpha, backscatter), cameras=FogHaze(strength, beta))


def snow(severity: int = 1) -> Corruption:
    """Flakes over the images; the points stay clear, unlike MultiCorrupt's."""
    name = "multicorrupt/snow"
    parameters = ((0.3, 5, 0.9, 7, 0.9), (0.4, 4, 0.85, 8, 0.85), (0.5, 3, 0.8, 10, 0.8))
    return Corruption(name, cameras=Snow(*of_severity(name, severity, parameters)))
