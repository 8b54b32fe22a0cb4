"""AQR in the decoder's attention: each query biases its logits towards one sensor."""

from typing import Any

import torch
from torch import Tensor, nn

from cmt_aqr.aqr.generator import WindowReader
from cmt_aqr.aqr.placement import damage_at, generator_inputs, place
from cmt_aqr.checks import require_above_zero, require_choice, require_flag
from cmt_aqr.constants import CAMERAS
from cmt_aqr.errors import UserError
from cmt_aqr.outputs import BiasOutput, mean_seen
from cmt_aqr.structures import Queries, Sensors

BETA = ("learned", "oracle", "zero", "shuffled")
GROUPS = {"sensors": 1, "views": len(CAMERAS)}


class AttentionBias(nn.Module):
    """queries -> beta (query, group), added to the logits of the decoder's cross attention.

    With o_L and o_C the attention outputs over the LiDAR's and the cameras' tokens alone, S the sum of exp(logit)
    over a sensor's tokens, and beta added to the LiDAR's logits:

        o = g o_L + (1 - g) o_C,    g = sigmoid(log S_L - log S_C + beta)

    So beta = log w_L - log w_C is all that two weights can express, and beta = 0 is CMT. The layer that predicts
    beta is initialised to 0. Denoising queries get their own beta, from their own windows.

    Args:
        groups: ``sensors``: one beta, for the LiDAR's tokens; ``views``: one beta per camera's tokens.
        beta: ``learned``, or a control: ``oracle`` computes beta from the faults' damage, ``zero`` sets it to 0,
            ``shuffled`` permutes the learned betas over the queries of a frame.
        strength: beta per unit of the generator's output, which is a log odds if a signal trains it. CMT's own
            evidence, log S_L - log S_C, is of the order of tens, and beta must be able to exceed it.
        limit: bounds beta to +-limit, by limit tanh(x / limit); also the oracle's beta where a sensor is gone.
        health: add an embedding of the mean and the maximum of each sensor's features over its whole map.
        per_layer_and_head: numbers of decoder layers and heads; learns a factor of beta for each; ``None``: 1.
        stop_gradient: block the generator's gradient to the features.

    Raises:
        SettingError: a value is out of range.
    """

    def __init__(
        self,
        generator: WindowReader,
        groups: str = "sensors",
        beta: str = "learned",
        strength: float = 20.0,
        limit: float = 200.0,
        health: bool = False,
        per_layer_and_head: tuple[int, int] | None = None,
        stop_gradient: bool = True,
    ) -> None:
        super().__init__()
        require_choice("groups", groups, GROUPS)
        require_choice("beta", beta, BETA)
        require_above_zero("strength", strength)
        require_above_zero("limit", limit)
        require_flag("health", health)
        require_flag("stop_gradient", stop_gradient)
        self.per_view = groups == "views"
        self.beta = beta
        self.strength = strength
        self.limit = limit
        self.stop_gradient = stop_gradient
        self.generator = generator
        channels = generator.embed_dims
        self.beta_head = nn.Linear(channels, GROUPS[groups])
        nn.init.zeros_(self.beta_head.weight)
        nn.init.zeros_(self.beta_head.bias)
        if health:
            self.lidar_health = nn.Linear(2 * channels, channels)
            self.camera_health = nn.Linear(2 * channels, channels)
        self.factors = None if per_layer_and_head is None else nn.Parameter(torch.ones(*per_layer_and_head))
        if beta in ("oracle", "zero"):
            self.requires_grad_(False)
            self.register_load_state_dict_pre_hook(_fill_missing)

    def unread(self) -> dict[str, str]:
        """Settings without effect, each with the setting that disables it."""
        if self.beta == "zero":
            return dict.fromkeys(("strength", "limit"), "beta=zero")
        return {"strength": "beta=oracle"} if self.beta == "oracle" else {}

    def forward(self, queries: Queries, sensors: Sensors) -> BiasOutput:
        """Compute beta; denoising queries come first.

        Raises:
            UserError: a sensor is absent, or the damage that the oracle reads is unknown.
        """
        if sensors.bev is None or sensors.images is None:
            raise UserError("aqr=attention_bias weighs two sensors, and this model reads one: choose aqr=none")
        lidar_lost, camera_lost, seen = damage_at(queries, sensors)
        with torch.autocast(queries.embedding.device.type, enabled=False):
            if self.beta == "oracle":
                logits = beta = self._oracle(lidar_lost, camera_lost, seen)
            else:
                logits = self._logits(queries, sensors)
                beta = self.limit * torch.tanh(logits * (self.strength / self.limit))
            if self.beta == "zero":
                beta = torch.zeros_like(beta)
            if self.beta == "shuffled":
                beta = self._shuffle(beta, queries.denoising)
        return BiasOutput(
            beta=beta,
            groups=sensors.token_groups(self.per_view),
            logits=logits,
            factors=self.factors,
            valid=queries.valid,
            lidar_lost=lidar_lost,
            camera_lost=camera_lost,
            seen=seen,
            places=queries.places.detach(),
        )

    def _logits(self, queries: Queries, sensors: Sensors) -> Tensor:
        """Output (batch, query, group) of the generator, float32 or better."""
        on_bev, on_images = place(queries, sensors)
        embedding, features = generator_inputs(queries, sensors, self.stop_gradient)
        hidden = self.generator.read(embedding, features, on_bev, on_images)  # (batch, query, channel)
        if hasattr(self, "lidar_health") and on_images is not None:
            hidden = hidden + self._health(features, on_images.inside)
        logits = self.beta_head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _health(self, sensors: Sensors, inside: Tensor) -> Tensor:
        """Embedding (batch, query, channel) of the pooled maps, cameras averaged over those that see a query."""
        assert sensors.bev is not None and sensors.images is not None
        dtype = self.lidar_health.weight.dtype
        lidar = self.lidar_health(_pooled(sensors.bev.to(dtype)))  # (batch, channel)
        cameras = self.camera_health(_pooled(sensors.images.to(dtype)))  # (batch, view, channel)
        seen = inside.mT.to(dtype)  # (batch, query, view)
        share = seen / seen.sum(dim=-1, keepdim=True).clamp(min=1)
        return lidar[:, None] + share @ cameras

    def _oracle(self, lidar_lost: Tensor | None, camera_lost: Tensor | None, seen: Tensor | None) -> Tensor:
        """log w_L - log w_C (batch, query, group), w being the undamaged share of a sensor."""
        if lidar_lost is None or camera_lost is None or seen is None:
            raise UserError("aqr.beta=oracle reads the damage of faults: set data.damage=true")
        lidar = self._log_undamaged(lidar_lost)[..., None]
        if self.per_view:
            return self._log_undamaged(camera_lost) - lidar
        return lidar - self._log_undamaged(mean_seen(camera_lost, seen))[..., None]

    def _log_undamaged(self, lost: Tensor) -> Tensor:
        return (1 - lost).clamp(min=0).log().clamp(min=-self.limit)

    def _shuffle(self, beta: Tensor, denoising: int) -> Tensor:
        """Permute betas among denoising and among matching queries; the permutation is fixed in evaluation."""
        parts = []
        for part in (beta[:, :denoising], beta[:, denoising:]):
            count = part.shape[1]
            random = None if self.training else torch.Generator().manual_seed(count)
            order = torch.randperm(count, generator=random).to(part.device, non_blocking=True)
            parts.append(part[:, order])
        return torch.cat(parts, dim=1)


def _fill_missing(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let weights without AQR load into a control that reads none of its own: those stay as they are."""
    for name, value in module.state_dict().items():
        state.setdefault(f"{prefix}{name}", value)


def _pooled(maps: Tensor) -> Tensor:
    """Mean and maximum over the cells of maps (..., channel, row, column): (..., 2 * channel)."""
    cells = maps.flatten(-2)
    return torch.cat((cells.mean(dim=-1), cells.amax(dim=-1)), dim=-1)
