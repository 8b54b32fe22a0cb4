"""AQR: queries weigh the two sensors, cell by cell, before CMT's decoder reads them."""

import torch
from torch import nn

from cmt_aqr.aqr.generator import WeightGenerator
from cmt_aqr.aqr.modulator import Modulator
from cmt_aqr.aqr.placement import damage_at, looking, place
from cmt_aqr.aqr.renderer import Renderer
from cmt_aqr.checks import require_choice, require_flag
from cmt_aqr.outputs import AQROutput, mean_seen
from cmt_aqr.structures import Queries, Sensors

DRAW = ("matching", "all")


class AQR(nn.Module):
    """queries -> weights (query, 2) -> BEV and camera maps -> modulated features.

    Follows MoME's query router (Park et al., CVPR 2025, arXiv 2503.19776) in looking at each query's
    neighbourhood, but gives two continuous weights instead of a choice of expert.

    Args:
        draw: which queries weigh and draw: ``matching`` (learned queries only) or ``all`` (denoising queries too,
            all but their padding, which shows the matching queries where the boxes are: for experiments only).
        stop_gradient: let the generator look at features without changing them; needed where it learns from a
            signal of its own.
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
        """Weigh, render and modulate; reference points only say where queries stand and get no gradient from here.

        Returns:
            the modulated features in the dtypes of the features, weights and maps in float32 or better. What
            belongs to an absent sensor is ``None``; its weight is there and unused.
        """
        asked = queries if self.draw == "all" else queries.matching()
        on_bev, on_images = place(asked, sensors)
        looked_at, embedding = looking(asked, sensors, self.stop_gradient)
        weights = self.generator(embedding, looked_at, on_bev, on_images)  # (batch, query, 2)
        lidar_lost, camera_lost, seen = damage_at(asked, sensors)
        if camera_lost is not None and seen is not None:
            camera_lost = mean_seen(camera_lost, seen)
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
            lidar_lost=lidar_lost,
            camera_lost=camera_lost,
        )
