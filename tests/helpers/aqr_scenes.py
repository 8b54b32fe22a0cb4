"""A small made-up scene for AQR: six cameras whose views overlap, a BEV grid, features and queries."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cmt_aqr.aqr import AQR, Modulator, Renderer, WeightGenerator
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.outputs import AQROutput
from cmt_aqr.structures import Queries, Sensors, Views

GRID = BEVGrid((-8.0, -8.0, -2.0, 8.0, 8.0, 2.0), (0.25, 0.25, 0.5), (9, 64, 64), 8)
"""8 x 8 BEV cells of 2 m."""

GOLDEN_GRID = BEVGrid((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.1, 0.1, 0.2), (41, 1024, 1024), 8)
"""The published 0.1 m configuration: 1024 cells over a declared range of 1080 cells."""

IMAGE_SIZE = (48, 80)
IMAGE_MAP = (6, 10)


def rig(batch: int = 1, views: int = 6, field_of_view: float = 80.0) -> Tensor:
    """lidar2img (batch, view, 4, 4) of cameras that look outwards in equal steps of the circle."""
    height, width = IMAGE_SIZE
    focal = width / 2 / math.tan(math.radians(field_of_view) / 2)
    matrices = []
    for view in range(views):
        yaw = 2 * math.pi * view / views
        forward = torch.tensor((math.cos(yaw), math.sin(yaw), 0.0, 0.0))
        right = torch.tensor((math.sin(yaw), -math.cos(yaw), 0.0, 0.0))
        down = torch.tensor((0.0, 0.0, -1.0, 0.0))
        last = torch.tensor((0.0, 0.0, 0.0, 1.0))
        rows = (
            focal * right + width / 2 * forward,
            focal * down + height / 2 * forward,
            forward,
            last,
        )
        matrices.append(torch.stack(rows))
    return torch.stack(matrices).expand(batch, views, 4, 4).clone()


def points(batch: int, count: int, seed: int = 0) -> Tensor:
    """Points (batch, count, 3) in metres; some stand off the BEV map, some above or below every view."""
    random = torch.Generator().manual_seed(seed)
    scale = torch.tensor((9.0, 9.0, 3.0))
    return (torch.rand(batch, count, 3, generator=random) * 2 - 1) * scale


def inputs(batch: int = 1, queries: int = 12, channels: int = 8, seed: int = 0) -> dict[str, Any]:
    """Arguments of ``AQR.forward`` for the made-up scene, float32, without gradients."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = GRID.bev_shape
    height, width = IMAGE_MAP

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return {
        "query_embedding": normal(batch, queries, channels),
        "reference_points": points(batch, queries, seed),
        "bev_features": normal(batch, channels, rows, columns),
        "image_features": normal(batch, 6, channels, height, width),
        "bev_position": normal(rows * columns, channels),
        "image_position": normal(batch, 6, height * width, channels),
        "grid": GRID,
        "lidar2img": rig(batch),
        "image_size": IMAGE_SIZE,
    }


def queries_and_sensors(scene: dict[str, Any]) -> tuple[Queries, Sensors]:
    """What :func:`inputs` gives, as AQR takes it."""
    embedding = scene["query_embedding"]
    queries = Queries(embedding, torch.zeros_like(scene["reference_points"]), scene["reference_points"])
    if "valid" in scene:
        queries = queries.replace(valid=scene["valid"])
    bev, images = scene["bev_features"], scene["image_features"]
    sensors = Sensors(
        bev=bev,
        bev_position=scene["bev_position"],
        grid=scene["grid"],
        images=images,
        image_position=scene["image_position"],
        views=Views.of(scene["lidar2img"].float(), scene["image_size"]).replace(lidar2img=scene["lidar2img"]),
    )
    return queries, sensors


def run(aqr: AQR, **scene: Any) -> AQROutput:
    """AQR on a scene of :func:`inputs`."""
    return aqr(*queries_and_sensors(scene))


def small_aqr(
    generator: dict[str, Any] | None = None,
    renderer: dict[str, Any] | None = None,
    modulator: dict[str, Any] | None = None,
    seed: int = 0,
) -> AQR:
    """An AQR for :func:`inputs`, whose weights differ a lot from query to query; dropout off."""
    torch.manual_seed(seed)
    settings = {
        "embed_dims": 8,
        "num_heads": 2,
        "feedforward_dims": 16,
        "dropout": 0.0,
        "bev_window": 3,
        "image_window": 5,
    }
    aqr = AQR(
        WeightGenerator(**{**settings, **(generator or {})}),
        Renderer(**(renderer or {})),
        Modulator(**(modulator or {})),
    )
    torch.nn.init.normal_(aqr.generator.weight_head.weight, std=0.5)
    return aqr
