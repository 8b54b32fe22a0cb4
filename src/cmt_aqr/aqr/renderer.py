"""The renderer: spreads the queries' weights over a feature map by a kernel, then limits them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmt_aqr.aqr.kernels import METHODS
from cmt_aqr.aqr.placement import Placement
from cmt_aqr.checks import is_count, is_number, require, require_choice, require_flag, require_number

CLAMP_MODES = ("hard", "soft")


class Renderer(nn.Module):
    """Renders weights onto BEV or image maps, then post-processes the maps.

    ``render_method`` names a kernel of :mod:`cmt_aqr.aqr.kernels`. The kernel reads the settings that are its
    fields; :meth:`unread` lists the others. Post-processing, in this order:

    1. values below ``min_weight_threshold`` become 0;
    2. with ``normalize_weights`` the map x is clamped to [0, L], L = ``max_weight_clamp`` (``None``: no clamp):
       ``clamp_mode`` hard min(x, L), whose gradient above L is 0; or soft, x up to L / 2 and L - (L / 2)^2 / x
       above, which stays below L and keeps the slope (L / 2x)^2.

    The limit follows from configuration and epoch (:mod:`cmt_aqr.training.clamp`), so no checkpoint holds it.

    Args:
        bev_feature_shape: rows and columns that the BEV features must have; ``None``: any.
        pers_feature_shape: views, rows and columns that the image features must have; ``None``: any.

    Raises:
        SettingError: a value is out of range.
    """

    clamp_limit: Tensor

    def __init__(
        self,
        render_method: str = "gaussian",
        gaussian_sigma: float = 1.0,
        kernel_normalization: str = "sum",
        distance_decay: float = 0.8,
        reach_fraction: float = 0.2,
        min_weight_threshold: float = 0.01,
        normalize_weights: bool = True,
        clamp_mode: str = "hard",
        max_weight_clamp: float | None = 2.0,
        bev_feature_shape: Sequence[int] | None = None,
        pers_feature_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        require_choice("render_method", render_method, METHODS)
        settings = {
            "gaussian_sigma": gaussian_sigma,
            "kernel_normalization": kernel_normalization,
            "distance_decay": distance_decay,
            "reach_fraction": reach_fraction,
        }
        method = METHODS[render_method]
        fields = method.__dataclass_fields__
        self.kernel = method(**{name: value for name, value in settings.items() if name in fields})
        self._unread = {name: f"render_method={render_method}" for name in settings if name not in fields}
        if not normalize_weights:
            self._unread |= dict.fromkeys(("clamp_mode", "max_weight_clamp"), "normalize_weights=false")
        require_flag("normalize_weights", normalize_weights)
        require_choice("clamp_mode", clamp_mode, CLAMP_MODES)
        self.render_method = render_method
        self.min_weight_threshold = require_number("min_weight_threshold", min_weight_threshold, 0)
        self.normalize_weights = normalize_weights
        self.clamp_mode = clamp_mode
        self.bev_feature_shape = _checked_shape("bev_feature_shape", bev_feature_shape, 2)
        self.pers_feature_shape = _checked_shape("pers_feature_shape", pers_feature_shape, 3)
        self.register_buffer("clamp_limit", torch.tensor(math.inf), persistent=False)
        self.register_load_state_dict_pre_hook(_drop_limit)
        self.set_clamp(max_weight_clamp)

    @property
    def max_weight_clamp(self) -> float | None:
        """The clamp's current limit, ``None`` for no clamp; synchronises with the device."""
        limit = self.clamp_limit.item()
        return None if math.isinf(limit) else limit

    def set_clamp(self, value: float | None) -> None:
        """Set the clamp's limit: above 0, or ``None`` for no clamp.

        Raises:
            SettingError: the value is not above 0.
        """
        valid = value is None or (is_number(value) and value > 0)
        require(valid, "max_weight_clamp", value, "above 0, or null for no clamp")
        self.clamp_limit.fill_(math.inf if value is None else value)

    def unread(self) -> dict[str, str]:
        """Settings without effect, each with the setting that disables it."""
        return self._unread

    @property
    def background(self) -> float:
        """A map's value where no query reaches, before post-processing."""
        return self.kernel.background

    def forward(self, weights: Tensor, placement: Placement, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Render and post-process.

        Args:
            weights: (..., query); leading dimensions broadcast to the placement's.
            placement: of the queries, leading shape (...).
            valid: (..., query) bool, queries to render; ``None``: all. Queries outside a map are never rendered.

        Returns:
            The maps (..., row, column) as rendered and after post-processing; float32 or better.
        """
        dtype = torch.promote_types(weights.dtype, torch.float32)
        with torch.autocast(weights.device.type, enabled=False):
            rendered = self.render(weights.to(dtype), placement, valid)
            return rendered, self.post_process(rendered)

    def render(self, weights: Tensor, placement: Placement, valid: Tensor | None = None) -> Tensor:
        """The maps (..., row, column) before post-processing, from weights (..., query)."""
        inside = placement.inside if valid is None else placement.inside & valid
        # Queries that are not rendered have a cell all the same, and add 0 to it.
        weights = torch.where(inside, weights, 0.0)
        *leading, _ = inside.shape
        weights, inside, position, cell = (
            part.reshape(math.prod(leading), *part.shape[len(leading) :])
            for part in (weights, inside, placement.position, placement.cell)
        )
        rendered = self.kernel(weights, inside, position, cell, placement.map_size)
        return rendered.view(*leading, *placement.map_size)

    def post_process(self, rendered: Tensor) -> Tensor:
        """Apply the threshold, then the clamp if ``normalize_weights``; the shape stays."""
        processed = torch.where(rendered < self.min_weight_threshold, 0.0, rendered)
        if not self.normalize_weights:
            return processed
        limit = self.clamp_limit.to(rendered.dtype)
        processed = processed.clamp(min=0)
        return torch.minimum(processed, limit) if self.clamp_mode == "hard" else soft_clamp(processed, limit)


def _drop_limit(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """Drop the limit that older checkpoints hold."""
    state.pop(f"{prefix}clamp_limit", None)


def soft_clamp(value: Tensor, limit: Tensor) -> Tensor:
    """x up to L / 2, above it L - (L / 2)^2 / x: smooth, below L, with the slope (L / 2x)^2 above L / 2.

    ``value`` is at least 0; ``limit``, the scalar L, is above 0, and an infinite one is no limit.
    """
    below = value <= limit / 2
    # Both branches stay finite everywhere, so that neither turns the other's gradient into NaN.
    finite_limit = torch.where(limit.isinf(), torch.ones_like(limit), limit)
    above_value = torch.where(below, torch.ones_like(value), value)
    return torch.where(below, value, finite_limit - (finite_limit / 2) ** 2 / above_value)


def _checked_shape(name: str, shape: Sequence[int] | None, length: int) -> tuple[int, ...] | None:
    if shape is None:
        return None
    valid = isinstance(shape, Sequence) and len(shape) == length and all(map(is_count, shape))
    require(valid, name, shape, f"{length} whole numbers of at least 1, or null to take them from the features")
    return tuple(shape)
