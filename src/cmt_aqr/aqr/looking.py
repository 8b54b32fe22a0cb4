"""What either form of AQR asks first: where the queries stand, what they may look at, what is broken there."""

from __future__ import annotations

from torch import Tensor

from cmt_aqr.aqr.placement import Placement, place_on_bev, place_on_images
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.structures import Queries, Sensors


def place(queries: Queries, sensors: Sensors) -> tuple[Placement | None, Placement | None]:
    """Where the queries stand on the BEV map and on the image maps; ``None`` for a sensor that is not there.

    Raises:
        ValueError: the shapes of features and grid contradict each other, or there are images without views.
    """
    on_bev = on_images = None
    if sensors.bev is not None:
        size = (sensors.bev.shape[-2], sensors.bev.shape[-1])
        on_bev = _place_on_features(queries.places, sensors.grid, size)
    if sensors.images is not None:
        if sensors.views is None:
            raise ValueError("AQR has image features but no views to find their cells with")
        rows, columns = sensors.images.shape[-2:]
        views = sensors.views
        on_images = place_on_images(queries.places, views.lidar2img, views.size, (rows, columns))
    return on_bev, on_images


def _place_on_features(points: Tensor, grid: BEVGrid | None, size: tuple[int, int]) -> Placement:
    """Placement on BEV features of ``size``, whose grid must be known and of that size."""
    if grid is None:
        raise ValueError("AQR has BEV features but no grid to find their cells with")
    if grid.bev_shape != size:
        raise ValueError(
            f"grid.sparse_shape={list(grid.sparse_shape)}: gives a BEV map of {grid.bev_shape} cells, but "
            f"the BEV features have {size}"
        )
    return place_on_bev(points, grid)


def looking(queries: Queries, sensors: Sensors, stop_gradient: bool) -> tuple[Sensors, Tensor]:
    """What the generator looks at, and the queries' embedding (batch, query, channel); both without a way back
    for the gradient where it is stopped.
    """
    if not stop_gradient:
        return sensors, queries.embedding
    kept = ("bev", "bev_position", "images", "image_position")
    values = {name: getattr(sensors, name) for name in kept}
    detached = {name: value.detach() for name, value in values.items() if value is not None}
    return sensors.replace(**detached), queries.embedding.detach()


def damage_at(queries: Queries, sensors: Sensors) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What faults broke at each query, as of :meth:`cmt_aqr.damage.Damage.at`; ``None`` where it is not known."""
    return (None, None, None) if sensors.damage is None else sensors.damage.at(queries.places)
