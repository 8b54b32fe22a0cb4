"""Time AQR: rendering against a loop over queries, and all of AQR at the published size.

    python benchmarks/bench_aqr_render.py [--threads 2] [--device cpu]

The rival of each method is the obvious renderer: for each map and query, crop the method's kernel at the border of
the map and add weight times kernel to a slice of the map (``direct``: take the larger of cell and weight). It is
differentiable as well, and must render the same maps, or nothing is timed. Times are wall time, the minimum of
several turns.
"""

import argparse
import math
from collections.abc import Callable

import torch
from measuring import in_turns, peak_memory
from rich.table import Table
from torch import Tensor

from cmt_aqr.aqr import AQR, METHODS, Modulator, Placement, Renderer, WeightGenerator
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.lab.scenes import rig
from cmt_aqr.runs.console import console
from cmt_aqr.structures import Queries, Sensors, Views

BATCH, QUERIES, VIEWS, CHANNELS = 2, 1730, 6, 256
BEV_SIZE, IMAGE_MAP, IMAGE_SIZE = (128, 128), (20, 50), (320, 800)
GRID = BEVGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), (0.1, 0.1, 0.2), (41, 1024, 1024), 8)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(f"torch {torch.__version__}, {device}, {options.threads} threads")
    compare_rendering(device)
    time_aqr(device)


def compare_rendering(device: torch.device) -> None:
    """Time every render method for 2 x 1730 queries on BEV and camera maps against its loop over queries."""
    random = torch.Generator().manual_seed(0)
    weights = torch.rand(BATCH, QUERIES, generator=random).to(device).requires_grad_()
    bev = placement(BEV_SIZE, (BATCH,), 1.0, random, device)
    # In nuScenes, 1.1 views see a query on average.
    images = placement(IMAGE_MAP, (BATCH, VIEWS), 1.1 / VIEWS, random, device)
    title = f"Rendering {BATCH} x {QUERIES} queries on {BEV_SIZE} and {(VIEWS, *IMAGE_MAP)}"
    table = Table("method", "ms", "loop", "ratio", "with backward", "loop", "ratio", title=title)
    for method in METHODS:
        renderer = Renderer(method, max_weight_clamp=None).to(device)

        def vectorised(renderer: Renderer = renderer) -> Tensor:
            return renderer.render(weights, bev).sum() + renderer.render(weights[:, None], images).sum()

        def looped(renderer: Renderer = renderer) -> Tensor:
            return loop(renderer, weights, bev).sum() + loop(renderer, weights[:, None], images).sum()

        with torch.no_grad():
            for values, where in ((weights, bev), (weights[:, None], images)):
                error = (loop(renderer, values, where) - renderer.render(values, where)).abs().max().item()
                if error > 1e-4:
                    raise AssertionError(f"{method}: the loop's maps differ by {error:.1e}")
        cells = []
        for wrap in (torch.no_grad(), lambda way: with_backward(way, weights)):
            times = in_turns({"ours": wrap(vectorised), "loop": wrap(looped)}, 3, device)
            ours, rival = (1e3 * seconds.wall for seconds in times.values())
            cells += [f"{ours:.2f}", f"{rival:.1f}", f"{rival / ours:.0f} x"]
        table.add_row(method, *cells)
    console().print(table)


def time_aqr(device: torch.device) -> None:
    """Time AQR at the published size with 900 queries: forward, and forward with backward."""
    torch.manual_seed(0)
    low, high = torch.tensor(GRID.point_range[:3]), torch.tensor(GRID.point_range[3:])
    points = (torch.rand(1, 900, 3) * (high - low) + low).to(device)
    shapes = (
        (1, 900, CHANNELS),
        (1, CHANNELS, *BEV_SIZE),
        (math.prod(BEV_SIZE), CHANNELS),
        (1, VIEWS, CHANNELS, *IMAGE_MAP),
        (1, VIEWS, math.prod(IMAGE_MAP), CHANNELS),
    )
    leaves = [torch.randn(*shape, device=device, requires_grad=True) for shape in shapes]
    embedding, bev, bev_position, images, image_position = leaves
    views = Views.of(rig(IMAGE_SIZE).float()[None].to(device), IMAGE_SIZE)
    aqr = AQR(WeightGenerator(), Renderer(), Modulator()).to(device)

    def run() -> Tensor:
        sensors = Sensors(bev, bev_position, GRID, images, image_position, views)
        output = aqr(Queries(embedding, torch.zeros_like(points), points), sensors)
        return output.bev_features.square().mean() + output.image_features.square().mean()

    parameters = sum(parameter.numel() for parameter in aqr.parameters())
    print(f"AQR with 1 frame, 900 queries, {CHANNELS} channels, {parameters / 1e6:.2f} M parameters")
    start = peak_memory(device)
    ways = {"forward": torch.no_grad()(run), "with backward": with_backward(run, *leaves, *aqr.parameters())}
    for name, way in ways.items():
        (seconds,) = in_turns({name: way}, 10, device).values()
        print(f"{name:18} {1e3 * seconds.wall:8.2f} ms, peak memory + {peak_memory(device) - start:.0f} MB")


