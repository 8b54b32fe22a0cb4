"""One-to-one matching of queries and boxes (DETR, Carion et al., ECCV 2020) with CMT's costs."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cmt_aqr.geometry import encode_boxes
from cmt_aqr.outputs import QueryOutputs
from cmt_aqr.structures import Batch
from cmt_aqr.tensors import from_host
from cmt_aqr.training.finite import NotFiniteError

CLASS_WEIGHT, BOX_WEIGHT = 2.0, 0.25
"""Weights of the focal cost and of the L1 cost between codes."""

COST_CODES = 8
"""Number of code columns in the L1 cost: all but the velocity."""


@dataclass(frozen=True)
class Matches:
    """Pairs of query and box over all layers and frames.

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
    """Focal matching cost (..., query, box) of logits (..., query, class) for labels (box,)."""
    probability = logits.sigmoid()
    eps = 1e-12
    negative = -(1 - probability + eps).log() * (1 - alpha) * probability**gamma
    positive = -(probability + eps).log() * alpha * (1 - probability) ** gamma
    return (positive - negative)[..., labels]


@torch.no_grad()
def match(outputs: QueryOutputs, batch: Batch, code_weights: Tensor) -> Matches:
    """Find the assignment of lowest cost for every layer and frame.

    Args:
        outputs: of the matching queries.
        batch: frames with their boxes.
        code_weights: (10,), scale both sides of the L1 cost.

    Returns:
        Pairs on the outputs' device.

    Raises:
        NotFiniteError: a cost is not finite, as after a diverged step.
    """
    weights = code_weights[:COST_CODES]
    targets = encode_boxes(batch.boxes)[:, :COST_CODES] * weights
    codes = outputs.codes[..., :COST_CODES].float() * weights
    costs = []
    for sample, (target, labels) in enumerate(
        zip(targets.split(batch.box_counts), batch.labels_of_each(), strict=True)
    ):
        classes = focal_cost(outputs.logits[:, sample].float(), labels)
        boxes = torch.cdist(codes[:, sample], target.expand(len(codes), -1, -1), p=1)
        costs.append(CLASS_WEIGHT * classes + BOX_WEIGHT * boxes)  # (layer, query, box of the frame)
    # One transfer for all costs, because scipy solves on the host: the only synchronisation of a step.
    cost = torch.cat(costs, dim=2).cpu().numpy().astype(np.float64)
    if not np.isfinite(cost).all():
        raise NotFiniteError("the matching cost is not finite")
    pairs = [np.empty((4, 0), dtype=np.int64)]
    starts = np.cumsum((0, *batch.box_counts))
    for sample, (start, stop) in enumerate(pairwise(starts)):
        for layer, layer_cost in enumerate(cost):
            query, box = linear_sum_assignment(layer_cost[:, start:stop])
            pairs.append(np.stack((np.full_like(query, layer), np.full_like(query, sample), query, box + start)))
    return Matches(*from_host(np.concatenate(pairs, axis=1), outputs.codes.device).unbind(0))
