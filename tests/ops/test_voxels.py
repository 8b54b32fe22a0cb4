"""Voxels against a loop over points."""

import numpy as np
import pytest
import torch

from cmt_aqr.geometry.grid import BEVGrid
from cmt_aqr.ops.voxels import Voxels, hard_voxelize, voxel_counts

GRID = BEVGrid((-2.0, -2.0, -1.0, 2.0, 2.0, 1.0), (0.5, 0.5, 0.5), (5, 8, 8), 2)


def slow_voxels(
    points: np.ndarray, counts: tuple[int, ...], grid: BEVGrid, max_points: int, max_voxels: int
) -> dict[tuple[int, ...], list[np.ndarray]]:
    """Points of each voxel (sample, z, y, x)."""
    low, size = np.float32(grid.point_range[:3]), np.float32(grid.voxel_size)
    voxels: dict[tuple[int, ...], list[np.ndarray]] = {}
    row = 0
    for sample, count in enumerate(counts):
        of_sample: dict[tuple[int, ...], list[np.ndarray]] = {}
        for point in points[row : row + count]:
            x, y, z = np.floor((point[:3] - low) / size)
            limits = voxel_counts(grid)
            if not (0 <= z < limits[0] and 0 <= y < limits[1] and 0 <= x < limits[2]):
                continue
            cell = (sample, int(z), int(y), int(x))
            if cell not in of_sample:
                if len(of_sample) == max_voxels:
                    continue
                of_sample[cell] = []
            if len(of_sample[cell]) < max_points:
                of_sample[cell].append(point)
        voxels.update(of_sample)
        row += count
    return voxels


def random_points(counts: tuple[int, ...], seed: int = 0, spread: float = 2.4) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.uniform(-spread, spread, (sum(counts), 5)).astype(np.float32))


def assert_same(voxels: Voxels, slow: dict[tuple[int, ...], list[np.ndarray]]) -> None:
    assert [tuple(row) for row in voxels.coords.tolist()] == sorted(slow)
    assert voxels.count.tolist() == [len(slow[cell]) for cell in sorted(slow)]
    means = np.array([np.mean(slow[cell], axis=0) for cell in sorted(slow)], dtype=np.float32).reshape(-1, 5)
    torch.testing.assert_close(voxels.features, torch.from_numpy(means), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("max_points", [1, 3, 10])
@pytest.mark.parametrize("max_voxels", [1, 20, 1000])
@pytest.mark.parametrize("counts", [(300, 500, 90), (0, 400), (400, 0), (0, 0), (1,)])
def test_equals_the_slow_way(counts: tuple[int, ...], max_points: int, max_voxels: int) -> None:
    points = random_points(counts)
    voxels = hard_voxelize(points, counts, GRID, max_points, max_voxels)
    assert_same(voxels, slow_voxels(points.numpy(), counts, GRID, max_points, max_voxels))


def test_points_on_the_borders() -> None:
    """Lower borders are inside; upper borders, NaN and infinity are outside."""
    rows = [[-2, -2, -1], [2, 0, 0], [0, 2, 0], [0, 0, 1], [np.nan, 0, 0], [np.inf, 0, 0], [1.999, 0, 0]]
    points = torch.tensor([[*row, 1.0, 0.0] for row in rows])
    voxels = hard_voxelize(points, (len(rows),), GRID)
    assert voxels.coords.tolist() == [[0, 0, 0, 0], [0, 2, 4, 7]]
    assert torch.isfinite(voxels.features).all()


def test_cells_beyond_the_sparse_shape_are_dropped() -> None:
    narrow = BEVGrid(GRID.point_range, GRID.voxel_size, (5, 6, 4), 2)
    points = random_points((500,))
    voxels = hard_voxelize(points, (500,), narrow)
    assert_same(voxels, slow_voxels(points.numpy(), (500,), narrow, 10, 160_000))
    assert voxels.coords[:, 3].max() == 3
    assert voxels.coords[:, 2].max() == 5


def test_cells_are_floored_in_float32() -> None:
    """With cells of 0.1 m the rounding of the quotient decides where points on borders belong."""
    grid = BEVGrid((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.1, 0.1, 0.2), (41, 1024, 1024), 8)
    x = torch.arange(-540, 480, dtype=torch.float32) * 0.1
    points = torch.stack((x, x, torch.zeros_like(x), x, x), dim=1)
    expected = np.floor((x.numpy() - np.float32(-54)) / np.float32(0.1)).astype(np.int64)
    voxels = hard_voxelize(points, (len(x),), grid)
    assert voxels.coords[:, 3].tolist() == np.unique(expected).tolist()
    assert voxels.count.sum() == len(x)


def test_a_blanked_lidar_is_one_voxel() -> None:
    voxels = hard_voxelize(torch.zeros(100, 5), (60, 40), GRID)
    assert voxels.coords.tolist() == [[0, 2, 4, 4], [1, 2, 4, 4]]
    assert voxels.count.tolist() == [10, 10]
