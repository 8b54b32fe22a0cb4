"""The last steps from frames to a batch, done where the model computes: normalise, mask, shuffle.

They cost a worker process a third of its time, and a GPU next to nothing; and pictures travel as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_aqr.structures import Batch


class Finishing:
    """Finishes batches; random only in what their frames drew.

    Args:
        mean: mean of the B, G, R channels, 0..255.
        std: their standard deviation.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32)
        self.inverse_std = torch.tensor(std, dtype=torch.float64).reciprocal().float()

    def __call__(self, batch: Batch) -> Batch:
        """The batch as a model takes it, on its device; a finished one as it is."""
        work = batch.device_work
        if work is None:
            return batch
        images = batch.images
        if images is not None:
            images = self.normalize(images)
            if work.image_masks is not None:
                images *= work.image_masks[:, None, None]
        clouds = batch.points.float().split(batch.point_counts)
        shuffled = [shuffle(cloud, seed) for cloud, seed in zip(clouds, work.shuffles, strict=True)]
        return batch.replace(images=images, points=torch.cat(shuffled), device_work=None)

    def normalize(self, images: Tensor) -> Tensor:
        """Images (..., 3, height, width) uint8, BGR, to float32: less the mean, over the standard deviation."""
        if self.mean.device != images.device:
            self.mean, self.inverse_std = self.mean.to(images.device), self.inverse_std.to(images.device)
        normal = images.contiguous().float()
        normal -= self.mean[:, None, None]
        normal *= self.inverse_std[:, None, None]
        return normal


def shuffle(points: Tensor, seed: int | None) -> Tensor:
    """Points (point, n) in the random order of a seed, which is another on another kind of device; None: as is."""
    if seed is None:
        return points
    random = torch.Generator(points.device).manual_seed(seed)
    return points.index_select(0, torch.randperm(len(points), generator=random, device=points.device))
