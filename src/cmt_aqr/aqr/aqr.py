"""AQR: queries weigh the two sensors, cell by cell, before CMT's decoder reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmt_aqr.aqr.generator import WeightGenerator
from cmt_aqr.aqr.modulator import Modulator
from cmt_aqr.aqr.placement import Placement, place_on_bev, place_on_images
from cmt_aqr.aqr.renderer import Renderer
from cmt_aqr.checks import require_choice
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.structures import AQROutput, Queries, Sensors

DRAW = ("matching", "all")


class AQR(nn.Module):
    """queries -> weights (query, 2) -> BEV and camera maps -> modulated features.

    Follows MoME's query router (Park et al., CVPR 2025, arXiv 2503.19776) in looking at each query's
    neighbourhood, but gives two continuous weights instead of a choice of expert.

    Args:
        generator: makes the weights.
        renderer: renders them.
        modulator: changes the features by them.
        draw: which queries weigh and draw: ``matching`` (learned queries only) or ``all`` (denoising queries too,
            all but their padding, which shows the matching queries where the boxes are: for experiments only).
    """

    def __init__(
        self, generator: WeightGenerator, renderer: Renderer, modulator: Modulator, draw: str = "matching"
    ) -> None:
        super().__init__()
        require_choice("draw", draw, DRAW)
        self.draw = draw
        self.generator = generator
        self.renderer = renderer
        self.modulator = modulator

    def forward(self, queries: Queries, sensors: Sensors) -> AQROutput:
        """Weigh, render and modulate.

        Reference points only say where queries stand; they get no gradient from here.

        Args:
            queries: CMT's; those that ``draw`` names are looked at.
            sensors: the maps as the decoder would read them.

        Returns:
            the modulated features in the dtypes of the features, weights and maps in float32 or better. What
            belongs to an absent sensor is ``None``; its weight is there and unused.

        Raises:
            ValueError: the shapes of features, positions, grid and configuration contradict each other.
        """
        asked = queries if self.draw == "all" else queries.matching()
        on_bev, on_images = self._place(asked, sensors)
        weights = self.generator(asked.embedding, sensors, on_bev, on_images)  # (batch, query, 2)
        nowhere = torch.zeros_like(weights[..., 0], dtype=torch.bool)
        bev_raw = bev_map = bev = image_raw = image_map = images = None
        if sensors.bev is not None and on_bev is not None:
            bev_raw, bev_map = self.renderer(weights[..., 0], on_bev, asked.draws)  # (batch, row, column)
            bev = self.modulator(sensors.bev, bev_map, "bev")
        if sensors.images is not None and on_images is not None:
            in_view = None if asked.draws is None else asked.draws[:, None]
            image_raw, image_map = self.renderer(weights[:, None, :, 1], on_images, in_view)
            images = self.modulator(sensors.images, image_map, "image")
        return AQROutput(
            weights=weights,
            camera_seen=nowhere if on_images is None else on_images.inside.any(dim=1),
            bev_seen=nowhere if on_bev is None else on_bev.inside,
            bev_features=bev,
            image_features=images,
            bev_map_raw=bev_raw,
            bev_map=bev_map,
            image_map_raw=image_raw,
            image_map=image_map,
            draws=asked.draws,
            bev_given=sensors.bev,
            image_given=sensors.images,
        )

    def _place(self, queries: Queries, sensors: Sensors) -> tuple[Placement | None, Placement | None]:
        """Where the queries stand on the BEV map and on the image maps."""
        on_bev = on_images = bev_size = image_size = None
        if sensors.bev is not None:
            bev_size = (sensors.bev.shape[-2], sensors.bev.shape[-1])
            on_bev = _place_on_features(queries.places, sensors.grid, bev_size)
        if sensors.images is not None:
            if sensors.views is None:
                raise ValueError("AQR has image features but no views to find their cells with")
            rows, columns = sensors.images.shape[-2:]
            image_size = (sensors.images.shape[1], rows, columns)
            views = sensors.views
            on_images = place_on_images(queries.places, views.lidar2img, views.size, (rows, columns))
        self.renderer.check_shapes(bev_size, image_size)
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
