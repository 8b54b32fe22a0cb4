"""The whole published model on the real keyframe, from files to boxes, number for number."""

from typing import NamedTuple

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
from tests.helpers.shared_data import KEYFRAME, needs_keyframe, needs_reference, official_state_dict
from tests.reference.golden import COLUMNS, close, golden

pytestmark = [needs_reference, needs_keyframe]
FRAME = "frame_uint8"


class Results(NamedTuple):
    batch: Batch
    lidar2img: Tensor
    features: dict[str, Tensor]
    outputs: QueryOutputs
    detections: Detections


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The keyframe's own sweep within the golden limits and its images, with test-time processing."""
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
    data = hydra.utils.instantiate(config.data)
    data.setup("validate")
    frame = data.dataset("val")[0]
    limit = float(golden(FRAME)["point_limit_xy"])
    frame = frame.replace(points=frame.points[(frame.points[:, :2] < limit).all(dim=1)])
    batch = data.finish(collate([frame]))
    model: CMT = hydra.utils.instantiate(config.model.network).eval()
    report = load_weights(model, official_state_dict("cmt_voxel0100_r50_800x320"))
    assert not (report.missing or report.unexpected or report.wrong_shape)
    assert model.lidar is not None and model.image is not None
    features: dict[str, Tensor] = {}
    for name, part in (("lidar", model.lidar), ("image", model.image)):
        part.register_forward_hook(lambda _module, _inputs, output, name=name: features.update({name: output}))
    with torch.no_grad():
        outputs = model(batch).matching
    return Results(batch, frame.lidar2img, features, outputs, decode(outputs, max_detections=300)[0])


def test_inputs(results: Results) -> None:
    assert results.batch.images is not None
    blocks = results.batch.images.reshape(6, 3, 20, 16, 50, 16).mean(dim=(3, 5))
    close(blocks, golden(FRAME)["image_block_means"], "images", relative=1e-3)
    close(results.lidar2img, golden(FRAME)["lidar2img"], "lidar2img", relative=1e-3)
    xyz, (low, high) = results.batch.points[:, :3], torch.tensor(((-54.0, -54.0, -5.0), (54.0, 54.0, 3.0)))
    assert int(((xyz >= low) & (xyz < high)).all(dim=1).sum()) == int(golden(FRAME)["num_points"])


def test_features(results: Results) -> None:
    bev, images = results.features["lidar"][0], results.features["image"][0]
    close(bev[:, ::8, ::8], golden(FRAME)["bev_features_subsampled"], "BEV features", relative=1e-3)
    close(images[:, :, ::4, ::4], golden(FRAME)["image_features_subsampled"], "image features", relative=1e-3)


def test_outputs_of_the_last_layer(results: Results) -> None:
    for name, (start, stop) in COLUMNS.items():
        codes = results.outputs.codes[-1, 0, :, start:stop]
        close(codes, golden(FRAME)[f"last_{name}"], name, relative=1e-3)
    close(results.outputs.logits[-1, 0], golden(FRAME)["last_cls_logits"], "logits", relative=1e-3)


def test_decoded_boxes(results: Results) -> None:
    close(results.detections.boxes, golden(FRAME)["boxes"], "boxes", relative=1e-3)
    close(results.detections.scores, golden(FRAME)["scores"], "scores", relative=1e-3)
    np.testing.assert_array_equal(results.detections.labels.numpy(), golden(FRAME)["labels"])
