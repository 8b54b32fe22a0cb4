"""Time AQR: rendering against a loop over queries, and the whole at the published size.

    python benchmarks/bench_aqr_render.py [--threads 2] [--device cpu]

The rival of each method is the obvious renderer: for each map and query, cut the method's kernel at the border of
the map and add weight times kernel to a slice of the map (``direct``: take the larger of cell and weight). It is
differentiable too, so forward and backward both compare, and it must render the same maps, or nothing is timed.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_aqr.aqr import AQR, METHODS, Modulator, Placement, Renderer, WeightGenerator
from cmt_aqr.geometry import BEVGrid
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
    print(f"torch {torch.__version__}, {device}, {options.threads} threads; best and median of several calls")
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
    print(
        f"{'':18} {'forward':>16} {'loop':>18} {'faster':>8} {'forward, backward':>18} {'loop':>18} {'faster':>8}"
        f" {'differ by':>10}"
    )
    for method in METHODS:
        renderer = Renderer(method, max_weight_clamp=None).to(device)
        rival = LOOPS[method](renderer)

        def vectorised(renderer: Renderer = renderer) -> Tensor:
            return renderer.render(weights, bev).sum() + renderer.render(weights[:, None], images).sum()

        def looped(rival: Loop = rival) -> Tensor:
            return rival(weights, bev).sum() + rival(weights[:, None], images).sum()

        with torch.no_grad():
            differ = max(
                (rival(values, where) - renderer.render(values, where)).abs().max().item()
                for values, where in ((weights, bev), (weights[:, None], images))
            )
        if differ > 1e-4:
            raise AssertionError(
                f"{method}: the loop and the renderer differ by {differ:.1e}: a time means nothing"
            )
        forward = time_of(without_gradient(vectorised), device, repeats=50)
        slow_forward = time_of(without_gradient(looped), device, repeats=3)
        both = time_of(with_backward(vectorised, weights), device, repeats=50)
        slow_both = time_of(with_backward(looped, weights), device, repeats=2)
        print(
            f"{method:18} {forward:>16} {slow_forward:>18} {slow_forward.best / forward.best:7.0f}x "
            f"{both:>18} {slow_both:>18} {slow_both.best / both.best:7.0f}x {differ:10.0e}",
            flush=True,
        )


def time_whole(device: torch.device) -> None:
    """The whole AQR at the published size with 900 queries: forward, and forward with backward."""
    torch.manual_seed(0)
    low, high = torch.tensor(GRID.point_range[:3]), torch.tensor(GRID.point_range[3:])
    points = (torch.rand(1, 900, 3) * (high - low) + low).to(device)
    rows, columns = IMAGE_MAP
    leaves = [
        torch.randn(*shape, device=device, requires_grad=True)
        for shape in (
            (1, 900, CHANNELS),
            (1, CHANNELS, *BEV_SIZE),
            (1, VIEWS, CHANNELS, *IMAGE_MAP),
            (BEV_SIZE[0] * BEV_SIZE[1], CHANNELS),
            (1, VIEWS, rows * columns, CHANNELS),
        )
    ]
    embedding, bev, images, bev_position, image_position = leaves
    aqr = AQR(WeightGenerator(), Renderer(), Modulator()).to(device)
    cameras = rig(device)

    def whole() -> Tensor:
        sensors = Sensors(bev, bev_position, GRID, images, image_position, Views.of(cameras, IMAGE_SIZE))
        output = aqr(Queries(embedding, torch.zeros_like(points), points), sensors)
        return output.bev_features.square().mean() + output.image_features.square().mean()

    parameters = sum(parameter.numel() for parameter in aqr.parameters())
    print(f"\nwhole AQR, 1 frame, 900 queries, {CHANNELS} channels, {parameters / 1e6:.2f} M parameters")
    start = peak_memory(device)
    forward = time_of(without_gradient(whole), device)
    after_forward = peak_memory(device)
    both = time_of(with_backward(whole, *leaves, *aqr.parameters()), device)
    after_both = peak_memory(device)
    print(f"forward            {forward:>16} ms, peak memory + {after_forward - start:.0f} MiB")
    print(f"forward + backward {both:>16} ms, peak memory + {after_both - start:.0f} MiB, gradients included")


def placement(
    size: tuple[int, int],
    leading: tuple[int, ...],
    share: float,
    random: torch.Generator,
    device: torch.device,
) -> Placement:
    """Uniform positions, a share of them inside."""
    last = torch.tensor((size[1] - 1.0, size[0] - 1.0))
    position = torch.rand(*leading, QUERIES, 2, generator=random) * last
    inside = torch.rand(*leading, QUERIES, generator=random) < share
    return Placement(position.to(device), inside.to(device), size)


def rig(device: torch.device) -> Tensor:
    """lidar2img (1, 6, 4, 4) of six cameras of 70 degrees, every 60 degrees."""
    height, width = IMAGE_SIZE
    focal = width / 2 / math.tan(math.radians(70) / 2)
    matrices = torch.zeros(1, VIEWS, 4, 4)
    for view in range(VIEWS):
        yaw = 2 * math.pi * view / VIEWS
        forward = torch.tensor((math.cos(yaw), math.sin(yaw), 0.0, 0.0))
        right = torch.tensor((math.sin(yaw), -math.cos(yaw), 0.0, 0.0))
        matrices[0, view, 0] = focal * right + width / 2 * forward
        matrices[0, view, 1] = focal * torch.tensor((0.0, 0.0, -1.0, 0.0)) + height / 2 * forward
        matrices[0, view, 2] = forward
        matrices[0, view, 3, 3] = 1
    return matrices.to(device)


Loop = Callable[[Tensor, Placement], Tensor]
"""Weights and placement to maps, like :meth:`Renderer.render`."""


def queries_of(weights: Tensor, where: Placement) -> Iterator[tuple[int, Tensor, Tensor, list[int]]]:
    """Each query that stands on a map: the map's number, weight, exact position, column and row."""
    inside = where.inside.reshape(-1, QUERIES)
    weights = weights.expand_as(where.inside).reshape(-1, QUERIES)
    position = where.position.reshape(-1, QUERIES, 2)
    cell = where.cell.reshape(-1, QUERIES, 2).tolist()
    for number, query in inside.nonzero().tolist():
        yield number, weights[number, query], position[number, query], cell[number][query]


