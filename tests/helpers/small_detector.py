"""A small detector with everything that training needs, and batches of random data."""

from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from cmt_aqr.damage import IMAGE_CELLS, RINGS, SECTORS, Damage
from cmt_aqr.runs.configuration import build
from cmt_aqr.structures import Batch
from cmt_aqr.training.module import DetectorModule
from tests.helpers.commands import SMALLEST_MODEL
from tests.helpers.composed import composed
from tests.helpers.struck import cameras_around

PLAIN = [item for item in SMALLEST_MODEL if not item.startswith("aqr.")]
IMAGE_SIZE = (64, 160)


def small_module(*overrides: str, seed: int = 0, metric: Any = None) -> DetectorModule:
    """A DetectorModule of a model smaller than ``tiny``, in training mode, with weights drawn with ``seed``."""
    config = composed(*(PLAIN if "aqr=none" in overrides else SMALLEST_MODEL), *overrides)
    denoising = build(config.training.denoising)
    torch.manual_seed(seed)
    module = DetectorModule(
        model=build(config.model.network),
        criterion=build(config.training.criterion, background_above=denoising.background_above),
        denoising=denoising if denoising.groups else None,
        optimizer=build(config.optimizer),
        multipliers=build(config.lr_mult),
        metric=metric,
    )
    return module.train()


def small_batch(*boxes_of_frames: int, seed: int = 0, truth_seed: int = 0, cameras: bool = True) -> Batch:
    """One frame per number of boxes; ``seed`` draws points and images, ``truth_seed`` the boxes."""
    size = len(boxes_of_frames)
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(400 * size, 5, generator=random) * torch.tensor([40.0, 40.0, 3.0, 255.0, 0.0])
    points[:, :3] -= torch.tensor([20.0, 20.0, 2.0])
    images = torch.randn(size, 6, 3, *IMAGE_SIZE, generator=random)
    truth = torch.Generator().manual_seed(truth_seed)
    count = sum(boxes_of_frames)
    low = torch.tensor([-25.0, -25.0, -1.0, 1.0, 1.0, 1.0, -3.0, -1.0, -1.0])
    high = torch.tensor([25.0, 25.0, 1.0, 5.0, 2.0, 2.0, 3.0, 1.0, 1.0])
    return Batch(
        tokens=tuple(f"frame{number}" for number in range(size)),
        points=points,
        point_counts=(400,) * size,
        images=images if cameras else None,
        lidar2img=cameras_around(*IMAGE_SIZE).float().repeat(size, 1, 1, 1),
        boxes=low + torch.rand(count, 9, generator=truth) * (high - low),
        labels=torch.randint(0, 10, (count,), generator=truth),
        box_counts=boxes_of_frames,
        lidar2global=torch.eye(4, dtype=torch.float64).expand(size, 4, 4),
    )


def damaged(batch: Batch, lidar: float = 1.0, camera: float = 0.0, half: bool = True) -> Batch:
    """The batch with shares of damage to all cameras and to the LiDAR: where y is negative with ``half``."""
    grid = torch.full((SECTORS, RINGS), lidar)
    if half:
        grid[SECTORS // 2 :] = 0
    size, (height, width) = batch.size, IMAGE_SIZE
    scale = torch.tensor((1 / width, 1 / height, 1.0, 1.0))[:, None]
    damage = Damage(
        lidar=grid.flatten().expand(size, -1),
        cameras=torch.full((size, 6, *IMAGE_CELLS), camera),
        projection=(scale * cameras_around(height, width).float()).expand(size, 6, 4, 4),
        to_read=torch.eye(4).expand(size, 4, 4),
    )
    return batch.replace(damage=damage)


def damaged_frames(count: int) -> DataLoader[Batch]:
    """Batches of one frame with three boxes, half of the LiDAR lost and a quarter of each image."""
    batches = [damaged(small_batch(3, seed=number, truth_seed=number), camera=0.25) for number in range(count)]
    return DataLoader(cast(Any, batches), batch_size=None)
