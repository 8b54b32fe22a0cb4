"""Time AQR: rendering against a loop over queries, and the whole at the published size.

    python benchmarks/bench_aqr_render.py [--threads 2] [--device cpu]

The rival is the obvious renderer: for each frame and query, cut the kernel at the border of the map and add
weight times kernel to a slice of the map. It is differentiable too, so forward and backward both compare.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_aqr.aqr import AQR, RENDER_METHODS, Modulator, Placement, Renderer, WeightGenerator
from cmt_aqr.geometry import BEVGrid

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
    """Every render method for 2 x 1730 queries, in BEV and cameras, against the loop with the Gaussian."""
    random = torch.Generator().manual_seed(0)
    weights = torch.rand(BATCH, QUERIES, generator=random).to(device).requires_grad_()
    bev = placement(BEV_SIZE, (BATCH,), 1.0, random, device)
    # In nuScenes a query is seen by 1.1 views on average.
    images = placement(IMAGE_MAP, (BATCH, VIEWS), 1.1 / VIEWS, random, device)

    def vectorised(method: str) -> Tensor:
        renderer = Renderer(method, max_weight_clamp=None).to(device)
        return renderer(weights, bev)[1].sum() + renderer(weights[:, None], images)[1].sum()

    def looped() -> Tensor:
        return loop(weights, bev).sum() + loop(weights[:, None], images).sum()

    print(f"\nrendering {BATCH} x {QUERIES} queries onto {BEV_SIZE} and {(VIEWS, *IMAGE_MAP)}")
    with torch.no_grad():
        difference = (loop(weights, bev) - Renderer().to(device).draw(weights, bev)).abs().max().item()
    print(f"loop and gaussian differ by at most {difference:.1e}")
    slow_forward = time_of(without_gradient(looped), device, repeats=3)
    slow_both = time_of(with_backward(looped, weights), device, repeats=3)
    print(f"{'milliseconds':18} {'forward':>18} {'faster':>8} {'forward + backward':>20} {'faster':>8}")
    print(f"{'loop (gaussian)':18} {slow_forward:>18} {'':8} {slow_both:>20}")
    for method in RENDER_METHODS:

        def draw(method: str = method) -> Tensor:
            return vectorised(method)

        forward = time_of(without_gradient(draw), device, repeats=50)
        both = time_of(with_backward(draw, weights), device, repeats=50)
        print(
            f"{method:18} {forward:>18} {slow_forward.best / forward.best:7.0f}x "
            f"{both:>20} {slow_both.best / both.best:7.0f}x"
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
        output = aqr(embedding, points, bev, images, bev_position, image_position, GRID, cameras, IMAGE_SIZE)
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


def loop(weights: Tensor, where: Placement) -> Tensor:
    """The rival: one query at a time."""
    renderer = Renderer(max_weight_clamp=None)
    rows, columns = where.map_size
    inside = where.inside.reshape(-1, QUERIES)
    cell = where.cell.reshape(-1, QUERIES, 2)
    weights = weights.expand_as(where.inside).reshape(-1, QUERIES)
    radius = renderer.kernel_size // 2
    step = torch.arange(-radius, radius + 1, device=weights.device) ** 2
    kernel = torch.exp(-(step[:, None] + step) / (2 * renderer.gaussian_sigma**2))
    kernel = kernel / kernel.sum()
    maps = []
    for number in range(len(inside)):
        drawn = torch.zeros(rows, columns, device=weights.device)
        for query in range(QUERIES):
            if not inside[number, query]:
                continue
            column, row = cell[number, query].tolist()
            top, bottom = max(row - radius, 0), min(row + radius + 1, rows)
            left, right = max(column - radius, 0), min(column + radius + 1, columns)
            cut = kernel[
                top - row + radius : bottom - row + radius, left - column + radius : right - column + radius
            ]
            drawn[top:bottom, left:right] += weights[number, query] * cut
        maps.append(drawn)
    return torch.stack(maps)


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
