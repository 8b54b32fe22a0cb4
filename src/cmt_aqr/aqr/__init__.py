"""AQR: each query weighs the two sensors, on their feature maps or in the decoder's attention."""

from cmt_aqr.aqr.aqr import AQR
from cmt_aqr.aqr.bias import AttentionBias
from cmt_aqr.aqr.generator import WeightGenerator, WindowReader
from cmt_aqr.aqr.kernels import METHODS
from cmt_aqr.aqr.modulator import Modulator
from cmt_aqr.aqr.placement import Placement, place_on_bev, place_on_images
from cmt_aqr.aqr.renderer import Renderer

__all__ = [
    "AQR",
    "METHODS",
    "AttentionBias",
    "Modulator",
    "Placement",
    "Renderer",
    "WeightGenerator",
    "WindowReader",
    "place_on_bev",
    "place_on_images",
]
