"""The damage of a frame: the share of each sensor's data that faults destroyed, per cell and at a position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cmt_aqr.geometry import project_to_images
from cmt_aqr.tensors import TensorStructure

SECTORS, RINGS = 72, 12
"""Cells of the LiDAR's polar grid: 5 degrees of azimuth, and ``REACH / RINGS`` metres of range."""

REACH = 60.0
"""Range of the polar grid in metres; points beyond belong to the outermost ring."""

IMAGE_CELLS = (8, 16)
"""Rows and columns of cells per image."""


def polar_cell(xy: Tensor) -> Tensor:
    """Index of the polar cell, sector * RINGS + ring, int64, of positions (..., 2) in metres, LiDAR frame."""
    turn = torch.atan2(xy[..., 1], xy[..., 0]) / (2 * math.pi) + 0.5
    sector = (turn * SECTORS).long().clamp(0, SECTORS - 1)
    ring = (xy.norm(dim=-1) * (RINGS / REACH)).long().clamp(0, RINGS - 1)
    return sector * RINGS + ring


@dataclass(frozen=True)
class Damage(TensorStructure):
    """Share of each sensor's data that is lost: 0 is intact, 1 is all lost.

    The grids are in the coordinates of the frame as read. Scene augmentation moves the LiDAR frame and updates
    ``to_read``; image augmentation changes nothing here.

    Attributes:
        lidar: (batch, sector * ring) float32, see :func:`polar_cell`.
        cameras: (batch, view, row, column) float32, by cells of the images as read.
        projection: (batch, view, 4, 4) float32, the true calibration: a homogeneous point in the LiDAR frame as
            read becomes (u * depth, v * depth, depth, 1), with u and v in [0, 1) over the image.
        to_read: (batch, 4, 4) float32, from the present LiDAR frame to the one as read.

    The damage of a single frame has no batch dimension.
    """

    lidar: Tensor
    cameras: Tensor
    projection: Tensor
    to_read: Tensor

    @classmethod
    def stack(cls, damages: list[Damage]) -> Damage:
        """The damage of a batch, from that of its frames."""
        return cls(*(torch.stack([getattr(one, name) for one in damages]) for name in cls.__dataclass_fields__))

    def of_frame(self, place: int) -> Damage:
        """The damage of one frame of the batch, as a batch of one."""
        rows = slice(place, place + 1)
        return Damage(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def moved(self, inverse: Tensor) -> Self:
        """The damage after a move of the LiDAR frame, whose ``inverse`` (4, 4) takes points back."""
        return self.replace(to_read=self.to_read @ inverse.to(self.to_read.dtype))

    def at(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Damage at places (batch, query, 3), metres in the present LiDAR frame.

        Returns:
            the LiDAR's damage (batch, query); each camera's (batch, query, view), 0 where it does not see the
            place; whether it sees the place (batch, query, view) bool. Float32, without gradient.
        """
        with torch.no_grad(), torch.autocast(places.device.type, enabled=False):
            places = places.float() @ self.to_read[:, :3, :3].mT + self.to_read[:, None, :3, 3]
            lidar = self.lidar.gather(1, polar_cell(places[..., :2]))  # (batch, query)
            pixels, _, seen = project_to_images(places, self.projection, (1, 1))  # (batch, view, query, 2)
            rows, columns = self.cameras.shape[-2:]
            column, row = torch.nan_to_num(pixels).clamp(0, 1 - 1e-6).unbind(-1)
            cell = (row * rows).long() * columns + (column * columns).long()
            cameras = self.cameras.flatten(2).gather(2, cell) * seen
        return lidar, cameras.mT, seen.mT
