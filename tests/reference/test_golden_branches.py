"""The published LiDAR and image branches, number for number."""

import numpy as np
import torch
from torch import nn

from cmt_aqr.geometry.grid import BEVGrid
from cmt_aqr.model.image import ImageBranch
from cmt_aqr.model.lidar import LidarBranch
from cmt_aqr.weights.convert import to_ours
from tests.helpers.shared_data import needs_reference, official_state_dict
from tests.reference.golden import close, golden

pytestmark = needs_reference


def load(branch: nn.Module, prefix: str) -> None:
    """Load the official weights of a branch."""
    weights = to_ours(official_state_dict("cmt_voxel0100_r50_800x320"))
    branch.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)})
    branch.eval()


def test_lidar() -> None:
    values = golden("lidar")
    point_range, voxel_size = (
        tuple(round(value, 4) for value in values[name].tolist()) for name in ("point_cloud_range", "voxel_size")
    )
    branch = LidarBranch(BEVGrid(point_range, voxel_size, tuple(values["sparse_shape"].tolist()), 8))
    load(branch, "lidar.")
    clouds = [torch.from_numpy(values[f"points_{sample}"]) for sample in range(2)]
    points = torch.cat(clouds), tuple(len(cloud) for cloud in clouds)
    voxels = branch.voxelize(*points)
    np.testing.assert_array_equal(voxels.coords.numpy(), values["voxel_coords_bzyx"])
    np.testing.assert_array_equal(voxels.count.numpy(), values["voxel_num_points"])
    close(voxels.features, values["voxel_features"], "voxels", most=1e-6, relative=1e-6)
    with torch.no_grad():
        close(branch(*points), values["bev_features"], "BEV features", relative=1e-3)


def test_images() -> None:
    branch, values = ImageBranch("resnet50"), golden("image")
    load(branch, "image.")
    with torch.no_grad():
        features = branch(torch.from_numpy(values["images"])[None])[0]
    close(features, values["features_stride16"], "image features", relative=1e-3)
