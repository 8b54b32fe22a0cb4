"""The whole published model on the real keyframe: from files on disk to boxes, number for number."""

import hydra
import numpy as np
import pytest
import torch
from torch import Tensor

from cmt_aqr.data.collate import collate
from cmt_aqr.evaluation.decoding import decode
from cmt_aqr.model.cmt import CMT
from cmt_aqr.outputs import Detections, QueryOutputs
from cmt_aqr.structures import Batch
from cmt_aqr.weights import load_weights
from tests.helpers.composed import composed
from tests.helpers.shared_data import KEYFRAME, REFERENCE, needs_keyframe, needs_reference, official_state_dict

pytestmark = [needs_reference, needs_keyframe]
COLUMNS = {"center": (0, 2), "height": (2, 3), "dim": (3, 6), "rot": (6, 8), "vel": (8, 10)}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "golden_frame_uint8.npz") as file:
        return dict(file)


def keyframe(config: object, limit: float) -> Batch:
    """The keyframe's own sweep and images with test-time processing; points below ``limit`` in x and y."""
    data = hydra.utils.instantiate(config)
    data.setup("validate")
    frame = data.dataset("val")[0]
    frame = frame.replace(points=frame.points[(frame.points[:, :2] < limit).all(dim=1)])
    return data.finish(collate([frame]))


@pytest.fixture(scope="module")
def results(
    golden: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tensor, Tensor, QueryOutputs, Detections]:
    """BEV features before the head, image features, outputs, detections."""
    config = composed(
        "model=cmt_r50",
        "aqr=none",
        "data=nuscenes",
        f"data.root={KEYFRAME}",
        "data.version=v1.0-mini",
        "data.train_split=mini_train",
        "data.val_split=mini_train",
        "data.sweeps=0",
        f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
    )
    batch = keyframe(config.data, float(golden["point_limit_xy"]))
    model: CMT = hydra.utils.instantiate(config.model.network).eval()
    report = load_weights(model, official_state_dict("cmt_voxel0100_r50_800x320"))
    assert not (report.missing or report.unexpected or report.wrong_shape)
    assert model.lidar is not None
    assert model.image is not None
    seen: dict[str, Tensor] = {}
    for name, part in (("lidar", model.lidar), ("image", model.image)):
        part.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
    with torch.no_grad():
        outputs = model(batch).matching
    return seen["lidar"], seen["image"], outputs, decode(outputs, max_detections=300)[0]


def close(ours: Tensor, theirs: np.ndarray, name: str) -> None:
    print(f"{name}: largest deviation {np.abs(ours.numpy() - theirs).max():.1e} of {np.abs(theirs).max():.1f}")
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-3, atol=1e-4, err_msg=name)


def test_features(golden: dict[str, np.ndarray], results: tuple) -> None:
    bev, images, _, _ = results
    close(bev[0, :, ::8, ::8], golden["bev_features_subsampled"], "BEV features")
    close(images[0, :, :, ::4, ::4], golden["image_features_subsampled"], "image features")


def test_outputs_of_the_last_layer(golden: dict[str, np.ndarray], results: tuple) -> None:
    outputs = results[2]
    for name, (start, stop) in COLUMNS.items():
        close(outputs.codes[-1, 0, :, start:stop], golden[f"last_{name}"], name)
    close(outputs.logits[-1, 0], golden["last_cls_logits"], "logits")


def test_decoded_boxes(golden: dict[str, np.ndarray], results: tuple) -> None:
    found = results[3]
    close(found.boxes, golden["boxes"], "boxes")
    close(found.scores, golden["scores"], "scores")
    np.testing.assert_array_equal(found.labels.numpy(), golden["labels"])
