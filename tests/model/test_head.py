import pytest
import torch

from cmt_aqr.geometry import BEVGrid
from cmt_aqr.model.head import Head
from cmt_aqr.model.positions import ray_points, sine_embedding
from cmt_aqr.model.task import GroupLayerNorm, TaskHead
from cmt_aqr.structures import Views
from tests.helpers.aqr_scenes import IMAGE_SIZE, rig

GRID = BEVGrid((-8, -8, -5, 8, 8, 3), (0.5, 0.5, 1.0), (9, 32, 32), 8)


def small_head() -> Head:
    torch.manual_seed(0)
    return Head(GRID, embed_dims=16, layers=2, queries=20, bev_channels=8, depths=4, rv_hidden=16, task_hidden=8)


def test_sine_embedding_by_hand() -> None:
    embedded = sine_embedding(torch.tensor([[0.25, 0.5]], dtype=torch.float64), 4)[0]
    # y first; denominators 1, 1, 1.5, 1.5; sine on even, cosine on odd positions.
    y = torch.tensor(torch.pi, dtype=torch.float64)
    expected = [wave for phase in (y, y / 1.5, y / 2, y / 3) for wave in (phase.sin(), phase.cos())]
    torch.testing.assert_close(embedded, torch.stack(expected))


def test_points_on_a_ray_project_back_to_its_pixel() -> None:
    matrix = rig()[0, 1]
    pixel = torch.tensor([[10.0, 20.0, 1.0]])
    points = ray_points(pixel, torch.linalg.inv(matrix), torch.tensor([2.0, 5.0]))[0]
    projected = points @ matrix[:3, :3].T + matrix[:3, 3]
    torch.testing.assert_close(projected[:, 2], torch.tensor([2.0, 5.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(projected[:, :2] / projected[:, 2:], pixel[:, :2].expand(2, 2), atol=1e-3, rtol=0)


def test_query_embedding_adds_the_rays_of_all_views_that_see_the_point(monkeypatch: pytest.MonkeyPatch) -> None:
    head, matrices = small_head(), rig()
    inverse = torch.linalg.inv(matrices)
    reference = torch.rand(1, 20, 3)
    embedding = head.query_embedding(reference, Views.of(matrices, IMAGE_SIZE))[0]
    low, high = torch.tensor(GRID.point_range, dtype=torch.float32).view(2, 3)
    expected = head.bev_embedding(sine_embedding(reference[0, :, :2], 16))
    views = 0
    for q, unit in enumerate(reference[0]):
        point = unit * (high - low) + low
        for view in range(6):
            u, v, depth = (matrices[0, view, :3, :3] @ point + matrices[0, view, :3, 3]).tolist()
            if depth > 0 and 0 <= u / depth < IMAGE_SIZE[1] and 0 <= v / depth < IMAGE_SIZE[0]:
                ray = torch.tensor([[u / depth, v / depth, 1.0]])
                depths = 1 + torch.arange(4) * (8 - 1) / 4
                samples = (ray_points(ray, inverse[0, view], depths)[0] - low) / (high - low)
                expected[q] = expected[q] + head.rv_embedding(samples.flatten())
                views += 1
    assert views >= 8
    torch.testing.assert_close(embedding, expected, atol=1e-4, rtol=1e-3)
    monkeypatch.setattr("cmt_aqr.model.head.masks_are_free", lambda _: False)  # as on a GPU
    torch.testing.assert_close(head.query_embedding(reference, Views.of(matrices, IMAGE_SIZE))[0], embedding)


def test_bev_positions_are_cached_until_the_weights_change() -> None:
    head = small_head()
    with torch.no_grad():
        first = head.bev_position()
        assert head.bev_position() is first
        head.bev_embedding[2].bias += 1.0
        torch.testing.assert_close(head.bev_position(), first + 1)
    assert head.bev_position().requires_grad
    # A fused optimiser does not increment the weights' version.
    optimizer = torch.optim.AdamW(head.bev_embedding.parameters(), lr=0.1, fused=True)
    head.bev_position().sum().backward()
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(head.bev_position(), head._compute_bev_position(), atol=0, rtol=0)


def test_group_norm_is_a_layer_norm_of_each_group() -> None:
    norm = GroupLayerNorm(12, groups=3)
    hidden = torch.randn(2, 12, 5)
    plain = torch.nn.functional.layer_norm(hidden.unflatten(1, (3, 4)).transpose(2, 3), (4,), eps=1e-6)
    torch.testing.assert_close(norm(hidden), plain.transpose(2, 3).flatten(1, 2))


def test_each_layer_has_its_own_task_weights() -> None:
    head = TaskHead(embed_dims=8, layers=3, hidden=4)
    decoded = torch.randn(3, 2, 5, 8)
    changed = decoded.clone()
    changed[1] += 1.0
    before, after = head(decoded)["center"], head(changed)["center"]
    assert torch.equal(before[[0, 2]], after[[0, 2]]) and not torch.allclose(before[1], after[1])
    assert before.shape == (3, 2, 5, 2)


def test_logits_start_at_the_prior() -> None:
    logits = TaskHead(embed_dims=8, layers=1, prior=0.1).get_submodule("cls_logits.3")
    assert torch.sigmoid(logits.get_parameter("bias")).mean().item() == pytest.approx(0.1)
