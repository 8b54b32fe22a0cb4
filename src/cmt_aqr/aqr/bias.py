"""AQR in the decoder's attention: each query says how much more one sensor counts than the other."""

from typing import Any

import torch
from torch import Tensor, nn

from cmt_aqr.aqr.generator import WindowReader
from cmt_aqr.aqr.placement import damage_at, looking, place
from cmt_aqr.checks import require_above_zero, require_choice, require_flag
from cmt_aqr.constants import CAMERAS
from cmt_aqr.errors import UserError
from cmt_aqr.outputs import BiasOutput, mean_seen
from cmt_aqr.structures import Queries, Sensors

BETA = ("learned", "oracle", "zero", "shuffled")
GROUPS = {"sensors": 1, "views": len(CAMERAS)}


class AttentionBias(nn.Module):
    """queries -> beta (query, group), which the decoder adds to the logits of its cross attention.

    With o_L and o_C what a query gets from LiDAR and cameras alone, S the sums of exp(logit) over a sensor, and
    beta on the LiDAR's tokens:

        o = g o_L + (1 - g) o_C,    g = sigmoid(log S_L - log S_C + beta)

    so beta = log w_L - log w_C is all that two weights can say, and beta = 0 is CMT. The layer that makes beta
    starts at 0. Denoising queries get a beta, too, from their own windows.

    Args:
        groups: ``sensors``: one beta, on the LiDAR's tokens; ``views``: one on the tokens of each camera.
        beta: ``learned``; or a control: ``oracle``, what the faults' damage says, ``zero``, the generator is there
            and says nothing, ``shuffled``, every query gets what another one of its frame learned.
        strength: beta for each unit of what the generator says, which is a log odds where the signal teaches it.
            CMT's own evidence, log S_L - log S_C, is counted in tens; so must beta be to turn it over.
        limit: beta stays within +-limit, by limit tanh(x / limit); the oracle's where a sensor is gone.
        health: let queries know the mean and the highest features of each sensor's whole map, too.
        per_layer_and_head: learn factors of beta for each of these many decoder layers and heads; ``None``: 1.
        stop_gradient: look at features without changing them.

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
            self.register_load_state_dict_pre_hook(_keep_own)

    def unread(self) -> dict[str, str]:
        """Settings that have no effect, and the setting because of which."""
        if self.beta == "zero":
            return dict.fromkeys(("strength", "limit"), "beta=zero")
        return {"strength": "beta=oracle"} if self.beta == "oracle" else {}

    def forward(self, queries: Queries, sensors: Sensors) -> BiasOutput:
        """Weigh; denoising queries come first.

        Raises:
            UserError: a sensor is not there, or an oracle is asked and the damage is not known.
        """
        if sensors.bev is None or sensors.images is None:
            raise UserError("aqr=attention_bias weighs two sensors and this model reads one: choose aqr=none")
        lidar_lost, camera_lost, seen = damage_at(queries, sensors)
        with torch.autocast(queries.embedding.device.type, enabled=False):
            if self.beta == "oracle":
                said = beta = self._oracle(lidar_lost, camera_lost, seen)
            else:
                said = self._said(queries, sensors)
                beta = self.limit * torch.tanh(said * (self.strength / self.limit))
            if self.beta == "zero":
                beta = torch.zeros_like(beta)
            if self.beta == "shuffled":
                beta = self._shuffled(beta, queries.denoising)
        return BiasOutput(
            beta=beta,
            groups=sensors.token_groups(self.per_view),
            said=said,
            factors=self.factors,
            draws=queries.draws,
            lidar_lost=lidar_lost,
            camera_lost=camera_lost,
            seen=seen,
            places=queries.places.detach(),
        )

    def _said(self, queries: Queries, sensors: Sensors) -> Tensor:
        """(batch, query, group) from the generator."""
        on_bev, on_images = place(queries, sensors)
        looked_at, embedding = looking(queries, sensors, self.stop_gradient)
        found = self.generator.read(embedding, looked_at, on_bev, on_images)  # (batch, query, channel)
        if hasattr(self, "lidar_health") and on_images is not None:
            found = found + self._health(looked_at, on_images.inside)
        said = self.beta_head(found)
        return said.to(torch.promote_types(said.dtype, torch.float32))

    def _health(self, sensors: Sensors, inside: Tensor) -> Tensor:
        """(batch, query, channel) from the whole maps; of the cameras the mean over those that see the query."""
        assert sensors.bev is not None and sensors.images is not None
        dtype = self.lidar_health.weight.dtype
        lidar = self.lidar_health(_pooled(sensors.bev.to(dtype)))  # (batch, channel)
        cameras = self.camera_health(_pooled(sensors.images.to(dtype)))  # (batch, view, channel)
        seen = inside.mT.to(dtype)  # (batch, query, view)
        share = seen / seen.sum(dim=-1, keepdim=True).clamp(min=1)
        return lidar[:, None] + share @ cameras

    def _oracle(self, lidar_lost: Tensor | None, camera_lost: Tensor | None, seen: Tensor | None) -> Tensor:
        """(batch, query, group), log w_L - log w_C with w what is left of a sensor: away from what is broken."""
        if lidar_lost is None or camera_lost is None or seen is None:
            raise UserError("aqr.beta=oracle reads what faults broke: give data.damage=true")
        lidar = self._log_left(lidar_lost)[..., None]
        if self.per_view:
            return self._log_left(camera_lost) - lidar
        return lidar - self._log_left(mean_seen(camera_lost, seen))[..., None]

    def _log_left(self, lost: Tensor) -> Tensor:
        return (1 - lost).clamp(min=0).log().clamp(min=-self.limit)

    def _shuffled(self, beta: Tensor, denoising: int) -> Tensor:
        """Beta of another query of the same kind; in evaluation always the same one's."""
        parts = []
        for part in (beta[:, :denoising], beta[:, denoising:]):
            count = part.shape[1]
            random = None if self.training else torch.Generator().manual_seed(count)
            order = torch.randperm(count, generator=random).to(part.device, non_blocking=True)
            parts.append(part[:, order])
        return torch.cat(parts, dim=1)


def _keep_own(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let weights without AQR be loaded: what nothing reads stays as it is."""
    for name, value in module.state_dict().items():
        state.setdefault(f"{prefix}{name}", value)


def _pooled(maps: Tensor) -> Tensor:
    """Mean and highest value over the cells of maps (..., channel, row, column): (..., 2 * channel)."""
    cells = maps.flatten(-2)
    return torch.cat((cells.mean(dim=-1), cells.amax(dim=-1)), dim=-1)
