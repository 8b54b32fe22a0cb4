"""Time AQR: rendering against a loop over queries, and the whole at the published size.

    python benchmarks/bench_aqr_render.py [--threads 2] [--device cpu]

The rival of each method is the obvious renderer: for each map and query, cut the method's kernel at the border of
the map and add weight times kernel to a slice of the map (``direct``: take the larger of cell and weight). It is
differentiable too, so forward and backward both compare, and it must render the same maps, or nothing is timed.
"""

import argparse
import math
import resource
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from cmt_aqr.aqr import AQR, METHODS, Modulator, Placement, Renderer, WeightGenerator
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.lab.scenes import rig
from cmt_aqr.structures import Queries, Sensors, Views

BATCH, QUERIES, VIEWS, CHANNELS = 2, 1730, 6, 256
BEV_SIZE, IMAGE_MAP, IMAGE_SIZE = (128, 128), (20, 50), (320, 800)
GRID = BEVGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), (0.1, 0.1, 0.2), (41, 1024, 1024), 8)


def main() -> None:
    """Print all timings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(f"torch {torch.__version__}, {device}, {options.threads} threads; medians")
    compare_rendering(device)
    time_whole(device)


def compare_rendering(device: torch.device) -> None:
    """Every render method for 2 x 1730 queries, in BEV and cameras, against its own loop over queries."""
    random = torch.Generator().manual_seed(0)
    weights = torch.rand(BATCH, QUERIES, generator=random).to(device).requires_grad_()
    bev = placement(BEV_SIZE, (BATCH,), 1.0, random, device)
    # In nuScenes a query is seen by 1.1 views on average.
    images = placement(IMAGE_MAP, (BATCH, VIEWS), 1.1 / VIEWS, random, device)
    print(f"\nrendering {BATCH} x {QUERIES} queries onto {BEV_SIZE} and {(VIEWS, *IMAGE_MAP)}, milliseconds")
    print(f"{'':18}{'forward':>10}{'loop':>10}{'faster':>9}{'with backward':>15}{'loop':>10}{'faster':>9}")
    for method in METHODS:
        renderer = Renderer(method, max_weight_clamp=None).to(device)

        def vectorised(renderer: Renderer = renderer) -> Tensor:
            return renderer.render(weights, bev).sum() + renderer.render(weights[:, None], images).sum()

        def looped(renderer: Renderer = renderer) -> Tensor:
            return loop(renderer, weights, bev).sum() + loop(renderer, weights[:, None], images).sum()

        with torch.no_grad():
            for values, where in ((weights, bev), (weights[:, None], images)):
                differ = (loop(renderer, values, where) - renderer.render(values, where)).abs().max().item()
                if differ > 1e-4:
                    raise AssertionError(f"{method}: the loop differs by {differ:.1e}: a time means nothing")
        fast, slow = (milliseconds(without_gradient(way)) for way in (vectorised, looped))
        fast_both, slow_both = (milliseconds(with_backward(way, weights)) for way in (vectorised, looped))
        print(
            f"{method:18}{fast:10.2f}{slow:10.1f}{slow / fast:8.0f}x"
            f"{fast_both:15.2f}{slow_both:10.1f}{slow_both / fast_both:8.0f}x",
            flush=True,
        )


def time_whole(device: torch.device) -> None:
    """The whole AQR at the published size with 900 queries: forward, and forward with backward."""
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

    def whole() -> Tensor:
        sensors = Sensors(bev, bev_position, GRID, images, image_position, views)
        output = aqr(Queries(embedding, torch.zeros_like(points), points), sensors)
        return output.bev_features.square().mean() + output.image_features.square().mean()

    parameters = sum(parameter.numel() for parameter in aqr.parameters())
    print(f"\nwhole AQR, 1 frame, 900 queries, {CHANNELS} channels, {parameters / 1e6:.2f} M parameters")
    start = peak_memory(device)
    ways = {
        "forward": without_gradient(whole),
        "forward + backward": with_backward(whole, *leaves, *aqr.parameters()),
    }
    for name, way in ways.items():
        print(f"{name:18} {milliseconds(way):8.2f} ms, peak memory + {peak_memory(device) - start:.0f} MiB")


def placement(
    size: tuple[int, int], leading: tuple[int, ...], share: float, random: torch.Generator, device: torch.device
) -> Placement:
    """Uniform positions, a share of them inside."""
    position = torch.rand(*leading, QUERIES, 2, generator=random) * torch.tensor((size[1] - 1.0, size[0] - 1.0))
    inside = torch.rand(*leading, QUERIES, generator=random) < share
    return Placement(position.to(device), inside.to(device), size)


def loop(renderer: Renderer, weights: Tensor, where: Placement) -> Tensor:
    """The obvious way to do :meth:`Renderer.render`, one kernel a query."""
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
    """The kernel of a method on a square around the query's cell, (side, side)."""
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
    """Of the four cells around a position (2,): (2, 2)."""
    x, y = position - position.floor()
    return torch.stack((1 - y, y))[:, None] * torch.stack((1 - x, x))


def without_gradient(function: Callable[[], Tensor]) -> Callable[[], object]:
    """The function under ``no_grad``."""
    return torch.no_grad()(function)


def with_backward(function: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], object]:
    """The function and the gradients of its result."""
    return lambda: torch.autograd.grad(function(), leaves, allow_unused=True)


def milliseconds(function: Callable[[], object]) -> float:
    """Median time of a call; the device is waited for."""
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=1.0).median


def peak_memory(device: torch.device) -> float:
    """Highest memory so far in MiB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
