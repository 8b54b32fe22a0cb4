"""AQR: queries weigh the two sensors, cell by cell, before CMT's decoder reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmt_aqr.aqr.checks import require_choice
from cmt_aqr.aqr.generator import WeightGenerator
from cmt_aqr.aqr.modulator import Modulator
from cmt_aqr.aqr.placement import Placement, place_on_bev, place_on_images
from cmt_aqr.aqr.renderer import Renderer
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.structures import AQROutput

DRAW = ("matching", "all")


class AQR(nn.Module):
    """queries -> weights (query, 2) -> BEV and camera maps -> modulated features.

    Follows MoME's query router (Park et al., CVPR 2025, arXiv 2503.19776) in looking at each query's
    neighbourhood, but gives two continuous weights instead of a choice of expert.

    Args:
        generator: makes the weights.
        renderer: draws them.
        modulator: changes the features by them.
        draw: which queries the caller is to pass: ``matching`` (learned queries only) or ``all`` (denoising
            queries too, which shows the matching queries where the boxes are: for experiments only; their
            padding comes with ``draws`` False). AQR itself treats all queries that it gets alike.
    """

    def __init__(
        self, generator: WeightGenerator, renderer: Renderer, modulator: Modulator, draw: str = "matching"
    ) -> None:
        super().__init__()
        require_choice("aqr.draw", draw, DRAW)
        self.draw = draw
        self.generator = generator
        self.renderer = renderer
        self.modulator = modulator

    def forward(
        self,
        query_embedding: Tensor,
        reference_points: Tensor,
        bev_features: Tensor | None,
        image_features: Tensor | None,
        bev_position: Tensor | None,
        image_position: Tensor | None,
        grid: BEVGrid | None,
        lidar2img: Tensor,
        image_size: tuple[int, int],
        draws: Tensor | None = None,
    ) -> AQROutput:
        """Weigh, draw and modulate.

        Reference points only say where queries stand; they get no gradient from here.

        Args:
            query_embedding: (batch, query, channel), CMT's query embedding.
            reference_points: (batch, query, 3), metres in the LiDAR frame.
            bev_features: (batch, channel, height, width) as the decoder would read them, or ``None``.
            image_features: (batch, view, channel, height, width) likewise, or ``None``.
            bev_position: (height * width, channel), what the decoder adds to its BEV keys, or ``None``.
            image_position: (batch, view, height * width, channel), likewise for the image keys, or ``None``.
            grid: of the BEV features; ``None`` without them.
            lidar2img: (batch, view, 4, 4), LiDAR frame to pixels.
            image_size: height and width of the padded images in pixels.
            draws: (batch, query) bool, False for queries that must not draw, such as padding; ``None``: all.

        Returns:
            the modulated features in the dtypes of the features, weights and maps in float32 or better. What
            belongs to an absent sensor is ``None``; its weight is there and unused.

        Raises:
            ValueError: the shapes of features, positions, grid and configuration contradict each other.
        """
        bev_size = None if bev_features is None else (bev_features.shape[-2], bev_features.shape[-1])
        image_shape = None
        if image_features is not None:
            image_shape = (image_features.shape[1], image_features.shape[-2], image_features.shape[-1])
        self.renderer.check_shapes(bev_size, image_shape)
        on_bev = None if bev_size is None else _place_on_features(reference_points, grid, bev_size)
        on_images = None
        if image_shape is not None:
            on_images = place_on_images(reference_points, lidar2img, image_size, image_shape[1:])

        weights = self.generator(
            query_embedding, bev_features, image_features, bev_position, image_position, on_bev, on_images
        )
        none_seen = torch.zeros_like(weights[..., 0], dtype=torch.bool)
        bev_map_raw = bev_map = bev_modulated = None
        if bev_features is not None and on_bev is not None:
            bev_map_raw, bev_map = self.renderer(weights[..., 0], on_bev, draws)
            bev_modulated = self.modulator(bev_features, bev_map, "bev")
        image_map_raw = image_map = image_modulated = None
        if image_features is not None and on_images is not None:
            draws_in_view = None if draws is None else draws[:, None]
            image_map_raw, image_map = self.renderer(weights[:, None, :, 1], on_images, draws_in_view)
            image_modulated = self.modulator(image_features, image_map, "image")
        return AQROutput(
            weights=weights,
            camera_seen=none_seen if on_images is None else on_images.inside.any(dim=1),
            bev_seen=none_seen if on_bev is None else on_bev.inside,
            bev_features=bev_modulated,
            image_features=image_modulated,
            bev_map_raw=bev_map_raw,
            bev_map=bev_map,
            image_map_raw=image_map_raw,
            image_map=image_map,
            draws=draws,
        )


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
