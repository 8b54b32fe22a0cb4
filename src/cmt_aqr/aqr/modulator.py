"""The modulator: scales features by the weight map rendered on them."""

import math

import torch
from torch import Tensor, nn

from cmt_aqr.checks import require, require_choice, require_flag, require_fraction

MODULATION_TYPES = ("element_wise", "channel_wise", "adaptive")
ACTIVATIONS = ("none", "sigmoid", "tanh", "relu")
MODALITIES = ("bev", "image")

_ELEMENT_SHARE = 0.7
"""Share of the element-wise part in ``adaptive``."""


class Modulator(nn.Module):
    """Scales features F by a weight map W.

    W is the rendered map after ``normalize_weights``, (W - min) / (max - min) per map (a constant map stays as it
    is), and ``activation``. With mean(W) the mean over the map's cells:

    - ``element_wise``: M = F * W
    - ``channel_wise``: M = F * mean(W)
    - ``adaptive``: M = 0.7 F * W + 0.3 F * mean(W)

    and with ``residual_connection`` F' = r F + (1 - r) M, r = ``residual_weight`` from 0 to 1, else F' = M. All
    are computed as F' = F * gain with one gain per cell; r = 1 returns F bit for bit. With
    ``learnable_modulation``, r = sigmoid(``residual_logit``) is learned per modality and starts at
    ``residual_weight``.

    Raises:
        SettingError: a value is out of range.
    """

    def __init__(
        self,
        modulation_type: str = "element_wise",
        residual_connection: bool = True,
        residual_weight: float = 0.65,
        normalize_weights: bool = False,
        activation: str = "none",
        learnable_modulation: bool = False,
    ) -> None:
        super().__init__()
        require_choice("modulation_type", modulation_type, MODULATION_TYPES)
        require_flag("residual_connection", residual_connection)
        require_fraction("residual_weight", residual_weight)
        require_flag("normalize_weights", normalize_weights)
        require_choice("activation", activation, ACTIVATIONS)
        require_flag("learnable_modulation", learnable_modulation)
        self.modulation_type = modulation_type
        self.residual_connection = residual_connection
        self.residual_weight = float(residual_weight)
        self.normalize_weights = normalize_weights
        self.activation = activation
        self.residual_logit: nn.Parameter | None = None
        if learnable_modulation:
            allowed = "false without residual_connection: there is no residual weight to learn"
            require(residual_connection, "learnable_modulation", learnable_modulation, allowed)
            allowed = "above 0 and below 1 with learnable_modulation=true"
            require(0 < residual_weight < 1, "residual_weight", residual_weight, allowed)
            start = math.log(residual_weight / (1 - residual_weight))
            self.residual_logit = nn.Parameter(torch.full((len(MODALITIES),), start))

    def unread(self) -> dict[str, str]:
        """Settings without effect, each with the setting that disables it."""
        return {} if self.residual_connection else {"residual_weight": "residual_connection=false"}

    def residual(self, modality: str) -> Tensor | float:
        """The residual weight r of a modality, ``bev`` or ``image``: a number, or a tensor if it is learned."""
        if self.residual_logit is None:
            return self.residual_weight
        logit = self.residual_logit
        return logit.to(torch.promote_types(logit.dtype, torch.float32))[MODALITIES.index(modality)].sigmoid()

    def forward(self, features: Tensor, weight_map: Tensor, modality: str) -> Tensor:
        """Modulate features; shape and dtype stay.

        Args:
            features: (..., channel, row, column).
            weight_map: (..., row, column), after the renderer's post-processing.
            modality: ``bev`` or ``image``.
        """
        with torch.autocast(features.device.type, enabled=False):
            return (features * self.gain(weight_map, modality).unsqueeze(-3)).to(features.dtype)

    def gain(self, weight_map: Tensor, modality: str) -> Tensor:
        """Gain of each cell (..., row, column), or of all cells (..., 1, 1) if channel-wise."""
        weight = weight_map.to(torch.promote_types(weight_map.dtype, torch.float32))
        if self.normalize_weights:
            low, high = weight.amin(dim=(-2, -1), keepdim=True), weight.amax(dim=(-2, -1), keepdim=True)
            flat = high <= low
            weight = torch.where(flat, weight, (weight - low) / torch.where(flat, 1.0, high - low))
        if self.activation != "none":
            weight = getattr(torch, self.activation)(weight)
        if self.modulation_type != "element_wise":
            mean = weight.mean(dim=(-2, -1), keepdim=True)
            if self.modulation_type == "channel_wise":
                weight = mean
            else:
                weight = _ELEMENT_SHARE * weight + (1 - _ELEMENT_SHARE) * mean
        if not self.residual_connection:
            return weight
        residual = self.residual(modality)
        return residual + (1 - residual) * weight
