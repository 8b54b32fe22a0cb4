"""The last steps of a batch, on the device of the model: normalise and mask images, shuffle points.

They would take a third of a worker's time, and take a GPU next to none; and images are transferred as uint8.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_aqr.structures import Batch


class Finishing:
    """Finishes batches, with the random seeds and masks that their frames have drawn.

    Args:
        mean: of the B, G, R channels, 0..255.
        std: standard deviation of the B, G, R channels.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32)
        self.inverse_std = torch.tensor(std, dtype=torch.float64).reciprocal().float()

    def __call__(self, batch: Batch) -> Batch:
        """Finish a batch on its device; a finished one is returned as it is."""
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
        """Normalise BGR images (..., 3, height, width) from uint8 to float32."""
        if self.mean.device != images.device:
            self.mean, self.inverse_std = self.mean.to(images.device), self.inverse_std.to(images.device)
        normalized = images.contiguous().float()
        normalized -= self.mean[:, None, None]
        normalized *= self.inverse_std[:, None, None]
        return normalized


def shuffle(points: Tensor, seed: int | None) -> Tensor:
    """Shuffle points (point, n) by a seed; ``None`` keeps the order. CPU and GPU give different orders."""
    if seed is None:
        return points
    random = torch.Generator(points.device).manual_seed(seed)
    return points.index_select(0, torch.randperm(len(points), generator=random, device=points.device))
