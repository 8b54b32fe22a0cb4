"""Statistics of AQR's maps, weights and biases, one number each."""

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from cmt_aqr.outputs import AQROutput, BiasOutput, mean_seen

BROKEN = 0.5
"""A sensor counts as broken at a query where its damage exceeds this."""


def map_statistics(rendered: Tensor, processed: Tensor, background: float = 0.0) -> dict[str, Tensor]:
    """Statistics of a map over all frames, views and cells.

    Args:
        rendered: (..., row, column) as rendered, before threshold and clamp.
        processed: (..., row, column) after post-processing.
        background: the rendered value where no query reaches, ``Renderer.background``.

    Returns:
        Scalars of the map **before** the clamp, which is where a pile-up shows: ``mean``, ``std``, ``min``,
        ``max``, ``max_over_mean`` (0 for a map of zeros), ``clamped`` (share of cells that the clamp lowered),
        ``drawn`` (share of cells that some query reaches); and after it ``mean_after`` and ``max_after``.
    """
    rendered, processed = rendered.detach(), processed.detach()
    std, mean = torch.std_mean(rendered, correction=0)
    lowest, highest = torch.aminmax(rendered)
    empty = mean <= 0
    clamped = (processed < rendered) & (processed > 0)  # the threshold sets cells to 0, the clamp does not
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

    The modulator applies one gain per cell, so this is also the mean of the elementwise ratios. Cells whose
    features are all 0 are left out.

    Args:
        before: (..., channel, row, column) features.
        after: (..., channel, row, column), modulated.
    """
    exact = torch.promote_types(before.dtype, torch.float32)
    before, after = before.detach().to(exact), after.detach().to(exact)
    size = before.norm(dim=-3)
    ratio = (after - before).norm(dim=-3) / torch.where(size > 0, size, 1.0)
    return ratio.sum() / (size > 0).sum().clamp(min=1)


@torch.no_grad()
def output_statistics(output: AQROutput, background: float) -> dict[str, Tensor]:
    """:func:`map_statistics` and :func:`relative_change` per map, named ``bev/mean``, ``camera/mean`` etc."""
    features = {
        "bev": (output.bev_input, output.bev_features),
        "camera": (output.image_input, output.image_features),
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
    """Weights that were rendered: ``lidar`` and ``camera`` (query,), of the queries on a map of the sensor.

    Their number depends on the data, so this synchronises with the device.
    """
    weights = output.weights.detach()
    seen = {"lidar": output.bev_seen, "camera": output.camera_seen}
    return {
        name: weights[..., index][mask if output.valid is None else mask & output.valid]
        for index, (name, mask) in enumerate(seen.items())
    }


@torch.no_grad()
def beta_values(output: BiasOutput) -> dict[str, Tensor]:
    """All betas of a batch in one vector, without padding; synchronises with the device.

    Returns:
        ``all``; where the damage is known also ``lidar_broken``, ``camera_broken`` and ``whole``, the betas of
        queries whose LiDAR, whose cameras or neither are broken. States without a query are left out. With one
        beta per camera, only the cameras that see a query count where the damage is known.
    """
    valid, damage = torch.ones_like(output.beta, dtype=torch.bool), output.damage
    if output.valid is not None:
        valid = valid & output.valid[..., None]
    if damage is not None:
        lidar, camera = (lost[..., None].expand_as(output.beta) for lost in damage)
        if output.beta.shape[-1] > 1 and output.camera_lost is not None and output.seen is not None:
            valid, camera = valid & output.seen, output.camera_lost
        damage = lidar, camera
    return _by_state(output.beta, valid, damage)


@torch.no_grad()
def share_values(share: Tensor, output: AQROutput | BiasOutput) -> dict[str, Tensor]:
    """The LiDAR's share of the attention by state of the sensors, in the form of :func:`beta_values`.

    Args:
        share: (batch, matching query).
        output: of the same batch; its matching queries come last.
    """
    damage = output.damage
    if damage is not None:
        matching = slice(-share.shape[1], None)
        damage = damage[0][:, matching], damage[1][:, matching]
    return _by_state(share, torch.ones_like(share, dtype=torch.bool), damage)


def _by_state(values: Tensor, valid: Tensor, damage: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
    """The valid ones of ``values``, all and by broken sensor; all tensors have one shape."""
    masks = {"all": valid}
    if damage is not None:
        lidar_broken, camera_broken = (lost > BROKEN for lost in damage)
        masks["lidar_broken"] = valid & lidar_broken
        masks["camera_broken"] = valid & camera_broken
        masks["whole"] = valid & ~lidar_broken & ~camera_broken
    selected = {name: values[mask] for name, mask in masks.items()}
    return {name: part for name, part in selected.items() if len(part)}


def spread(values_by_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``mean``, ``std``, ``min`` and ``max`` of ``all``, and the mean of each other state under its name."""
    if "all" not in values_by_state:
        return {}
    values = values_by_state["all"]
    overall = {"mean": values.mean(), "std": values.std(correction=0), "min": values.min(), "max": values.max()}
    return overall | {name: part.mean() for name, part in values_by_state.items() if name != "all"}


@torch.no_grad()
def doubts(output: AQROutput | BiasOutput) -> dict[str, Tensor]:
    """How much AQR distrusts each sensor, paired with whether the sensor is broken.

    Returns:
        ``lidar`` and ``camera``: (2, query) over the queries that the sensor sees, without padding. Row 0 is the
        negated preference for the sensor, row 1 is 1 where its damage exceeds :data:`BROKEN`. Empty where the
        damage is unknown.
    """
    if output.damage is None:
        return {}
    lidar, camera = output.damage
    if isinstance(output, AQROutput):
        lidar_weight, camera_weight = output.weights.unbind(-1)
        scores = {
            "lidar": (-lidar_weight, lidar, output.bev_seen),
            "camera": (-camera_weight, camera, output.camera_seen),
        }
    else:
        beta, seen = output.beta, output.seen
        assert seen is not None  # as the damage is known
        if beta.shape[-1] == 1:
            beta = beta[..., 0]
            everywhere = torch.ones_like(lidar, dtype=torch.bool)
            scores = {"lidar": (-beta, lidar, everywhere), "camera": (beta, camera, seen.any(dim=-1))}
        else:
            assert output.camera_lost is not None
            scores = {
                "lidar": (mean_seen(beta, seen), lidar, seen.any(dim=-1)),
                "camera": (-beta, output.camera_lost, seen),
            }
    pairs = {}
    for name, (doubt, lost, valid) in scores.items():
        if output.valid is not None:
            valid = valid & (output.valid if valid.dim() == 2 else output.valid[..., None])
        pairs[name] = torch.stack((doubt[valid].float(), (lost[valid] > BROKEN).float()))
    return pairs


def detection_of_damage(pairs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Areas under the ROC curves of AQR as a detector of damage: ``auc_lidar`` and ``auc_camera``.

    Args:
        pairs: (2, query) per sensor, as returned by :func:`doubts`.

    Returns:
        Scalars; none for a sensor that is broken at all queries or at no query.
    """
    areas = {}
    for name, (doubt, broken) in pairs.items():
        if 0 < int(broken.sum()) < len(broken):
            # Ranks, because torchmetrics applies a sigmoid to scores outside [0, 1], which ties high ones.
            rank = doubt.unique(return_inverse=True)[1].double()
            areas[f"auc_{name}"] = binary_auroc(rank / len(rank), broken.long())
    return areas
