"""Test-time pixels and calibration of the real keyframe, against those of the published CMT."""

from pathlib import Path

import numpy as np
import torch

from cmt_aqr.data.collate import collate
from tests.helpers.shared_data import KEYFRAME, REFERENCE, needs_keyframe, needs_reference
from tests.helpers.small_data import datamodule


@needs_keyframe
@needs_reference
def test_pixels_and_calibration_are_the_published_ones(tmp_path: Path) -> None:
    golden = np.load(REFERENCE / "golden_frame_uint8.npz")
    data = datamodule(KEYFRAME, tmp_path, val_split="mini_train", image_size=(320, 800))
    data.setup("validate")
    frame = data.dataset("val")[0]
    images = data.finish(collate([frame])).images
    assert images is not None
    blocks = images.reshape(6, 3, 20, 16, 50, 16).mean(dim=(3, 5))
    np.testing.assert_allclose(frame.lidar2img.numpy(), golden["lidar2img"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(blocks.numpy(), golden["image_block_means"], rtol=1e-3, atol=1e-4)
    # The golden cloud is this sweep within the published range, cut at an upper limit in x and y.
    xyz = frame.points[:, :3]
    low, high = torch.tensor((-54.0, -54.0, -5.0)), torch.tensor((54.0, 54.0, 3.0))
    within = ((xyz >= low) & (xyz < high)).all(dim=1)
    within &= (xyz[:, :2] < float(golden["point_limit_xy"])).all(dim=1)
    assert int(within.sum()) == int(golden["num_points"])
