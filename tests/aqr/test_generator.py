"""Window attention against PyTorch's attention over all cells with a mask."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmt_aqr.aqr import Placement, WeightGenerator, generator, place_on_bev, place_on_images
from cmt_aqr.ops.windows import window_scores, window_sum
from tests.helpers.aqr_scenes import GRID, IMAGE_MAP, IMAGE_SIZE, inputs, queries_and_sensors, small_aqr


def placements(scene: dict) -> tuple[Placement, Placement]:
    on_bev = place_on_bev(scene["reference_points"], scene["grid"])
    on_images = place_on_images(scene["reference_points"], scene["lidar2img"], IMAGE_SIZE, IMAGE_MAP)
    return on_bev, on_images


def generate(model: WeightGenerator, scene: dict, bev: bool = True, image: bool = True) -> Tensor:
    queries, sensors = queries_and_sensors(scene)
    if not bev:
        sensors = sensors.replace(bev=None, bev_position=None)
    if not image:
        sensors = sensors.replace(images=None, image_position=None)
    return model(queries.embedding, sensors, *placements(scene))


def allowed_cells(scene: dict, model: WeightGenerator, bev: bool, image: bool) -> Tensor:
    """(batch, query, all cells) bool, from the coordinates, one cell at a time."""
    rows, columns = GRID.bev_shape
    height, width = IMAGE_MAP
    result = []
    for frame, points in enumerate(scene["reference_points"].tolist()):
        for point in points:
            allowed: list[bool] = []
            column = math.floor((point[0] - GRID.point_range[0]) / GRID.cell_size[0])
            row = math.floor((point[1] - GRID.point_range[1]) / GRID.cell_size[1])
            on_map = 0 <= column < columns and 0 <= row < rows
            reach = model.bev_window // 2
            if bev:
                allowed += [
                    on_map and abs(c - column) <= reach and abs(r - row) <= reach
                    for r in range(rows)
                    for c in range(columns)
                ]
            for matrix in scene["lidar2img"][frame] if image else ():
                u, v, depth, _ = (matrix.double() @ torch.tensor((*point, 1.0)).double()).tolist()
                u, v = u / depth, v / depth
                seen = depth > 0 and 0 <= u < IMAGE_SIZE[1] and 0 <= v < IMAGE_SIZE[0]
                column = min(math.floor(u / 8 + 0.5), width - 1)
                row = min(math.floor(v / 8 + 0.5), height - 1)
                reach = model.image_window // 2
                allowed += [
                    seen and abs(c - column) <= reach and abs(r - row) <= reach
                    for r in range(height)
                    for c in range(width)
                ]
            result.append(allowed)
    batch, count = scene["reference_points"].shape[:2]
    return torch.tensor(result).view(batch, count, -1)


def dense(model: WeightGenerator, scene: dict, bev: bool, image: bool) -> tuple[Tensor, Tensor]:
    """Weights by ``nn.MultiheadAttention`` over all cells with a mask, and which queries have cells."""
    keys, values = [], []
    if bev:
        rows = scene["bev_features"].flatten(2).transpose(1, 2)
        values.append(rows)
        keys.append(rows + scene["bev_position"])
    if image:
        rows = scene["image_features"].flatten(3).transpose(2, 3)
        values.append(rows.flatten(1, 2))
        keys.append((rows + scene["image_position"]).flatten(1, 2))
    key, value = torch.cat(keys, 1), torch.cat(values, 1)
    allowed = allowed_cells(scene, model, bev, image)
    reached = allowed.any(-1)
    heads = model.layers[0].attention.num_heads
    by_head = allowed[:, None].repeat(1, heads, 1, 1)
    if model.layers[0].attention.split_heads and bev and image:
        cells = keys[0].shape[1]
        by_head[:, : heads // 2, :, cells:] = False
        by_head[:, heads // 2 :, :, :cells] = False
        reached = by_head.any(-1).all(dim=1)
    position = scene["query_embedding"]
    x = torch.zeros_like(position)
    for layer in model.layers:
        own = layer.attention
        theirs = nn.MultiheadAttention(model.embed_dims, own.num_heads, batch_first=True).to(x.dtype)
        with torch.no_grad():
            theirs.in_proj_weight.copy_(
                torch.cat((own.query_proj.weight, own.key_proj.weight, own.value_proj.weight))
            )
            zero = torch.zeros_like(own.query_proj.bias)
            theirs.in_proj_bias.copy_(torch.cat((own.query_proj.bias, zero, own.value_proj.bias)))
            theirs.out_proj.load_state_dict(own.out_proj.state_dict())
        mask = ~by_head & reached[:, None, :, None]  # other queries would be NaN
        attended = theirs(x + position, key, value, attn_mask=mask.flatten(0, 1), need_weights=False)[0]
        x = F.layer_norm(x + attended, (model.embed_dims,), layer.attention_norm.weight, layer.attention_norm.bias)
        hidden = F.relu(F.linear(x, layer.ffn[0].weight, layer.ffn[0].bias))
        x = x + F.linear(hidden, layer.ffn[3].weight, layer.ffn[3].bias)
        x = F.layer_norm(x, (model.embed_dims,), layer.ffn_norm.weight, layer.ffn_norm.bias)
    return F.linear(x, model.weight_head.weight, model.weight_head.bias).sigmoid(), reached


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("bev", "image"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("split_heads", [False, True])
@pytest.mark.parametrize("free_masks", [True, False], ids=["cpu", "gpu"])
def test_equals_masked_attention_over_all_cells(
    depth: int, bev: bool, image: bool, split_heads: bool, free_masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "masks_are_free", lambda device: free_masks)
    scene = inputs(batch=2, queries=40)
    scene["reference_points"][:, 0] = torch.tensor((20.0, 0.0, 60.0))  # on no map
    model = small_aqr({"depth": depth, "split_heads": split_heads}).generator
    for parameter in model.parameters():  # biases and norms other than 0 and 1
        nn.init.normal_(parameter, std=0.4)
    expected, reached = dense(model, scene, bev, image)
    result = generate(model, scene, bev, image)
    assert 0 < reached.sum() < reached.numel()
    on_bev, on_images = placements(scene)
    assert (on_images.inside.sum(1) == 2).any() and not on_bev.inside.all()
    torch.testing.assert_close(result[reached], expected[reached], rtol=1e-5, atol=1e-5)
    assert torch.isfinite(result).all()


def test_max_views_keeps_the_most_central_views() -> None:
    scene = inputs(queries=60)
    every = small_aqr({"max_views": None}).generator
    two = small_aqr({"max_views": 2}).generator
    one = small_aqr({"max_views": 1}).generator
    expected = generate(every, scene)
    torch.testing.assert_close(generate(two, scene), expected)
    _, on_images = placements(scene)
    views = on_images.inside.sum(1)[0]
    changed = (generate(one, scene) - expected).abs().amax(-1)[0] > 1e-6
    assert torch.equal(changed, views == 2)
    view, seen = one._most_central_views(on_images)
    for query in (views == 2).nonzero()[:, 0].tolist():
        column, row = on_images.position[0, :, query].unbind(-1)
        distance = torch.hypot(column / 9 - 0.5, row / 5 - 0.5)
        distance[~on_images.inside[0, :, query]] = 1
        assert seen[0, query, 0] and view[0, query, 0] == distance.argmin()


def test_a_query_without_any_cell_has_defined_weights_and_gradients() -> None:
    scene = inputs(queries=3)
    scene["reference_points"] = torch.tensor([[[20.0, 0.0, 30.0], [-30.0, 0.0, -90.0], [0.0, 0.0, 50.0]]])
    on_bev, on_images = placements(scene)
    assert not on_images.inside.any() and not on_bev.inside[0, :2].any()
    model = small_aqr().generator
    for key in ("bev_features", "image_features", "query_embedding"):
        scene[key].requires_grad_()
    weights = generate(model, scene)
    assert torch.isfinite(weights).all() and (weights > 0).all() and (weights < 1).all()
    weights.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert (scene["image_features"].grad == 0).all()


def test_first_weights_are_those_of_the_bias() -> None:
    torch.manual_seed(0)
    model = WeightGenerator(embed_dims=8, num_heads=2, feedforward_dims=16, bev_window=3, image_window=5)
    weights = generate(model, inputs(queries=50))
    assert weights.mean().item() == pytest.approx(torch.tensor(1.5).sigmoid().item(), abs=0.02)
    assert weights.std() < 0.05


def test_dropout_only_in_training() -> None:
    scene = inputs()
    model = small_aqr({"dropout": 0.5}).generator
    assert not torch.equal(generate(model, scene), generate(model, scene))
    model.eval()
    assert torch.equal(generate(model, scene), generate(model, scene))


@pytest.mark.parametrize("block_bytes", [2 * 8 * 3 * 4, 2**20])
def test_window_products_and_their_gradients(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of 2 pairs, the last one incomplete, and in one block."""
    monkeypatch.setattr("cmt_aqr.ops.windows._CPU_BLOCK_BYTES", block_bytes)
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(5, 2, 3, generator=random, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 2, 4, generator=random, dtype=torch.float64, requires_grad=True)
    table = torch.randn(7, 3, generator=random, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 7, (5, 4), generator=random)
    torch.testing.assert_close(
        window_scores(queries, table, index), torch.einsum("phc,pnc->phn", queries, table[index])
    )
    torch.testing.assert_close(
        window_sum(weights, table, index), torch.einsum("phn,pnc->phc", weights, table[index])
    )
    assert torch.autograd.gradcheck(lambda q, t: window_scores(q, t, index), (queries, table))
    assert torch.autograd.gradcheck(lambda w, t: window_sum(w, t, index), (weights, table))