def empty_maps(weights: Tensor, where: Placement) -> Tensor:
    """Zeros (map, row, column)."""
    return weights.new_zeros(where.inside[..., 0].numel(), *where.map_size)


def add_kernel(maps: Tensor, number: int, weight: Tensor | float, kernel: Tensor, cell: list[int]) -> None:
    """Add weight times kernel around a cell, cut at the border."""
    rows, columns = maps.shape[1:]
    radius = len(kernel) // 2
    column, row = cell
    top, bottom = max(row - radius, 0), min(row + radius + 1, rows)
    left, right = max(column - radius, 0), min(column + radius + 1, columns)
    cut = kernel[top - row + radius : bottom - row + radius, left - column + radius : right - column + radius]
    maps[number, top:bottom, left:right] += weight * cut


def gaussian_kernel(renderer: Renderer, weights: Tensor, where: Placement) -> Tensor:
    """The kernel on a square, with sum 1."""
    radius = renderer.kernel_size // 2
    step = torch.arange(-radius, radius + 1, device=weights.device) ** 2
    kernel = torch.exp(-(step[:, None] + step) / (2 * renderer.gaussian_sigma**2))
    return kernel / kernel.sum()


def disc_kernel(renderer: Renderer, weights: Tensor, where: Placement) -> Tensor:
    """The kernel of ``distance_weighted`` on the square around its disc."""
    reach = renderer.reach_fraction * min(where.map_size)
    step = torch.arange(-math.floor(reach), math.floor(reach) + 1, device=weights.device)
    distance = torch.sqrt((step[:, None] ** 2 + step**2).to(weights.dtype))
    return torch.exp(-distance / (renderer.distance_decay * reach)) * (distance <= reach)


