"""The modulator's formulas, written out."""

import pytest
import torch
from torch import Tensor

from cmt_aqr.aqr import Modulator


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 4, 5, 6, generator=random, dtype=torch.float64)
    weight_map = torch.rand(2, 3, 5, 6, generator=random, dtype=torch.float64) * 2
    return features.to(dtype), weight_map


def slow(features: Tensor, weight_map: Tensor, kind: str, residual: float | None) -> Tensor:
    result = torch.empty_like(features)
    for frame in range(2):
        for view in range(3):
            weight = weight_map[frame, view]
            mean = sum(weight.flatten().tolist()) / weight.numel()
            for channel in range(4):
                feature = features[frame, view, channel]
                element, whole = feature * weight, feature * mean
                mixed = {"element_wise": element, "channel_wise": whole}.get(kind, 0.7 * element + 0.3 * whole)
                if residual is not None:
                    mixed = residual * feature + (1 - residual) * mixed
                result[frame, view, channel] = mixed
    return result


@pytest.mark.parametrize("kind", ["element_wise", "channel_wise", "adaptive"])
@pytest.mark.parametrize("residual", [None, 0.0, 0.65, 1.0])
def test_formulas(kind: str, residual: float | None) -> None:
    features, weight_map = example()
    modulator = Modulator(
        kind, residual_connection=residual is not None, residual_weight=0.65 if residual is None else residual
    )
    result = modulator(features, weight_map, "image")
    torch.testing.assert_close(result, slow(features, weight_map, kind, residual), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["element_wise", "channel_wise", "adaptive"])
def test_a_residual_weight_of_1_changes_no_bit(kind: str, dtype: torch.dtype) -> None:
    features, weight_map = example(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = Modulator(kind, residual_weight=1.0)(features, weight_map.float() * 70, "bev")
    assert result.dtype == dtype and torch.equal(result, features)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "none"])
def test_min_max_and_activations(name: str) -> None:
    features, weight_map = example()
    low, high = (weight_map.flatten(2).quantile(end, dim=2)[..., None, None] for end in (0.0, 1.0))
    stretched = (weight_map - low) / (high - low)
    expected = stretched if name == "none" else getattr(torch, name)(stretched)
    modulator = Modulator(residual_connection=False, normalize_weights=True, activation=name)
    torch.testing.assert_close(modulator(features, weight_map, "bev"), features * expected[:, :, None])


def test_a_map_without_contrast_stays_as_it_is() -> None:
    weight_map = torch.stack((torch.zeros(3, 4), torch.full((3, 4), 0.8))).requires_grad_()
    gain = Modulator(residual_connection=False, normalize_weights=True).gain(weight_map, "bev")
    assert torch.equal(gain, weight_map)
    gain.sum().backward()
    assert torch.isfinite(weight_map.grad).all()


def test_a_learned_residual_weight_starts_as_configured_and_stays_in_0_to_1() -> None:
    modulator = Modulator(residual_weight=0.7, learnable_modulation=True)
    assert [name for name, _ in modulator.named_parameters()] == ["residual_logit"]
    for modality in ("bev", "image"):
        assert modulator.residual(modality).item() == pytest.approx(0.7)
    features, weight_map = example(torch.float32)
    weight_map = weight_map.float()
    optimizer = torch.optim.SGD(modulator.parameters(), lr=10.0)
    for _ in range(20):
        optimizer.zero_grad()
        modulator(features, weight_map, "bev").square().mean().backward()
        optimizer.step()
    assert modulator.residual("image").item() == pytest.approx(0.7)
    assert 0 < modulator.residual("bev").item() < 1
    assert modulator.residual("bev").item() != pytest.approx(0.7, abs=0.01)
