"""Outputs of the model and of AQR, as frozen dataclasses of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmt_aqr.structures import Sensors
from cmt_aqr.tensors import TensorStructure


@dataclass(frozen=True)
class TokenBias(TensorStructure):
    """A bias per query and group of tokens, added to the logits of the decoder's cross attention.

    Attributes:
        beta: (batch, query, group) float32 or better.
        groups: (token, group), 1 where a token belongs to a group and 0 elsewhere.
        factors: (layer, head), multiply beta; (head,) for one layer; ``None``: 1.
    """

    beta: Tensor
    groups: Tensor
    factors: Tensor | None = None

    def of_layer(self, number: int) -> TokenBias:
        """The bias of one decoder layer."""
        return self if self.factors is None else self.replace(factors=self.factors[number])


@dataclass(frozen=True)
class Signal(TensorStructure):
    """AQR's own training signal, derived from the damage that faults did.

    Attributes:
        logits: (batch, query, n), AQR's output before a sigmoid.
        target: (batch, query, n) in [0, 1], for the sigmoid of ``logits``.
        valid: (batch, query, n) bool, where the target is known.
    """

    logits: Tensor
    target: Tensor
    valid: Tensor


@dataclass(frozen=True)
class BiasOutput(TensorStructure):
    """Output of AQR as a bias in the decoder's attention.

    Attributes:
        beta: (batch, query, group), see :class:`TokenBias`; denoising queries first.
        groups: (token, group).
        logits: (batch, query, group), the generator's output; ``None``: beta itself.
        factors: (layer, head), or ``None``.
        valid: (batch, query) bool, False for padding among the denoising queries; ``None``: no padding.
        lidar_lost: (batch, query), damage of the LiDAR at the query, 0 to 1; ``None``: unknown.
        camera_lost: (batch, query, view), damage of each camera at the query.
        seen: (batch, query, view) bool, which cameras see the query.
        places: (batch, query, 3), positions of the queries in metres, LiDAR frame.
    """

    beta: Tensor
    groups: Tensor
    logits: Tensor | None = None
    factors: Tensor | None = None
    valid: Tensor | None = None
    lidar_lost: Tensor | None = None
    camera_lost: Tensor | None = None
    seen: Tensor | None = None
    places: Tensor | None = None

    @property
    def bias(self) -> TokenBias:
        """The part that the decoder reads."""
        return TokenBias(self.beta, self.groups, self.factors)

    @property
    def damage(self) -> tuple[Tensor, Tensor] | None:
        """Damage of the LiDAR and mean of the cameras that see a query, (batch, query) each; ``None``: unknown."""
        if self.lidar_lost is None or self.camera_lost is None or self.seen is None:
            return None
        return self.lidar_lost, mean_seen(self.camera_lost, self.seen)

    @property
    def signal(self) -> Signal | None:
        """Target of the logits' sigmoid: 1/2 prefers neither sensor, 1 the group that beta favours."""
        if self.lidar_lost is None or self.camera_lost is None or self.seen is None:
            return None
        if self.beta.shape[-1] == 1:
            target = 0.5 + 0.5 * (mean_seen(self.camera_lost, self.seen) - self.lidar_lost)[..., None]
            valid = self.seen.any(dim=-1, keepdim=True) | (self.lidar_lost[..., None] > 0)
        else:
            target, valid = 0.5 + 0.5 * (self.lidar_lost[..., None] - self.camera_lost), self.seen
        if self.valid is not None:
            valid = valid & self.valid[..., None]
        return Signal(self.beta if self.logits is None else self.logits, target, valid)

    def apply(self, sensors: Sensors) -> Sensors:
        """The sensors, unchanged."""
        return sensors


def mean_seen(values: Tensor, seen: Tensor) -> Tensor:
    """Mean of values (..., view) over the views that see a query; 0 where none does."""
    return (values * seen).sum(dim=-1) / seen.sum(dim=-1).clamp(min=1)


