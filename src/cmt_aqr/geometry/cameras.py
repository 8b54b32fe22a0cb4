"""Projection into the cameras, and conversion between pixels and cells of image feature maps.

Pixels are continuous: the centre of the top-left pixel of an image is at (0, 0), as in the devkit's
projection and in CMT. A feature map at stride s has its cell (i, j) at pixel (i * s, j * s), with no
half-pixel shift, as in CMT's position encoding.
"""

import torch
from torch import Tensor

from cmt_aqr.tensors import from_host


def project_to_images(
    points: Tensor, lidar2img: Tensor, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Project points into every view.

    Args:
        points: (batch, point, 3), metres, LiDAR frame.
        lidar2img: (batch, view, 4, 4).
        image_size: height and width in pixels, padding included.

    Returns:
        pixels (batch, view, point, 2) as (u, v); depth (batch, view, point) in metres; seen (batch, view, point)
        bool: in front of the camera and inside the image.

    As in CMT's release, the division uses the depth detached from the graph and moved 1e-6 m away from 0. Computed
    in float32 or better.
    """
    dtype = torch.promote_types(points.dtype, torch.float32)
    with torch.autocast(points.device.type, enabled=False):
        matrix = lidar2img.to(dtype)
        rotated = torch.einsum("bvij,bpj->bvpi", matrix[..., :3, :3], points.to(dtype))
        projected = rotated + matrix[:, :, None, :3, 3]
        depth = projected[..., 2]
        divisor = depth.detach() + torch.where(depth > 0, 1e-6, -1e-6)
        pixels = projected[..., :2] / divisor[..., None]
    height, width = image_size
    u, v = pixels.unbind(-1)
    seen = (depth > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return pixels, depth, seen


def cell_of_pixel(pixels: Tensor, image_size: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    """Continuous position (column, row) on a feature map, of pixels (..., 2) as (u, v).

    Cell (i, j) lies at pixel (i, j) * image_size / map_size.
    """
    scale = (map_size[1] / image_size[1], map_size[0] / image_size[0])
    return pixels * from_host(scale, pixels.device, pixels.dtype)


def pixel_of_cell(cells: Tensor, image_size: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    """Pixels (u, v) of feature map positions (column, row): the inverse of :func:`cell_of_pixel`."""
    scale = (image_size[1] / map_size[1], image_size[0] / map_size[0])
    return cells * from_host(scale, cells.device, cells.dtype)
