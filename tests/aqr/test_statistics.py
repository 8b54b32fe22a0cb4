"""Statistics of maps, against values by hand."""

import pytest
import torch

from cmt_aqr.aqr import METHODS, Renderer
from cmt_aqr.aqr.statistics import map_statistics, output_statistics, relative_change, used_weights
from tests.helpers.aqr_scenes import inputs, run, small_aqr


def numbers(rendered: torch.Tensor, processed: torch.Tensor, background: float = 0.0) -> dict[str, float]:
    return {key: value.item() for key, value in map_statistics(rendered, processed, background).items()}


@pytest.mark.parametrize("clamp_mode", ["hard", "soft"])
def test_eight_cells_by_hand(clamp_mode: str) -> None:
    rendered = torch.tensor([[0.0, 0.005, 0.5, 0.7], [0.0, 0.6, 2.0, 4.195]])
    statistics = numbers(rendered, Renderer(max_weight_clamp=1.5, clamp_mode=clamp_mode).post_process(rendered))
    assert statistics["mean"] == pytest.approx(1.0)
    assert statistics["std"] == pytest.approx(rendered.numpy().std(), rel=1e-6)
    assert (statistics["min"], statistics["max"]) == (0.0, pytest.approx(4.195))
    assert statistics["max_over_mean"] == pytest.approx(4.195)
    assert statistics["clamped"] == 2 / 8  # without the cell below the threshold
    assert statistics["drawn"] == 6 / 8
    last = {"hard": 1.5, "soft": 1.5 - 0.75**2 / 4.195}[clamp_mode]
    second = {"hard": 1.5, "soft": 1.5 - 0.75**2 / 2.0}[clamp_mode]
    assert statistics["max_after"] == pytest.approx(last)
    assert statistics["mean_after"] == pytest.approx((0.5 + 0.7 + 0.6 + second + last) / 8)


def test_an_empty_map() -> None:
    statistics = numbers(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    assert all(value == 0 for value in statistics.values())


@pytest.mark.parametrize("method", METHODS)
def test_drawn_is_the_share_of_cells_that_a_query_reaches(method: str) -> None:
    aqr, scene = small_aqr(renderer={"render_method": method}), inputs(queries=1)
    scene["reference_points"] = torch.tensor([[[1.0, 1.0, 0.0]]])  # BEV cell (4, 4) of 8 x 8, in its middle
    statistics = output_statistics(run(aqr, **scene), aqr.renderer.background)
    # The Gaussian reaches 3 cells; 20 % of 8 cells reach those at distance 1 and root 2.
    cells = {"gaussian": 49, "kernel_mean": 49, "distance_weighted": 9, "direct": 1, "bilinear": 1}[method]
    assert statistics["bev/drawn"].item() == pytest.approx(cells / 64)


def test_relative_change_is_the_mean_of_the_cells_gains() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, 8, 3, 5, generator=random)
    features[0, 0, :, 0, 0] = 0  # does not count
    gain = torch.rand(2, 6, 1, 3, 5, generator=random)
    expected = ((gain - 1).abs().sum() - (gain[0, 0, 0, 0, 0] - 1).abs()) / (gain.numel() - 1)
    torch.testing.assert_close(relative_change(features, features * gain), expected)
    half = features.bfloat16()
    assert relative_change(half, (half * gain).bfloat16()).item() == pytest.approx(expected.item(), abs=0.01)
    assert relative_change(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)) == 0


def test_every_sensor_has_its_statistics() -> None:
    aqr, scene = small_aqr(), inputs(queries=30)
    statistics = output_statistics(run(aqr, **scene), 0.0)
    assert {key.split("/")[0] for key in statistics} == {"bev", "camera"}
    assert statistics["bev/relative_change"] > 0.1 and statistics["camera/relative_change"] > 0.1
    assert not any(value.requires_grad for value in statistics.values())
    lidar = {**scene, "image_features": None, "image_position": None}
    statistics = output_statistics(run(aqr, **lidar), 0.0)
    assert {key.split("/")[0] for key in statistics} == {"bev"}


def test_used_weights_are_those_rendered() -> None:
    aqr, scene = small_aqr(), inputs(batch=2, queries=30)
    valid = torch.arange(30).expand(2, 30) >= 10
    output = run(aqr, **scene, valid=valid)
    used = used_weights(output)
    for index, (name, seen) in enumerate({"lidar": output.bev_seen, "camera": output.camera_seen}.items()):
        expected = [
            output.weights[frame, query, index].item()
            for frame in range(2)
            for query in range(10, 30)
            if seen[frame, query]
        ]
        assert 0 < len(expected) < 40
        assert used[name].tolist() == expected