@dataclass(frozen=True)
class AQROutput(TensorStructure):
    """Output of AQR as maps: the modulated features, and what monitors read.

    Attributes:
        weights: (batch, query, 2) in [0, 1], LiDAR and camera weight of the matching queries; with
            ``aqr.draw=all`` the denoising queries come first.
        camera_seen: (batch, query) bool, False where no camera sees the query; its camera weight is unused.
        bev_seen: (batch, query) bool, False where the query lies off the BEV map; its LiDAR weight is unused.
        bev_features: (batch, channel, height, width) modulated, or ``None`` without LiDAR.
        image_features: (batch, view, channel, height, width) modulated, or ``None`` without cameras.
        bev_map_raw: (batch, height, width) as rendered, before threshold and clamp.
        bev_map: (batch, height, width) after post-processing; modulates the features.
        image_map_raw: (batch, view, height, width) as rendered.
        image_map: (batch, view, height, width) after post-processing.
        valid: (batch, query) bool, False for padding, which is not rendered; ``None``: no padding.
        bev_input: (batch, channel, height, width), the features before modulation, or ``None``.
        image_input: (batch, view, channel, height, width), the features before modulation, or ``None``.
        lidar_lost: (batch, query), damage of the LiDAR at the query, 0 to 1; ``None``: unknown.
        camera_lost: (batch, query), mean damage of the cameras that see the query.
    """

    weights: Tensor
    camera_seen: Tensor
    bev_seen: Tensor
    bev_features: Tensor | None
    image_features: Tensor | None
    bev_map_raw: Tensor | None
    bev_map: Tensor | None
    image_map_raw: Tensor | None
    image_map: Tensor | None
    valid: Tensor | None = None
    bev_input: Tensor | None = None
    image_input: Tensor | None = None
    lidar_lost: Tensor | None = None
    camera_lost: Tensor | None = None

    @property
    def bias(self) -> None:
        """``None``: the maps modulate features instead."""
        return None

    @property
    def damage(self) -> tuple[Tensor, Tensor] | None:
        """Damage of the LiDAR and mean of the cameras that see a query, (batch, query) each; ``None``: unknown."""
        return None if self.lidar_lost is None or self.camera_lost is None else (self.lidar_lost, self.camera_lost)

    @property
    def signal(self) -> Signal | None:
        """Target of each weight: the undamaged share of the sensor at the query, where it sees the query."""
        if self.damage is None:
            return None
        valid = torch.stack((self.bev_seen, self.camera_seen), dim=-1)
        if self.valid is not None:
            valid = valid & self.valid[..., None]
        return Signal(torch.logit(self.weights, eps=1e-6), 1 - torch.stack(self.damage, dim=-1), valid)

    def apply(self, sensors: Sensors) -> Sensors:
        """The sensors with modulated features."""
        return sensors.replace(bev=self.bev_features, images=self.image_features)

    def maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Maps before and after post-processing, of the sensors that exist.

        ``bev`` are (batch, row, column), ``camera`` are (batch, view, row, column).
        """
        pairs = {"bev": (self.bev_map_raw, self.bev_map), "camera": (self.image_map_raw, self.image_map)}
        return {
            name: (rendered, processed)
            for name, (rendered, processed) in pairs.items()
            if rendered is not None and processed is not None
        }


def aqr_output(fields: dict[str, Any]) -> AQROutput | BiasOutput:
    """Rebuild an output from the fields that a step returns to callbacks."""
    return BiasOutput(**fields) if "beta" in fields else AQROutput(**fields)


@dataclass(frozen=True)
class QueryOutputs(TensorStructure):
    """Outputs of the head per decoder layer and query.

    Attributes:
        codes: (layer, batch, query, 10) regression code: cx, cy, log l, log w, cz, log h, sin yaw, cos yaw,
            vx, vy; metres and metres per second in the LiDAR frame.
        logits: (layer, batch, query, class).
    """

    codes: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Predictions(TensorStructure):
    """Outputs of the model for a batch.

    Attributes:
        matching: outputs of the learned queries.
        denoising: outputs of the denoising queries, in training.
        aqr: output of AQR, if the model has it.
    """

    matching: QueryOutputs
    denoising: QueryOutputs | None = None
    aqr: AQROutput | BiasOutput | None = None

    @classmethod
    def of(cls, outputs: QueryOutputs, denoising: int, aqr: AQROutput | BiasOutput | None) -> Predictions:
        """Split the outputs of the first ``denoising`` queries from those of the learned queries."""

        def select(rows: slice) -> QueryOutputs:
            return QueryOutputs(codes=outputs.codes[:, :, rows], logits=outputs.logits[:, :, rows])

        return cls(select(slice(denoising, None)), select(slice(0, denoising)) if denoising else None, aqr)


@dataclass(frozen=True)
class Detections(TensorStructure):
    """Detected boxes of one frame, best first, in the LiDAR frame.

    Attributes:
        boxes: (detection, 9), see ``cmt_aqr.geometry.boxes``.
        scores: (detection,) in [0, 1].
        labels: (detection,) int64, indices into ``CLASSES``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
