"""What can be read off AQR's maps: one number each, as tensors that wait for no device."""

from __future__ import annotations

import torch
from torch import Tensor

from cmt_aqr.structures import AQROutput


def map_statistics(drawn: Tensor, processed: Tensor, background: float = 0.0) -> dict[str, Tensor]:
    """Numbers of a map over all its frames, views and cells.

    Args:
        drawn: (..., row, column) as rendered, before threshold and clamp.
        processed: the same after post-processing.
        background: the rendered value where no query reaches, ``Renderer.background``.

    Returns:
        Scalars of the map **before** the clamp, which is what shows a pile-up: ``mean``, ``std``, ``min``,
        ``max``, ``max_over_mean`` (0 for a map of zeros), ``clamped`` (share of cells that the clamp lowered),
        ``drawn`` (share of cells that some query reaches); and after it ``mean_after`` and ``max_after``.
    """
    drawn, processed = drawn.detach(), processed.detach()
    std, mean = torch.std_mean(drawn, correction=0)
    lowest, highest = torch.aminmax(drawn)
    empty = mean <= 0
    # What the threshold made 0 was not clamped.
    clamped = (processed < drawn) & (processed > 0)
    return {
        "mean": mean,
        "std": std,
        "min": lowest,
        "max": highest,
        "max_over_mean": torch.where(empty, 0.0, highest / torch.where(empty, 1.0, mean)),
        "clamped": clamped.to(drawn.dtype).mean(),
        "drawn": (drawn != background).to(drawn.dtype).mean(),
        "mean_after": processed.mean(),
        "max_after": processed.amax(),
    }


def relative_change(before: Tensor, after: Tensor) -> Tensor:
    """Mean over the cells of |after - before| / |before|, with norms over a cell's channels.

    The modulator has one gain for each cell, so this is also the mean of the elements' own ratios. Cells
    whose features are all 0 do not count.

    Args:
        before: (..., channel, row, column) features.
        after: the same, modulated.
    """
    exact = torch.promote_types(before.dtype, torch.float32)
    before, after = before.detach().to(exact), after.detach().to(exact)
    size = before.norm(dim=-3)
    counts = size > 0
    ratio = (after - before).norm(dim=-3) / torch.where(counts, size, torch.ones_like(size))
    return ratio.sum() / counts.sum().clamp(min=1)


@torch.no_grad()
def output_statistics(output: AQROutput, background: float) -> dict[str, Tensor]:
    """:func:`map_statistics` and ``relative_change`` of each map, as ``bev/mean``, ``camera/mean`` and so on.

    Args:
        output: what AQR gave.
        background: ``Renderer.background``.
    """
    pairs = {
        "bev": (output.bev_given, output.bev_features),
        "camera": (output.image_given, output.image_features),
    }
    numbers: dict[str, Tensor] = {}
    with torch.autocast(output.weights.device.type, enabled=False):
        for name, (drawn, processed) in output.maps().items():
            for key, value in map_statistics(drawn, processed, background).items():
                numbers[f"{name}/{key}"] = value
            before, after = pairs[name]
            if before is not None and after is not None:
                numbers[f"{name}/relative_change"] = relative_change(before, after)
    return numbers


def used_weights(output: AQROutput) -> dict[str, Tensor]:
    """The weights that drew: ``lidar`` and ``camera`` (query,), of queries that stand on a map of the sensor.

    How many there are depends on the data, so this waits for the device.
    """
    draws = torch.ones_like(output.camera_seen) if output.draws is None else output.draws
    bev_seen = torch.zeros_like(draws) if output.bev_seen is None else output.bev_seen
    seen = {"lidar": bev_seen, "camera": output.camera_seen}
    weights = output.weights.detach()
    return {name: weights[..., index][mask & draws] for index, (name, mask) in enumerate(seen.items())}
