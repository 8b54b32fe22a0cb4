"""The published image branch (ResNet-50), number for number."""

import numpy as np
import torch

from cmt_aqr.model.image import ImageBranch
from cmt_aqr.weights.convert import to_ours
from tests.helpers.shared_data import REFERENCE, needs_reference, official_state_dict

pytestmark = needs_reference


def test_features_at_stride_16() -> None:
    branch = ImageBranch("resnet50").eval()
    weights = to_ours(official_state_dict("cmt_voxel0100_r50_800x320"))
    own = {name.removeprefix("image."): w for name, w in weights.items() if name.startswith("image.")}
    branch.load_state_dict(own, strict=True)
    with np.load(REFERENCE / "golden_image.npz") as golden, torch.no_grad():
        features = branch(torch.from_numpy(golden["images"])[None])[0].numpy()
        print("largest deviation:", np.abs(features - golden["features_stride16"]).max())
        np.testing.assert_allclose(features, golden["features_stride16"], rtol=1e-3, atol=1e-4)