def placement(
    size: tuple[int, int], leading: tuple[int, ...], share: float, random: torch.Generator, device: torch.device
) -> Placement:
    """Uniformly distributed positions, a share of them inside."""
    position = torch.rand(*leading, QUERIES, 2, generator=random) * torch.tensor((size[1] - 1.0, size[0] - 1.0))
    inside = torch.rand(*leading, QUERIES, generator=random) < share
    return Placement(position.to(device), inside.to(device), size)


def loop(renderer: Renderer, weights: Tensor, where: Placement) -> Tensor:
    """:meth:`Renderer.render` in the obvious way, one kernel per query."""
    method, (rows, columns) = renderer.render_method, where.map_size
    inside = where.inside.reshape(-1, QUERIES)
    weights = weights.expand_as(where.inside).reshape(-1, QUERIES)
    position = where.position.reshape(-1, QUERIES, 2)
    cells = (position.floor().long() if method == "bilinear" else where.cell.reshape(-1, QUERIES, 2)).tolist()
    maps = weights.new_zeros(len(inside), rows, columns)
    total = torch.zeros_like(maps)
    fixed = None if method == "bilinear" else kernel_of(renderer, min(rows, columns)).to(weights.device)
    for number, query in inside.nonzero().tolist():
        column, row = cells[number][query]
        kernel = shares(position[number, query]) if fixed is None else fixed
        radius = 0 if fixed is None else len(fixed) // 2
        left, top = column - radius, row - radius
        place = slice(max(top, 0), top + len(kernel)), slice(max(left, 0), left + len(kernel))
        part = maps[(number, *place)]
        cut = kernel[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]]
        if method == "direct":
            maps[(number, *place)] = torch.maximum(part.clone(), weights[number, query])
        else:
            maps[(number, *place)] += weights[number, query] * cut
        if method == "kernel_mean":
            total[(number, *place)] += cut
    if method == "kernel_mean":
        maps = torch.where(total > 0, maps / torch.where(total > 0, total, 1.0), 1.0)
    return maps.view(*where.inside.shape[:-1], rows, columns)


def kernel_of(renderer: Renderer, shorter_side: int) -> Tensor:
    """The kernel (side, side) of a method, centred on the query's cell."""
    if renderer.render_method == "direct":
        return torch.ones(1, 1)
    gaussian = renderer.render_method != "distance_weighted"
    settings = vars(renderer.kernel)
    reach = 0.0 if gaussian else settings["reach_fraction"] * shorter_side
    radius = renderer.kernel.kernel_size // 2 if gaussian else math.floor(reach)
    squares = torch.arange(-radius, radius + 1.0) ** 2
    distance = torch.sqrt(squares[:, None] + squares)
    if gaussian:
        kernel = torch.exp(-(distance**2) / (2 * settings["gaussian_sigma"] ** 2))
        return kernel / kernel.sum()
    return torch.exp(-distance / (settings["distance_decay"] * reach)) * (distance <= reach)


def shares(position: Tensor) -> Tensor:
    """Bilinear weights (2, 2) of the four cells around a position (2,)."""
    x, y = position - position.floor()
    return torch.stack((1 - y, y))[:, None] * torch.stack((1 - x, x))


def with_backward(function: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], object]:
    """The function followed by its backward pass."""
    return lambda: torch.autograd.grad(function(), leaves, allow_unused=True)


if __name__ == "__main__":
    main()
