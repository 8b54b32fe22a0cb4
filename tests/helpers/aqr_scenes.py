"""A small random scene for AQR: six cameras with overlapping views, a BEV grid, features and queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmt_aqr.aqr import AQR, Modulator, Renderer, WeightGenerator
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.outputs import AQROutput
from cmt_aqr.structures import Queries, Sensors, Views
from tests.helpers.struck import cameras_around

GRID = BEVGrid((-8.0, -8.0, -2.0, 8.0, 8.0, 2.0), (0.25, 0.25, 0.5), (9, 64, 64), 8)
"""8 x 8 BEV cells of 2 m."""

GOLDEN_GRID = BEVGrid((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.1, 0.1, 0.2), (41, 1024, 1024), 8)
"""Of the published 0.1 m configuration: 1024 cells, where the declared range has 1080."""

IMAGE_SIZE = (48, 80)
IMAGE_MAP = (6, 10)


def rig(batch: int = 1) -> Tensor:
    """lidar2img (batch, 6, 4, 4), float32, of cameras with a field of view of 80 degrees."""
    return cameras_around(*IMAGE_SIZE, sees=80.0).float().repeat(batch, 1, 1, 1)


def points(batch: int, count: int, seed: int = 0) -> Tensor:
    """Points (batch, count, 3) in metres; some lie outside the BEV map, some outside every view."""
    random = torch.Generator().manual_seed(seed)
    scale = torch.tensor((9.0, 9.0, 3.0))
    return (torch.rand(batch, count, 3, generator=random) * 2 - 1) * scale


def inputs(batch: int = 1, queries: int = 12, channels: int = 8, seed: int = 0) -> dict[str, Any]:
    """Tensors, grid and image size of a random scene, for :func:`queries_and_sensors`."""
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
    """The arguments of ``AQR.forward`` from those of :func:`inputs`."""
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
    """The output of AQR for a scene of :func:`inputs`."""
    return aqr(*queries_and_sensors(scene))


def small_aqr(
    generator: dict[str, Any] | None = None,
    renderer: dict[str, Any] | None = None,
    modulator: dict[str, Any] | None = None,
    seed: int = 0,
) -> AQR:
    """An AQR for :func:`inputs` without dropout, whose weights differ much between queries."""
    torch.manual_seed(seed)
    settings = {"embed_dims": 8, "num_heads": 2, "feedforward_dims": 16, "dropout": 0.0}
    settings |= {"bev_window": 3, "image_window": 5}
    aqr = AQR(
        WeightGenerator(**{**settings, **(generator or {})}),
        Renderer(**(renderer or {})),
        Modulator(**(modulator or {})),
    )
    torch.nn.init.normal_(aqr.generator.weight_head.weight, std=0.5)
    return aqr
