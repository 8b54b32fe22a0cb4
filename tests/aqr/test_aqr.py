"""AQR end to end: gradients, absent sensors, precision."""

import pytest
import torch
from torch import Tensor

from cmt_aqr.aqr import METHODS
from cmt_aqr.errors import UserError
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.outputs import AQROutput
from tests.helpers.aqr_scenes import IMAGE_MAP, inputs, run, small_aqr

SPLIT = {"gaussian": 0.1, "bilinear": 0.6, "direct": 0.82, "distance_weighted": 0.82, "kernel_mean": 0.82}
"""A value that lies within the range of the maps of the scene below."""


def maps_of(output: AQROutput) -> list[Tensor]:
    return [output.bev_map_raw, output.bev_map, output.image_map_raw, output.image_map]


def test_shapes_and_parts() -> None:
    scene = inputs(batch=2, queries=30)
    aqr = small_aqr()
    output = run(aqr, **scene)
    assert output.weights.shape == (2, 30, 2)
    assert output.bev_features.shape == scene["bev_features"].shape
    assert output.image_features.shape == scene["image_features"].shape
    assert output.bev_map.shape == output.bev_map_raw.shape == (2, 8, 8)
    assert output.image_map.shape == output.image_map_raw.shape == (2, 6, *IMAGE_MAP)
    assert output.camera_seen.any() and not output.camera_seen.all()
    assert output.bev_seen.any() and not output.bev_seen.all()
    assert torch.equal(output.bev_map, aqr.renderer.post_process(output.bev_map_raw))
    gain = 0.65 + 0.35 * output.image_map
    torch.testing.assert_close(output.image_features, scene["image_features"] * gain[:, :, None])
    gain = 0.65 + 0.35 * output.bev_map
    torch.testing.assert_close(output.bev_features, scene["bev_features"] * gain[:, None])


def test_lidar_weights_are_rendered_in_bev_and_camera_weights_in_views() -> None:
    scene = inputs(queries=1)
    scene["reference_points"] = torch.tensor([[[5.0, 3.0, 0.0]]])  # 31 degrees: views 0 and 1 both see it
    output = run(small_aqr(renderer={"render_method": "direct", "max_weight_clamp": None}), **scene)
    lidar, camera = output.weights[0, 0]
    assert output.bev_map[0, 5, 6] == lidar and (output.bev_map > 0).sum() == 1
    drawn_in = (output.image_map[0] > 0).flatten(1).sum(1)
    assert drawn_in.tolist() == [1, 1, 0, 0, 0, 0]
    assert (output.image_map[output.image_map > 0] == camera).all()


@pytest.mark.parametrize("clamp_mode", ["hard", "soft"])
@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(method: str, clamp_mode: str) -> None:
    """With a clamp that lowers some cells but not all."""
    limit = SPLIT[method] if clamp_mode == "hard" else 2 * SPLIT[method]
    aqr = small_aqr(
        {"embed_dims": 4, "feedforward_dims": 6, "image_window": 3},
        {"render_method": method, "clamp_mode": clamp_mode, "max_weight_clamp": limit},
        {"modulation_type": "adaptive", "learnable_modulation": True},
    ).double()
    scene = inputs(queries=5, channels=4)
    scene["bev_features"] = scene["bev_features"][..., :4, :4]
    scene["bev_position"] = scene["bev_position"][:16]
    scene["grid"] = BEVGrid((-8.0, -8.0, -2.0, 8.0, 8.0, 2.0), (0.5, 0.5, 0.5), (9, 32, 32), 8)
    scene["image_features"] = scene["image_features"][..., :3, :5]
    scene["image_position"] = scene["image_position"][:, :, :15]
    tensors = {key: value.double() for key, value in scene.items() if isinstance(value, Tensor)}
    names = ("query_embedding", "bev_features", "image_features", "bev_position", "image_position")
    parameters = list(aqr.parameters())

    def features(*values: Tensor) -> tuple[Tensor, Tensor]:
        inputs = dict(zip(names, values[: len(names)], strict=True))
        output = run(aqr, **{**scene, **tensors, **inputs})
        return output.bev_features, output.image_features

    leaves = [tensors[name].requires_grad_() for name in names]
    maps = run(aqr, **{**scene, **tensors}).maps()
    for before, after in maps.values():
        assert ((after < before) & (after > 0)).any(), method
        assert ((after == before) & (before > 0)).any(), method
    assert torch.autograd.gradcheck(features, (*leaves, *parameters), fast_mode=True)


def test_one_sensor_alone() -> None:
    scene = inputs(queries=20)
    aqr = small_aqr()
    lidar = run(aqr, **{**scene, "image_features": None, "image_position": None})
    assert lidar.image_features is lidar.image_map is lidar.image_map_raw is None
    assert not lidar.camera_seen.any() and lidar.bev_seen.any()
    camera = run(aqr, **{**scene, "bev_features": None, "bev_position": None, "grid": None})
    assert camera.bev_features is camera.bev_map is camera.bev_map_raw is None
    assert not camera.bev_seen.any() and camera.camera_seen.any()
    for output in (lidar, camera):
        assert output.weights.shape == (1, 20, 2) and torch.isfinite(output.weights).all()
        aqr.zero_grad()
        features = output.bev_features if output.image_features is None else output.image_features
        features.square().mean().backward()
        assert all(parameter.grad is not None for parameter in aqr.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_weights_and_maps_in_float32(dtype: torch.dtype) -> None:
    scene = inputs(queries=30)
    aqr = small_aqr()
    expected = run(aqr, **scene)
    halves = {**scene}
    for key in ("query_embedding", "bev_features", "image_features", "bev_position", "image_position"):
        halves[key] = scene[key].to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        output = run(aqr, **halves)
        loss = output.bev_features.float().square().mean() + output.image_features.float().square().mean()
    loss.backward()
    assert output.weights.dtype == torch.float32
    assert all(map_.dtype == torch.float32 for map_ in maps_of(output))
    assert output.bev_features.dtype == output.image_features.dtype == dtype
    torch.testing.assert_close(output.weights, expected.weights, atol=0.02, rtol=0)
    assert all(parameter.grad.isfinite().all() for parameter in aqr.parameters())


def test_a_model_in_bfloat16_runs() -> None:
    scene = inputs(queries=10)
    halves = {k: v.bfloat16() if isinstance(v, Tensor) and v.dim() != 4 else v for k, v in scene.items()}
    halves["bev_features"] = scene["bev_features"].bfloat16()
    halves["reference_points"] = scene["reference_points"]
    output = run(small_aqr().bfloat16(), **halves)
    assert output.weights.dtype == torch.float32 and output.bev_features.dtype == torch.bfloat16
    assert torch.isfinite(output.bev_features).all()


def test_other_channels_than_the_features_have_are_refused() -> None:
    aqr, scene = small_aqr(), inputs()
    with pytest.raises(UserError, match=r"aqr\.generator\.embed_dims=8: must be 7, the channels"):
        run(aqr, **{**scene, "image_features": scene["image_features"][:, :, 1:]})