def loop_with(kernel_on: Callable[[Renderer, Tensor, Placement], Tensor]) -> Callable[[Renderer], Loop]:
    """The loop that adds one kernel a query: ``kernel_on`` makes it, (side, side), for weights and a placement."""

    def loop(renderer: Renderer) -> Loop:
        def render(weights: Tensor, where: Placement) -> Tensor:
            maps, kernel = empty_maps(weights, where), kernel_on(renderer, weights, where)
            for number, weight, _, cell in queries_of(weights, where):
                add_kernel(maps, number, weight, kernel, cell)
            return maps.view(*where.inside.shape[:-1], *where.map_size)

        return render

    return loop


def loop_kernel_mean(renderer: Renderer) -> Loop:
    """Two Gaussians a query: one with its weight, one without."""

    def render(weights: Tensor, where: Placement) -> Tensor:
        maps, kernel = empty_maps(weights, where), gaussian_kernel(renderer, weights, where)
        total = torch.zeros_like(maps)
        for number, weight, _, cell in queries_of(weights, where):
            add_kernel(maps, number, weight, kernel, cell)
            add_kernel(total, number, 1.0, kernel, cell)
        mean = torch.where(total > 0, maps / torch.where(total > 0, total, 1.0), 1.0)
        return mean.view(*where.inside.shape[:-1], *where.map_size)

    return render


def loop_bilinear(renderer: Renderer) -> Loop:
    """A patch of four cells a query."""

    def render(weights: Tensor, where: Placement) -> Tensor:
        maps = empty_maps(weights, where)
        for number, weight, position, _ in queries_of(weights, where):
            first = position.floor()
            column, row = first.long().tolist()
            share_x, share_y = position - first
            patch = torch.stack((1 - share_y, share_y))[:, None] * torch.stack((1 - share_x, share_x))
            rows, columns = min(2, where.map_size[0] - row), min(2, where.map_size[1] - column)
            maps[number, row : row + rows, column : column + columns] += weight * patch[:rows, :columns]
        return maps.view(*where.inside.shape[:-1], *where.map_size)

    return render


def loop_direct(renderer: Renderer) -> Loop:
    """The larger of cell and weight, query by query."""

    def render(weights: Tensor, where: Placement) -> Tensor:
        maps = empty_maps(weights, where)
        for number, weight, _, (column, row) in queries_of(weights, where):
            maps[number, row, column] = torch.maximum(maps[number, row, column].clone(), weight)
        return maps.view(*where.inside.shape[:-1], *where.map_size)

    return render


LOOPS: dict[str, Callable[[Renderer], Loop]] = {
    "gaussian": loop_with(gaussian_kernel),
    "bilinear": loop_bilinear,
    "direct": loop_direct,
    "distance_weighted": loop_with(disc_kernel),
    "kernel_mean": loop_kernel_mean,
}


def without_gradient(function: Callable[[], Tensor]) -> Callable[[], object]:
    """The function under ``no_grad``."""

    def run() -> object:
        with torch.no_grad():
            return function()

    return run


def with_backward(function: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], object]:
    """The function and the gradients of its result."""
    return lambda: torch.autograd.grad(function(), leaves, allow_unused=True)


@dataclass(frozen=True)
class Timing:
    """Best and median time of a call in milliseconds; the best says most on a machine in use by others."""

    best: float
    median: float

    def __format__(self, spec: str) -> str:
        return format(f"{self.best:.2f} ({self.median:.2f})", spec)


def time_of(function: Callable[[], object], device: torch.device, repeats: int = 15) -> Timing:
    """Time some calls, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return Timing(min(times[1:]), statistics.median(times[1:]))


def peak_memory(device: torch.device) -> float:
    """Highest memory so far in MiB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
