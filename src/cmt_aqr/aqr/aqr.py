"""AQR: queries weigh the two sensors, cell by cell, before CMT's decoder reads them."""

import torch
from torch import nn

from cmt_aqr.aqr.generator import WeightGenerator
from cmt_aqr.aqr.modulator import Modulator
from cmt_aqr.aqr.placement import damage_at, generator_inputs, place
from cmt_aqr.aqr.renderer import Renderer
from cmt_aqr.checks import require_choice, require_flag
from cmt_aqr.outputs import AQROutput, mean_seen
from cmt_aqr.structures import Queries, Sensors

DRAW = ("matching", "all")


class AQR(nn.Module):
    """queries -> weights (query, 2) -> BEV and camera maps -> modulated features.

    Like MoME's query router (Park et al., CVPR 2025, arXiv 2503.19776) it reads each query's neighbourhood, but it
    predicts two continuous weights instead of choosing an expert.

    Args:
        draw: queries that get weights and are rendered: ``matching`` (learned queries only), or ``all`` (also
            denoising queries without padding; the maps then leak the boxes: for experiments only).
        stop_gradient: block the generator's gradient to the features; required if it has a training signal of
            its own.
    """

    def __init__(
        self,
        generator: WeightGenerator,
        renderer: Renderer,
        modulator: Modulator,
        draw: str = "matching",
        stop_gradient: bool = False,
    ) -> None:
        super().__init__()
        require_choice("draw", draw, DRAW)
        require_flag("stop_gradient", stop_gradient)
        self.draw = draw
        self.stop_gradient = stop_gradient
        self.generator = generator
        self.renderer = renderer
        self.modulator = modulator

    def forward(self, queries: Queries, sensors: Sensors) -> AQROutput:
        """Predict weights, render and modulate. Reference points get no gradient.

        Returns:
            Modulated features in the dtype of the features; weights and maps in float32 or better. The fields of
            an absent sensor are ``None``; its weight exists and is unused.
        """
        if self.draw == "matching":
            queries = queries.matching()
        on_bev, on_images = place(queries, sensors)
        embedding, features = generator_inputs(queries, sensors, self.stop_gradient)
        weights = self.generator(embedding, features, on_bev, on_images)  # (batch, query, 2)
        lidar_lost, camera_lost, seen = damage_at(queries, sensors)
        if camera_lost is not None and seen is not None:
            camera_lost = mean_seen(camera_lost, seen)
        nowhere = torch.zeros_like(weights[..., 0], dtype=torch.bool)
        bev_raw = bev_map = bev = image_raw = image_map = images = None
        if sensors.bev is not None and on_bev is not None:
            bev_raw, bev_map = self.renderer(weights[..., 0], on_bev, queries.valid)  # (batch, row, column)
            bev = self.modulator(sensors.bev, bev_map, "bev")
        if sensors.images is not None and on_images is not None:
            valid = None if queries.valid is None else queries.valid[:, None]
            image_raw, image_map = self.renderer(weights[:, None, :, 1], on_images, valid)
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
            valid=queries.valid,
            bev_input=sensors.bev,
            image_input=sensors.images,
            lidar_lost=lidar_lost,
            camera_lost=camera_lost,
        )
