"""One-to-one matching of queries and boxes (DETR, Carion et al., ECCV 2020) with CMT's costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cmt_aqr.geometry import encode_boxes
from cmt_aqr.outputs import QueryOutputs
from cmt_aqr.structures import Batch
from cmt_aqr.tensors import from_host
from cmt_aqr.training.finite import NotFiniteError


@dataclass(frozen=True)
class Matches:
    """Pairs of query and box, for all layers and frames at once.

    Attributes:
        layer: (pair,) decoder layer.
        sample: (pair,) frame.
        query: (pair,) query.
        box: (pair,) index into the batch's concatenated boxes.
    """

    layer: Tensor
    sample: Tensor
    query: Tensor
    box: Tensor


def focal_cost(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal matching cost (..., query, box) of logits (..., query, class) for boxes' labels (box,)."""
    probability = logits.sigmoid()
    eps = 1e-12
    negative = -(1 - probability + eps).log() * (1 - alpha) * probability**gamma
    positive = -(probability + eps).log() * alpha * (1 - probability) ** gamma
    return (positive - negative)[..., labels]


@dataclass(frozen=True)
class HungarianMatcher:
    """Finds the assignment of least cost for every layer and frame.

    Attributes:
        class_weight: weight of the focal cost.
        box_weight: weight of the L1 cost between codes.
        cost_codes: how many of the code's columns count (8: velocity does not).
        alpha: of the focal cost.
        gamma: of the focal cost.
    """

    class_weight: float = 2.0
    box_weight: float = 0.25
    cost_codes: int = 8
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(self, outputs: QueryOutputs, batch: Batch, code_weights: Tensor) -> Matches:
        """Match.

        Args:
            outputs: of the matching queries, every layer.
            batch: frames with their boxes.
            code_weights: (10,) multiplied onto both sides of the L1 cost.

        Returns:
            Pairs on the outputs' device.

        Raises:
            NotFiniteError: when a cost is not finite, as after a diverged step.
        """
        weights = code_weights[: self.cost_codes]
        targets = encode_boxes(batch.boxes)[:, : self.cost_codes] * weights
        codes = outputs.codes[..., : self.cost_codes].float() * weights
        costs = []
        for sample, (target, labels) in enumerate(
            zip(targets.split(batch.box_counts), batch.labels_of_each(), strict=True)
        ):
            classes = focal_cost(outputs.logits[:, sample].float(), labels, self.alpha, self.gamma)
            boxes = torch.cdist(codes[:, sample], target.expand(len(codes), -1, -1), p=1)
            costs.append((self.class_weight * classes + self.box_weight * boxes).flatten(0, 1))
        # The one wait for the device in a step: scipy solves on the host, so all costs travel together.
        cost = torch.cat(costs, dim=1).cpu().numpy().astype(np.float64)
        if not np.isfinite(cost).all():
            raise NotFiniteError("the matching cost is not finite")
        layers, queries = outputs.logits.shape[0], outputs.logits.shape[2]
        pairs = self._solve(cost.reshape(layers, queries, -1), batch.box_counts)
        return Matches(*from_host(pairs, outputs.codes.device).unbind(0))

    @staticmethod
    def _solve(cost: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
        """Solve (layer, query, all boxes) frame by frame; returns (4, pair): layer, sample, query, box."""
        found: list[np.ndarray] = [np.empty((4, 0), dtype=np.int64)]
        start = 0
        for sample, count in enumerate(counts):
            for layer in range(len(cost)):
                query, box = linear_sum_assignment(cost[layer, :, start : start + count])
                place = np.full_like(query, layer), np.full_like(query, sample)
                found.append(np.stack((*place, query, box + start)))
            start += count
        return np.concatenate(found, axis=1)
