"""The published LiDAR branch, number for number."""

import numpy as np
import pytest
import torch

from cmt_aqr.geometry.grid import BEVGrid
from cmt_aqr.model.lidar import LidarBranch
from cmt_aqr.weights.convert import to_ours
from tests.helpers.shared_data import KEYFRAME, REFERENCE, needs_keyframe, needs_reference, official_state_dict

pytestmark = needs_reference
VARIANT = "cmt_voxel0100_r50_800x320"


def load_branch(grid: BEVGrid) -> LidarBranch:
    """The published sizes with the rule's weights."""
    branch = LidarBranch(grid)
    weights = to_ours(official_state_dict(VARIANT))
    own = {name.removeprefix("lidar."): w for name, w in weights.items() if name.startswith("lidar.")}
    branch.load_state_dict(own, strict=True)
    return branch.eval()


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "golden_lidar.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def branch(golden: dict[str, np.ndarray]) -> LidarBranch:
    grid = BEVGrid(
        tuple(round(v, 4) for v in golden["point_cloud_range"].tolist()),
        tuple(round(v, 4) for v in golden["voxel_size"].tolist()),
        tuple(golden["sparse_shape"].tolist()),
        8,
    )
    return load_branch(grid)


@pytest.fixture(scope="module")
def points(golden: dict[str, np.ndarray]) -> tuple[torch.Tensor, tuple[int, ...]]:
    clouds = [torch.from_numpy(golden[f"points_{sample}"]) for sample in range(2)]
    return torch.cat(clouds), tuple(len(cloud) for cloud in clouds)


def test_voxels(golden: dict[str, np.ndarray], branch: LidarBranch, points: tuple) -> None:
    voxels = branch.voxelize(*points)
    np.testing.assert_array_equal(voxels.coords.numpy(), golden["voxel_coords_bzyx"])
    np.testing.assert_array_equal(voxels.count.numpy(), golden["voxel_num_points"])
    np.testing.assert_allclose(voxels.features.numpy(), golden["voxel_features"], rtol=1e-6, atol=1e-6)


def test_bev_features(golden: dict[str, np.ndarray], branch: LidarBranch, points: tuple) -> None:
    with torch.no_grad():
        features = branch(*points)
    print("largest deviation:", np.abs(features.numpy() - golden["bev_features"]).max())
    np.testing.assert_allclose(features.numpy(), golden["bev_features"], rtol=1e-3, atol=1e-4)


@needs_keyframe
def test_bev_features_of_the_keyframe() -> None:
    """The published size on a real sweep; the values are every eighth cell."""
    grid = BEVGrid((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.1, 0.1, 0.2), (41, 1024, 1024), 8)
    branch = load_branch(grid)
    (sweep,) = (KEYFRAME / "samples" / "LIDAR_TOP").glob("*.bin")
    points = torch.from_numpy(np.fromfile(sweep, dtype=np.float32).reshape(-1, 5).copy())
    points[:, 4] = 0
    with np.load(REFERENCE / "golden_frame.npz") as golden, torch.no_grad():
        low, high = torch.tensor(grid.point_range).view(2, 3)
        within = ((points[:, :3] > low) & (points[:, :3] < high)).all(1)
        below = (points[:, :2] < float(golden["point_limit_xy"])).all(1)  # no cell past the last one
        points = points[within & below]
        assert len(points) == golden["num_points"]
        features = branch(points, (len(points),))[0, :, ::8, ::8].numpy()
        expected = golden["bev_features_subsampled"]
        print("largest deviation:", np.abs(features - expected).max())
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
