"""Models composed from the configuration, on a small grid with small images."""

import pytest
import torch

from cmt_aqr.structures import Batch
from tests.helpers.composed import composed, network

SMALL = ("model.grid.sparse_shape=[41,128,128]", "model.image_size=[64,160]", "model.queries=50", "model.layers=2")


def batch(cameras: bool = True, lidar: bool = True) -> Batch:
    """Two frames of random points and images; all six cameras look along y."""
    random = torch.Generator().manual_seed(0)
    counts = (600, 400) if lidar else (0, 0)
    points = torch.rand(sum(counts), 5, generator=random) * torch.tensor([12.0, 12.0, 4.0, 255.0, 0.0])
    points[:, :3] += torch.tensor([-54.0, -54.0, -2.0])
    camera = torch.tensor([[80.0, 80.0, 0, 0], [0, 32.0, -80.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
    return Batch(
        tokens=("a", "b"),
        points=points,
        point_counts=counts,
        images=torch.randn(2, 6, 3, 64, 160, generator=random) if cameras else None,
        lidar2img=camera.expand(2, 6, 4, 4).clone(),
        boxes=torch.zeros(0, 9),
        labels=torch.zeros(0, dtype=torch.int64),
        box_counts=(0, 0),
        lidar2global=torch.eye(4, dtype=torch.float64).expand(2, 4, 4),
    )


def test_aqr_with_residual_weight_1_gives_the_outputs_of_cmt() -> None:
    plain = network("model=cmt_r50", "aqr=none", *SMALL)
    routed = network("model=cmt_r50", "aqr=default", "modulator.residual_weight=1", *SMALL)
    missing, unexpected = routed.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("aqr.") for name in missing)
    with torch.no_grad():
        expected, got = plain(batch()), routed(batch())
    assert got.aqr is not None
    assert torch.equal(got.matching.codes, expected.matching.codes)
    assert torch.equal(got.matching.logits, expected.matching.logits)
    routed.aqr.modulator.residual_weight = 0.5  # type: ignore[union-attr]
    with torch.no_grad():
        assert not torch.equal(routed(batch()).matching.logits, expected.matching.logits)


@pytest.mark.parametrize("aqr", ["none", "default"])
@pytest.mark.parametrize(("model", "cameras", "lidar"), [("cmt_lidar", False, True), ("cmt_camera", True, False)])
def test_models_of_one_sensor(model: str, cameras: bool, lidar: bool, aqr: str) -> None:
    config = composed(f"model={model}", f"aqr={aqr}", *SMALL)
    assert (bool(config.data.cameras), bool(config.data.lidar)) == (cameras, lidar)
    detector = network(f"model={model}", f"aqr={aqr}", *SMALL)
    outputs = detector(batch(cameras, lidar))
    assert outputs.matching.codes.shape == (2, 2, 50, 10)
    assert outputs.matching.codes.isfinite().all()
    (outputs.matching.codes.sum() + outputs.matching.logits.sum()).backward()
    branch = detector.lidar or detector.image
    assert branch is not None and all(parameter.grad is not None for parameter in branch.parameters())
    assert (hasattr(detector.head, "shared_conv"), hasattr(detector.head, "rv_embedding")) == (lidar, cameras)


def test_tensors_cached_in_evaluation_serve_training() -> None:
    """Lightning evaluates in inference mode, whose tensors cannot be saved for a backward pass."""
    detector = network("model=cmt_lidar", "aqr=none", *SMALL)
    frames = batch(cameras=False)
    with torch.inference_mode():
        before = detector(frames).matching.logits.clone()
        assert torch.equal(detector(frames).matching.logits, before)
    detector(frames).matching.logits.sum().backward()
    with torch.no_grad():
        for parameter in detector.head.bev_embedding.parameters():
            parameter -= 1e-3 * parameter.grad  # type: ignore[operator]
        assert not torch.equal(detector(frames).matching.logits, before)
