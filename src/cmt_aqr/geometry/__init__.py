"""Boxes, cameras and the BEV grid: the only code that converts metres to cells or pixels."""

from cmt_aqr.geometry.boxes import box_corners, decode_boxes, encode_boxes, points_in_boxes, wrap_angle
from cmt_aqr.geometry.cameras import cell_of_pixel, pixel_of_cell, project_to_images
from cmt_aqr.geometry.grid import BEVGrid, inverse_sigmoid, to_metres, to_unit

__all__ = [
    "BEVGrid",
    "box_corners",
    "cell_of_pixel",
    "decode_boxes",
    "encode_boxes",
    "inverse_sigmoid",
    "pixel_of_cell",
    "points_in_boxes",
    "project_to_images",
    "to_metres",
    "to_unit",
    "wrap_angle",
]
