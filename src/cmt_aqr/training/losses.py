"""CMT's losses: focal for the classes, L1 for the codes, on every layer, for denoising queries, too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional

from cmt_aqr.geometry import encode_boxes
from cmt_aqr.structures import Batch, Predictions, QueryOutputs
from cmt_aqr.training.denoising import DenoisingTargets
from cmt_aqr.training.matching import HungarianMatcher

CODE_WEIGHTS = (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)


def sigmoid_focal(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss, not summed (Lin et al., ICCV 2017).

    Args:
        logits: (..., class).
        labels: (...,) int64; the number of classes stands for background.
        alpha: weight of the positives.
        gamma: focusing exponent.

    Returns:
        (..., class).
    """
    classes = logits.shape[-1]
    target = functional.one_hot(labels, classes + 1)[..., :classes].to(logits.dtype)
    probability = logits.sigmoid()
    missing = (1 - probability) * target + probability * (1 - target)
    weight = (alpha * target + (1 - alpha) * (1 - target)) * missing**gamma
    return weight * functional.binary_cross_entropy_with_logits(logits, target, reduction="none")


def mean_over_processes(value: float, like: Tensor) -> Tensor:
    """The mean of a number over all processes: a loss must not depend on how frames are shared out."""
    tensor = torch.full((), float(value), device=like.device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
        tensor /= torch.distributed.get_world_size()
    return tensor


class Criterion(nn.Module):
    """Sums the losses of a batch.

    Args:
        matcher: pairs queries with boxes.
        class_weight: weight of the focal loss.
        box_weight: weight of the L1 loss.
        background_weight: a negative query counts this much in the focal loss' normaliser.
        denoising_weight: weight of the denoising losses, on top of the two above.
        code_weights: (10,) weight of each code column.
        classes: number of classes.
        background_above: as in the denoising queries; it scales their focal loss' normaliser.
    """

    code_weights: Tensor

    def __init__(
        self,
        matcher: HungarianMatcher | None = None,
        class_weight: float = 2.0,
        box_weight: float = 0.25,
        background_weight: float = 0.1,
        denoising_weight: float = 1.0,
        code_weights: Sequence[float] = CODE_WEIGHTS,
        classes: int = 10,
        background_above: float = 0.75,
    ) -> None:
        super().__init__()
        self.matcher = matcher or HungarianMatcher()
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.background_weight = background_weight
        self.denoising_weight = denoising_weight
        self.classes = classes
        self.background_above = background_above
        self.register_buffer("code_weights", torch.tensor(list(code_weights)), persistent=False)

    def forward(
        self, predictions: Predictions, batch: Batch, denoising: DenoisingTargets | None = None
    ) -> dict[str, Tensor]:
        """Losses by name: ``loss_cls`` and ``loss_bbox`` of the last layer, ``d0.loss_cls`` of the first, ...

        Denoising losses are ``dn_loss_cls`` and so on. Every value is weighted; their sum is the loss.
        Computed in float32 whatever autocast says.
        """
        with torch.autocast(predictions.matching.logits.device.type, enabled=False):
            losses = self._matching_losses(predictions.matching, batch)
            if denoising is not None and predictions.denoising is not None:
                losses |= self._denoising_losses(predictions.denoising, denoising)
        return losses

    def _matching_losses(self, outputs: QueryOutputs, batch: Batch) -> dict[str, Tensor]:
        matches = self.matcher(outputs, batch, self.code_weights)
        logits, codes = outputs.logits.float(), outputs.codes.float()
        layers, samples, queries = logits.shape[:3]
        labels = torch.full((layers, samples, queries), self.classes, device=logits.device)
        labels[matches.layer, matches.sample, matches.query] = batch.labels[matches.box]
        focal = sigmoid_focal(logits, labels).sum(dim=(1, 2, 3))

        target = encode_boxes(batch.boxes)[matches.box]
        error = (codes[matches.layer, matches.sample, matches.query] - target).abs() * self.code_weights
        distance = error.new_zeros(layers).index_add(0, matches.layer, error.sum(dim=1))

        positives = sum(min(count, queries) for count in batch.box_counts)
        negatives = samples * queries - positives
        class_count = mean_over_processes(positives + self.background_weight * negatives, logits)
        box_count = mean_over_processes(positives, logits)
        return _by_layer(
            self.class_weight * focal / class_count.clamp(min=1),
            self.box_weight * distance / box_count.clamp(min=1),
            "",
        )

    def _denoising_losses(self, outputs: QueryOutputs, targets: DenoisingTargets) -> dict[str, Tensor]:
        logits = outputs.logits[:, targets.sample, targets.position].float()
        codes = outputs.codes[:, targets.sample, targets.position].float()
        focal = sigmoid_focal(logits, targets.labels.expand(len(logits), -1)).sum(dim=(1, 2))
        error = (codes - encode_boxes(targets.boxes)).abs() * self.code_weights
        count = mean_over_processes(len(targets.boxes), logits)
        # Share of the noise ball in its cube: about so many of the queries keep their class.
        kept = math.pi / 6 * self.background_above**3
        return _by_layer(
            self.denoising_weight * self.class_weight * focal / (count * kept).clamp(min=1),
            self.denoising_weight * self.box_weight * error.sum(dim=(1, 2)) / count.clamp(min=1),
            "dn_",
        )


def _by_layer(classes: Tensor, boxes: Tensor, prefix: str) -> dict[str, Tensor]:
    """Name per-layer losses (layer,): the last layer bare, the others with ``d<layer>.`` before them."""
    last = len(classes) - 1
    losses = {}
    for layer, (class_loss, box_loss) in enumerate(zip(classes.unbind(), boxes.unbind(), strict=True)):
        place = "" if layer == last else f"d{layer}."
        losses[f"{place}{prefix}loss_cls"] = class_loss
        losses[f"{place}{prefix}loss_bbox"] = box_loss
    return losses
