"""Hard voxelisation: a voxel is the mean of its first points (VoxelNet, Zhou and Tuzel, CVPR 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_aqr.geometry.grid import BEVGrid
from cmt_aqr.structures import sample_index
from cmt_aqr.tensors import TensorStructure, from_host


@dataclass(frozen=True)
class Voxels(TensorStructure):
    """The occupied voxels of a batch, sorted by (sample, z, y, x).

    Attributes:
        coords: (voxel, 4) int64: sample, z, y, x.
        features: (voxel, point feature) float32, mean over the kept points.
        count: (voxel,) int64, number of kept points, at least 1.
    """

    coords: Tensor
    features: Tensor
    count: Tensor


def voxel_counts(grid: BEVGrid) -> tuple[int, int, int]:
    """Voxels along z, y, x within both the range and ``sparse_shape``.

    The released 0.1 m configuration declares 1024 of the range's 1080 cells. Its compiled hashing wraps cells past
    the last one into the next row; here their points are dropped.
    """
    low, high = grid.point_range[:3], grid.point_range[3:]
    within_range = [round((b - a) / size) for a, b, size in zip(low, high, grid.voxel_size, strict=True)]
    z, y, x = (min(a, b) for a, b in zip(reversed(within_range), grid.sparse_shape, strict=True))
    return z, y, x


def _voxel_keys(points: Tensor, point_counts: tuple[int, ...], grid: BEVGrid) -> tuple[Tensor, Tensor, int]:
    """Linear voxel indices of points.

    Returns:
        keys (point,) in the order (sample, z, y, x), the number of keys for a point outside the grid; cells
        (point, 3) as z, y, x; the number of keys.
    """
    shape = voxel_counts(grid)
    constants = (grid.point_range[:3], grid.voxel_size, shape)
    low, size, counts = from_host(constants, points.device, torch.float32)
    # Divide in float32 and floor, as the release does; anything else moves points at cell borders.
    cells = torch.floor((points[:, :3].float() - low) / size).flip(-1)
    inside = ((cells >= 0) & (cells < counts)).all(-1)  # False for NaN as well
    cells = torch.where(inside[:, None], cells, 0).long()
    z, y, x = cells.unbind(-1)
    sample = sample_index(point_counts, points.device)
    key = ((sample * shape[0] + z) * shape[1] + y) * shape[2] + x
    total = len(point_counts) * shape[0] * shape[1] * shape[2]
    return torch.where(inside, key, total), cells, total


@torch.no_grad()
def hard_voxelize(
    points: Tensor,
    point_counts: tuple[int, ...],
    grid: BEVGrid,
    max_points: int = 10,
    max_voxels: int = 160_000,
) -> Voxels:
    """Group points into sorted voxels and average the first ``max_points`` of each, in input order.

    If a sample occupies more than ``max_voxels`` voxels, those whose first point comes first are kept, as in the
    released voxeliser. The number of voxels depends on the data, so this synchronises once with the device;
    everything else is asynchronous and deterministic (no atomic float additions).

    Args:
        points: (point, feature), starting with x, y, z in metres, LiDAR frame; samples are concatenated. Points
            outside the grid, and NaN, are dropped.
        point_counts: number of points of every sample.
        grid: range, voxel size and shape.
        max_points: maximum number of points averaged per voxel.
        max_voxels: maximum number of voxels per sample.
    """
    device, number = points.device, len(points)
    keys, cells, outside = _voxel_keys(points, point_counts, grid)
    keys, order = torch.sort(keys, stable=True)  # stable: within a voxel, input order
    index = torch.arange(number, device=device)

    starts = torch.ones(number, dtype=torch.bool, device=device)
    starts[1:] = keys[1:] != keys[:-1]
    start_of = torch.where(starts, index, 0).cummax(0).values if number else index
    kept = starts & (keys < outside)
    if max(point_counts, default=0) > max_voxels:
        kept &= _appearance_rank(kept, order, point_counts) < max_voxels

    first = torch.nonzero(kept).squeeze(1)  # synchronises with the device
    voxel = (kept.long().cumsum(0) - 1)[start_of]
    rank = index - start_of
    used = kept[start_of] & (rank < max_points)

    # One slot per kept point, so that the order of the sum is fixed; the last row collects dropped points.
    slot = torch.where(used, voxel * max_points + rank, len(first) * max_points)
    slots = points.new_zeros((len(first) * max_points + 1, points.shape[1]), dtype=torch.float32)
    slots[slot] = points[order].float()
    count = torch.zeros(len(first) + 1, dtype=torch.long, device=device)
    count.scatter_add_(0, torch.where(used, voxel, len(first)), torch.ones_like(voxel))
    count = count[:-1]
    features = slots[:-1].view(len(first), max_points, points.shape[1]).sum(1) / count[:, None]

    chosen = order[first]
    sample = sample_index(point_counts, device)[chosen]
    return Voxels(torch.cat((sample[:, None], cells[chosen]), dim=1), features, count)


def _appearance_rank(kept: Tensor, order: Tensor, point_counts: tuple[int, ...]) -> Tensor:
    """Rank of each voxel's first point among the voxels of its sample, in input order."""
    device = kept.device
    appears = torch.zeros_like(kept)
    appears[order] = kept
    before = appears.long().cumsum(0) - appears.long()
    sizes = from_host(point_counts, device)
    # Index of each sample's first point; clamped for an empty sample at the end, which is never indexed.
    sample_start = (sizes.cumsum(0) - sizes).clamp(max=len(order) - 1)
    before_sample = before[sample_start][sample_index(point_counts, device)]
    return (before - before_sample)[order]
