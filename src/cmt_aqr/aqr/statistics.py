"""What can be read off AQR's maps, weights and biases: one number each."""

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from cmt_aqr.outputs import AQROutput, BiasOutput, mean_seen

BROKEN = 0.5
"""Damage from which on a sensor counts as broken at a query."""


def map_statistics(rendered: Tensor, processed: Tensor, background: float = 0.0) -> dict[str, Tensor]:
    """Numbers of a map over all its frames, views and cells.

    Args:
        rendered: (..., row, column) as rendered, before threshold and clamp.
        processed: the same after post-processing.
        background: the rendered value where no query reaches, ``Renderer.background``.

    Returns:
        Scalars of the map **before** the clamp, which is what shows a pile-up: ``mean``, ``std``, ``min``,
        ``max``, ``max_over_mean`` (0 for a map of zeros), ``clamped`` (share of cells that the clamp lowered),
        ``drawn`` (share of cells that some query reaches); and after it ``mean_after`` and ``max_after``.
    """
    rendered, processed = rendered.detach(), processed.detach()
    std, mean = torch.std_mean(rendered, correction=0)
    lowest, highest = torch.aminmax(rendered)
    empty = mean <= 0
    clamped = (processed < rendered) & (processed > 0)  # what the threshold made 0 was not clamped
    return {
        "mean": mean,
        "std": std,
        "min": lowest,
        "max": highest,
        "max_over_mean": torch.where(empty, 0.0, highest / torch.where(empty, 1.0, mean)),
        "clamped": clamped.to(rendered.dtype).mean(),
        "drawn": (rendered != background).to(rendered.dtype).mean(),
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
    ratio = (after - before).norm(dim=-3) / torch.where(size > 0, size, 1.0)
    return ratio.sum() / (size > 0).sum().clamp(min=1)


@torch.no_grad()
def output_statistics(output: AQROutput, background: float) -> dict[str, Tensor]:
    """:func:`map_statistics` and ``relative_change`` of each map, as ``bev/mean``, ``camera/mean`` and so on."""
    features = {
        "bev": (output.bev_given, output.bev_features),
        "camera": (output.image_given, output.image_features),
    }
    numbers: dict[str, Tensor] = {}
    with torch.autocast(output.weights.device.type, enabled=False):
        for name, (rendered, processed) in output.maps().items():
            for key, value in map_statistics(rendered, processed, background).items():
                numbers[f"{name}/{key}"] = value
            before, after = features[name]
            if before is not None and after is not None:
                numbers[f"{name}/relative_change"] = relative_change(before, after)
    return numbers


def used_weights(output: AQROutput) -> dict[str, Tensor]:
    """The weights that drew: ``lidar`` and ``camera`` (query,), of queries that stand on a map of the sensor.

    How many there are depends on the data, so this waits for the device.
    """
    weights = output.weights.detach()
    seen = {"lidar": output.bev_seen, "camera": output.camera_seen}
    return {
        name: weights[..., index][mask if output.draws is None else mask & output.draws]
        for index, (name, mask) in enumerate(seen.items())
    }


@torch.no_grad()
def beta_values(output: BiasOutput) -> dict[str, Tensor]:
    """Every beta of a batch, padding aside, in a row; how many there are waits for the device.

    Returns:
        ``all``; where the damage is known also those at queries whose LiDAR, whose cameras or neither of them are
        broken (``lidar_broken``, ``camera_broken``, ``whole``; a state that no query is in is left out). With a
        beta for each camera they are those of the cameras that see a query.
    """
    beta, camera = output.beta, output.camera_lost
    counts = torch.ones_like(beta, dtype=torch.bool)
    if output.draws is not None:
        counts = counts & output.draws[..., None]
    if output.seen is not None and camera is not None:
        if beta.shape[-1] > 1:
            counts = counts & output.seen
        else:
            camera = mean_seen(camera, output.seen)[..., None]
    lidar = None if output.lidar_lost is None else output.lidar_lost[..., None].expand_as(beta)
    return _by_state(beta, counts, lidar, camera)


@torch.no_grad()
def share_values(share: Tensor, output: AQROutput | BiasOutput) -> dict[str, Tensor]:
    """The LiDAR's share of the attention by state of the sensors, as :func:`beta_values`.

    Args:
        share: (batch, matching query).
        output: of the same batch; its matching queries come last.
    """
    lidar, camera = output.lidar_lost, output.camera_lost
    if isinstance(output, BiasOutput) and camera is not None and output.seen is not None:
        camera = mean_seen(camera, output.seen)
    rows = slice(-share.shape[1], None)
    lidar, camera = (None if lost is None else lost[:, rows] for lost in (lidar, camera))
    return _by_state(share, torch.ones_like(share, dtype=torch.bool), lidar, camera)


def _by_state(values: Tensor, counts: Tensor, lidar: Tensor | None, camera: Tensor | None) -> dict[str, Tensor]:
    """Those of ``values`` that count, in all and by what is broken; all of one shape."""
    states = {"all": counts}
    if lidar is not None and camera is not None:
        lidar_broken, camera_broken = lidar > BROKEN, camera > BROKEN
        states["lidar_broken"] = counts & lidar_broken
        states["camera_broken"] = counts & camera_broken
        states["whole"] = counts & ~lidar_broken & ~camera_broken
    parts = {name: values[state] for name, state in states.items()}
    return {name: part for name, part in parts.items() if len(part)}


def spread(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """``mean``, ``std``, ``min`` and ``max`` of ``all``, and the mean of each other part under its name."""
    if "all" not in parts:
        return {}
    values = parts["all"]
    whole = {"mean": values.mean(), "std": values.std(correction=0), "min": values.min(), "max": values.max()}
    return whole | {name: part.mean() for name, part in parts.items() if name != "all"}


@torch.no_grad()
def doubts(output: AQROutput | BiasOutput) -> dict[str, Tensor]:
    """How much AQR doubts each sensor, and whether it is broken there.

    Returns:
        ``lidar`` and ``camera``: (2, query) over the queries that the sensor sees, padding aside: the weight that
        it is denied, and 1 where its damage is above one half. Nothing where the damage is not known.
    """
    lidar, camera = output.lidar_lost, output.camera_lost
    if lidar is None or camera is None:
        return {}
    if isinstance(output, AQROutput):
        of_lidar, of_camera = output.weights.unbind(-1)
        rows = {"lidar": (-of_lidar, lidar, output.bev_seen), "camera": (-of_camera, camera, output.camera_seen)}
    else:
        beta, seen = output.beta, output.seen
        assert seen is not None  # as the damage is known
        if beta.shape[-1] == 1:
            every = torch.ones_like(lidar, dtype=torch.bool)
            of_cameras = (beta[..., 0], mean_seen(camera, seen), seen.any(dim=-1))
            rows = {"lidar": (-beta[..., 0], lidar, every), "camera": of_cameras}
        else:
            rows = {"lidar": (mean_seen(beta, seen), lidar, seen.any(dim=-1)), "camera": (-beta, camera, seen)}
    found = {}
    for name, (doubt, lost, counts) in rows.items():
        if output.draws is not None:
            counts = counts & (output.draws if counts.dim() == 2 else output.draws[..., None])
        found[name] = torch.stack((doubt[counts].float(), (lost[counts] > BROKEN).float()))
    return found


def detection_of_damage(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """How well AQR tells what is broken: ``auc_lidar`` and ``auc_camera``, the areas under the ROC curves.

    Args:
        found: as of :func:`doubts`.

    Returns:
        Scalars; nothing for a sensor that is broken at all queries or at none.
    """
    areas = {}
    for name, (doubt, broken) in found.items():
        if 0 < int(broken.sum()) < len(broken):
            # Ranks: a sigmoid, which torchmetrics takes of scores beyond [0, 1], makes ties of high ones.
            rank = doubt.unique(return_inverse=True)[1].double()
            areas[f"auc_{name}"] = binary_auroc(rank / len(rank), broken.long())
    return areas
