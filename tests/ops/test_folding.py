"""Batch norms folded into convolutions against timm's modules."""

import copy

import pytest
import timm
import torch
from torch import nn

from cmt_aqr.ops.batch_norm import BatchNorm2d
from cmt_aqr.ops.folding import speed_up


def _networks(name: str, norms_in_training: bool = False) -> tuple[nn.Module, nn.Module]:
    """timm's network with random norms, and a folded copy, in float64."""
    torch.manual_seed(0)
    network = timm.create_model(name, features_only=True, out_indices=(3, 4)).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
    ours = copy.deepcopy(network)
    speed_up(ours)
    return network.train(norms_in_training), ours.train(norms_in_training)


@pytest.mark.parametrize("norms_in_training", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet26d", "ese_vovnet19b_dw"])
def test_values_and_gradients(name: str, norms_in_training: bool) -> None:
    network, ours = _networks(name, norms_in_training)
    assert sum(getattr(module, "norm", None) is not None for module in ours.modules()) > 5
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for theirs, own in zip(network(x), ours(x), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-9)
        (theirs.square().mean()).backward(retain_graph=True)
        (own.square().mean()).backward(retain_graph=True)
    expected = dict(network.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=1e-6, atol=1e-9)
    assert list(ours.state_dict()) == list(network.state_dict())


def test_a_copy_uses_its_own_norms() -> None:
    _, ours = _networks("resnet18")
    twin = copy.deepcopy(ours)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    before = ours(x)[0]
    for module in twin.modules():
        if isinstance(module, BatchNorm2d):
            nn.init.zeros_(module.weight)
    torch.testing.assert_close(ours(x)[0], before, rtol=0, atol=0)
    assert not torch.allclose(twin(x)[0], before)


def test_a_replaced_norm_normalises_itself() -> None:
    """Lightning's ``sync_batchnorm`` replaces norms after the model is built."""
    network, ours = _networks("resnet18")
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(ours).eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    torch.testing.assert_close(converted(x)[1], network(x)[1], rtol=1e-9, atol=1e-9)
