"""What comes out of the model and of AQR, as frozen dataclasses of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmt_aqr.structures import Sensors
from cmt_aqr.tensors import TensorStructure


@dataclass(frozen=True)
class TokenBias(TensorStructure):
    """What each query adds to its logits on groups of tokens, in the decoder's cross attention.

    Attributes:
        beta: (batch, query, group) float32 or better.
        groups: (token, group), 1 where a token belongs to a group and 0 elsewhere.
        factors: (layer, head) that multiply beta, or ``None``: 1; of one layer (head,).
    """

    beta: Tensor
    groups: Tensor
    factors: Tensor | None = None

    def of_layer(self, number: int) -> TokenBias:
        """The bias of one decoder layer."""
        return self if self.factors is None else self.replace(factors=self.factors[number])


@dataclass(frozen=True)
class Signal(TensorStructure):
    """What AQR should have said, from the damage that faults did.

    Attributes:
        logits: (batch, query, n), what it said, before a sigmoid.
        target: (batch, query, n) in [0, 1], what the sigmoid should be.
        counts: (batch, query, n) bool, where that is known.
    """

    logits: Tensor
    target: Tensor
    counts: Tensor


@dataclass(frozen=True)
class BiasOutput(TensorStructure):
    """What AQR did by a bias in the decoder's attention.

    Attributes:
        beta: (batch, query, group), see :class:`TokenBias`; denoising queries first.
        groups: (token, group).
        said: (batch, query, group), what the generator said; ``None``: beta itself.
        factors: (layer, head), or ``None``.
        draws: (batch, query) bool: False for padding among the denoising queries; ``None``: there is none.
        lidar_lost: (batch, query) what faults broke of the LiDAR at the query, 0 to 1; ``None``: not known.
        camera_lost: (batch, query, view) the same of each camera.
        seen: (batch, query, view) bool, which cameras see the query.
        places: (batch, query, 3), where the queries stand, metres, LiDAR frame.
    """

    beta: Tensor
    groups: Tensor
    said: Tensor | None = None
    factors: Tensor | None = None
    draws: Tensor | None = None
    lidar_lost: Tensor | None = None
    camera_lost: Tensor | None = None
    seen: Tensor | None = None
    places: Tensor | None = None

    @property
    def bias(self) -> TokenBias:
        """What the decoder adds."""
        return TokenBias(self.beta, self.groups, self.factors)

    @property
    def signal(self) -> Signal | None:
        """What was said, through a sigmoid: 1/2 prefers neither sensor, 1 the group that beta favours."""
        if self.lidar_lost is None or self.camera_lost is None or self.seen is None:
            return None
        if self.beta.shape[-1] == 1:
            target = 0.5 + 0.5 * (mean_seen(self.camera_lost, self.seen) - self.lidar_lost)[..., None]
            counts = self.seen.any(dim=-1, keepdim=True) | (self.lidar_lost[..., None] > 0)
        else:
            target, counts = 0.5 + 0.5 * (self.lidar_lost[..., None] - self.camera_lost), self.seen
        if self.draws is not None:
            counts = counts & self.draws[..., None]
        return Signal(self.beta if self.said is None else self.said, target, counts)

    def applied(self, sensors: Sensors) -> Sensors:
        """The sensors as they are."""
        return sensors


def mean_seen(values: Tensor, seen: Tensor) -> Tensor:
    """Mean over the views that see a query, of (..., view); 0 where none does."""
    return (values * seen).sum(dim=-1) / seen.sum(dim=-1).clamp(min=1)


@dataclass(frozen=True)
class AQROutput(TensorStructure):
    """What AQR did by maps: the modulated features and everything a monitor wants to see.

    Attributes:
        weights: (batch, query, 2) in [0, 1]: LiDAR weight, camera weight of every query that AQR was given:
            the matching queries, after the denoising queries with ``aqr.draw=all``.
        camera_seen: (batch, query) bool: False where no camera sees the query; its camera weight is unused.
        bev_seen: (batch, query) bool: False where a query stands off the BEV map; its LiDAR weight is unused.
        bev_features: (batch, channel, height, width) modulated, or ``None`` without LiDAR.
        image_features: (batch, view, channel, height, width) modulated, or ``None`` without cameras.
        bev_map_raw: (batch, height, width) as rendered, before threshold and clamp.
        bev_map: the same after post-processing; it is what modulated the features.
        image_map_raw: (batch, view, height, width) as rendered.
        image_map: the same after post-processing.
        draws: (batch, query) bool: False for queries that must not draw (padding); ``None``: all may.
        bev_given: (batch, channel, height, width), the features that were modulated, or ``None``.
        image_given: (batch, view, channel, height, width), likewise.
        lidar_lost: (batch, query) what faults broke of the LiDAR at the query, 0 to 1; ``None``: not known.
        camera_lost: (batch, query) the same of the cameras, mean over those that see it.
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
    draws: Tensor | None = None
    bev_given: Tensor | None = None
    image_given: Tensor | None = None
    lidar_lost: Tensor | None = None
    camera_lost: Tensor | None = None

    @property
    def bias(self) -> None:
        """Nothing: the maps have done it."""
        return None

    @property
    def signal(self) -> Signal | None:
        """The weights: what is left of each sensor at the query, where the sensor sees it."""
        if self.lidar_lost is None or self.camera_lost is None:
            return None
        target = 1 - torch.stack((self.lidar_lost, self.camera_lost), dim=-1)
        counts = torch.stack((self.bev_seen, self.camera_seen), dim=-1)
        if self.draws is not None:
            counts = counts & self.draws[..., None]
        return Signal(torch.logit(self.weights, eps=1e-6), target, counts)

    def applied(self, sensors: Sensors) -> Sensors:
        """The sensors with their maps modulated."""
        return sensors.replace(bev=self.bev_features, images=self.image_features)

    def maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The maps before and after post-processing: ``bev`` (batch, row, column) and ``camera``
        (batch, view, row, column), without those of an absent sensor.
        """
        pairs = {"bev": (self.bev_map_raw, self.bev_map), "camera": (self.image_map_raw, self.image_map)}
        return {
            name: (rendered, processed)
            for name, (rendered, processed) in pairs.items()
            if rendered is not None and processed is not None
        }


def aqr_output(fields: dict[str, Any]) -> AQROutput | BiasOutput:
    """The output whose fields were handed to a callback."""
    return BiasOutput(**fields) if "beta" in fields else AQROutput(**fields)


@dataclass(frozen=True)
class QueryOutputs(TensorStructure):
    """What the head says of each query, for every decoder layer.

    Attributes:
        codes: (layer, batch, query, 10) regression code: cx, cy, log l, log w, cz, log h, sin yaw, cos yaw,
            vx, vy; metres and metres per second in the LiDAR frame.
        logits: (layer, batch, query, class).
    """

    codes: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Predictions(TensorStructure):
    """The model's answer for a batch.

    Attributes:
        matching: outputs of the learned queries.
        denoising: outputs of the denoising queries, in training.
        aqr: what AQR did, where the model has it.
    """

    matching: QueryOutputs
    denoising: QueryOutputs | None = None
    aqr: AQROutput | BiasOutput | None = None

    @classmethod
    def of(cls, outputs: QueryOutputs, denoising: int, aqr: AQROutput | BiasOutput | None) -> Predictions:
        """Part the outputs of the first ``denoising`` queries from those of the learned queries."""

        def part(rows: slice) -> QueryOutputs:
            return QueryOutputs(codes=outputs.codes[:, :, rows], logits=outputs.logits[:, :, rows])

        return cls(part(slice(denoising, None)), part(slice(0, denoising)) if denoising else None, aqr)


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
