"""Positions of queries on the feature maps of both sensors.

BEV cells and image cells follow different conventions (a BEV cell covers [i, i + 1), an image cell lies *at*
the integer i, see :mod:`cmt_aqr.geometry`). A :class:`Placement` unifies them: integer positions are the centres
of cells. Windows and rendering are therefore one code path for both sensors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_aqr.geometry import BEVGrid, cell_of_pixel, project_to_images
from cmt_aqr.structures import Queries, Sensors


@dataclass(frozen=True)
class Placement:
    """Positions of queries on a stack of maps of one size.

    Attributes:
        position: (..., query, 2) float, (column, row); integers are the centres of cells. Clamped to the centres
            of the outermost cells; undefined where ``inside`` is False.
        inside: (..., query) bool, whether the query lies on this map.
        map_size: rows and columns of the maps.
    """

    position: Tensor
    inside: Tensor
    map_size: tuple[int, int]

    @property
    def cell(self) -> Tensor:
        """(..., query, 2) int64, (column, row) of the query's cell; always a cell of the map."""
        return (self.position + 0.5).floor().long()


def place(queries: Queries, sensors: Sensors) -> tuple[Placement | None, Placement | None]:
    """Placements of the queries on the BEV map and on the image maps; ``None`` for an absent sensor."""
    on_bev = on_images = None
    if sensors.bev is not None and sensors.grid is not None:
        on_bev = place_on_bev(queries.places, sensors.grid)
    if sensors.images is not None and sensors.views is not None:
        size = (sensors.images.shape[-2], sensors.images.shape[-1])
        on_images = place_on_images(queries.places, sensors.views.lidar2img, sensors.views.size, size)
    return on_bev, on_images


def place_on_bev(points: Tensor, grid: BEVGrid) -> Placement:
    """Place points (batch, query, 3), metres in the LiDAR frame, on the BEV map of the grid.

    The cell is (x - x_min) / (voxel_size * stride) on the grid of the features. So an object's features and the
    weight of a query on it fall into the same cell, even if the declared range is wider than the cells. Returns a
    placement with leading shape (batch,).
    """
    exact = torch.promote_types(points.dtype, torch.float32)
    cell = grid.cell_of(points.detach()[..., :2].to(exact))
    return _placement(cell, cell - 0.5, grid.bev_shape)


def place_on_images(
    points: Tensor, lidar2img: Tensor, image_size: tuple[int, int], map_size: tuple[int, int]
) -> Placement:
    """Place points (batch, query, 3), metres in the LiDAR frame, on the feature map of every view.

    A point lies on the map of a view that sees it: in front of the camera and inside the (padded) image. The last
    cells of a map also cover the pixels beyond their centres. Returns a placement with leading shape
    (batch, view).
    """
    pixels, _, seen = project_to_images(points.detach(), lidar2img, image_size)
    position = cell_of_pixel(pixels, image_size, map_size)
    placement = _placement(position, position, map_size)
    return Placement(placement.position, placement.inside & seen, map_size)


def _placement(covered: Tensor, position: Tensor, map_size: tuple[int, int]) -> Placement:
    """Placement of ``position``; a point is inside where ``covered`` lies in [0, columns) x [0, rows)."""
    rows, columns = map_size
    x, y = covered.unbind(-1)
    inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    column, row = torch.nan_to_num(position).unbind(-1)
    clamped = torch.stack((column.clamp(0, columns - 1), row.clamp(0, rows - 1)), dim=-1)
    return Placement(clamped, inside, map_size)


def generator_inputs(queries: Queries, sensors: Sensors, stop_gradient: bool) -> tuple[Tensor, Sensors]:
    """The queries' embedding (batch, query, channel) and the sensors, detached with ``stop_gradient``."""
    if not stop_gradient:
        return queries.embedding, sensors
    values = {name: getattr(sensors, name) for name in ("bev", "bev_position", "images", "image_position")}
    detached = {name: value.detach() for name, value in values.items() if value is not None}
    return queries.embedding.detach(), sensors.replace(**detached)


def damage_at(queries: Queries, sensors: Sensors) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Damage at each query, see :meth:`cmt_aqr.damage.Damage.at`; ``None`` where it is unknown."""
    return (None, None, None) if sensors.damage is None else sensors.damage.at(queries.places)
