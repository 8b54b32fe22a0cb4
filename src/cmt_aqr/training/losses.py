"""CMT's losses on every layer: focal loss for classes and L1 loss for codes, also of denoising queries."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from cmt_aqr.checks import require_number, require_numbers
from cmt_aqr.errors import UserError
from cmt_aqr.geometry import encode_boxes
from cmt_aqr.ops.devices import processes
from cmt_aqr.outputs import Predictions, QueryOutputs
from cmt_aqr.structures import Batch
from cmt_aqr.tensors import from_host
from cmt_aqr.training.denoising import DenoisingTargets
from cmt_aqr.training.matching import match

SIGNAL = "loss_aqr"
"""Name of the loss on AQR's own signal."""

CODE_WEIGHTS = (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)


def sigmoid_focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss (..., class) without reduction (Lin et al., ICCV 2017), alpha 0.25, gamma 2.

    Args:
        logits: (..., class).
        labels: (...,) int64; the number of classes stands for background.
    """
    target = functional.one_hot(labels, logits.shape[-1] + 1)[..., :-1].to(logits.dtype)
    return sigmoid_focal_loss(logits, target)


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean of a tensor over all processes."""
    if processes() == 1:
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / processes()


@dataclass(frozen=True)
class Criterion:
    """Computes the losses of a batch.

    Attributes:
        class_weight: of the focal loss.
        box_weight: of the L1 loss.
        background_weight: of a negative query in the focal loss' normaliser.
        denoising_weight: of the denoising losses, multiplies the two weights above.
        code_weights: (10,) weight of each code column.
        classes: number of classes.
        background_above: as in :class:`~cmt_aqr.training.denoising.Denoising`; scales the focal loss' normaliser.
        signal_weight: of AQR's own signal, which supervises it with the damage of faults; 0 disables it.

    Raises:
        SettingError: a weight is no number of 0 or more.
    """

    class_weight: float = 2.0
    box_weight: float = 0.25
    background_weight: float = 0.1
    denoising_weight: float = 1.0
    code_weights: Sequence[float] = CODE_WEIGHTS
    classes: int = 10
    background_above: float = 0.75
    signal_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("class_weight", "box_weight", "background_weight", "denoising_weight", "signal_weight"):
            require_number(name, getattr(self, name), 0)
        object.__setattr__(self, "code_weights", require_numbers("code_weights", self.code_weights, 10, 0))

    def __call__(
        self,
        predictions: Predictions,
        batch: Batch,
        denoising: DenoisingTargets | None = None,
        same_terms: bool = False,
    ) -> dict[str, Tensor]:
        """Losses by name: ``loss_cls`` and ``loss_bbox`` of the last layer, ``d0.loss_cls`` of the first, ...

        Denoising losses are ``dn_loss_cls`` and so on. Every value is weighted; their sum is the loss. Computed in
        float32 even under autocast. With several processes, all must call it.

        Args:
            predictions: of the batch.
            batch: with its boxes.
            denoising: targets of the denoising queries; ``None`` for a batch without.
            same_terms: include denoising losses of 0 if ``denoising`` is ``None``, because all processes must log
                the same terms.
        """
        matching, denoised = predictions.matching, None if denoising is None else predictions.denoising
        layers, samples, queries = matching.logits.shape[:3]
        positives = sum(min(count, queries) for count in batch.box_counts)
        negatives = samples * queries - positives
        noised = 0 if denoising is None or denoised is None else len(denoising.boxes)
        # Expected share of denoising queries that keep their class: the volume of the noise ball in its cube.
        foreground = math.pi / 6 * self.background_above**3
        counts = (positives + self.background_weight * negatives, positives, noised * foreground, noised)
        # Counts are averaged over processes, so that the mean loss over processes is that of one process. A
        # process without boxes takes part, because the others wait for it.
        device = matching.logits.device
        divisors = mean_over_processes(from_host(counts, device, torch.float32)).clamp(min=1 / processes())
        code_weights = from_host(self.code_weights, device, torch.float32)
        with torch.autocast(device.type, enabled=False):
            losses = self._matching_losses(matching, batch, divisors[:2], code_weights)
            if denoising is not None and denoised is not None:
                losses |= self._denoising_losses(denoised, denoising, divisors[2:], code_weights)
            elif same_terms:
                zeros = divisors.new_zeros(layers)
                losses |= _by_layer(zeros, zeros, "dn_")
            if self.signal_weight:
                losses[SIGNAL] = self.signal_weight * signal_loss(predictions)
        return losses

    def _matching_losses(
        self, outputs: QueryOutputs, batch: Batch, divisors: Tensor, code_weights: Tensor
    ) -> dict[str, Tensor]:
        """Losses of the matching queries; ``divisors`` (2,) of the class and the box loss."""
        matches = match(outputs, batch, code_weights)
        logits, codes = outputs.logits.float(), outputs.codes.float()
        layers, samples, queries = logits.shape[:3]
        labels = torch.full((layers, samples, queries), self.classes, device=logits.device)
        labels[matches.layer, matches.sample, matches.query] = batch.labels[matches.box]
        focal = sigmoid_focal(logits, labels).sum(dim=(1, 2, 3))

        target = encode_boxes(batch.boxes)[matches.box]
        error = (codes[matches.layer, matches.sample, matches.query] - target).abs() * code_weights
        distance = error.new_zeros(layers).index_add(0, matches.layer, error.sum(dim=1))
        classes, boxes = self.class_weight * focal / divisors[0], self.box_weight * distance / divisors[1]
        return _by_layer(classes, boxes, "")

    def _denoising_losses(
        self, outputs: QueryOutputs, targets: DenoisingTargets, divisors: Tensor, code_weights: Tensor
    ) -> dict[str, Tensor]:
        """Losses of the denoising queries; ``divisors`` (2,) of the class and the box loss."""
        logits = outputs.logits[:, targets.sample, targets.position].float()
        codes = outputs.codes[:, targets.sample, targets.position].float()
        focal = sigmoid_focal(logits, targets.labels.expand(len(logits), -1)).sum(dim=(1, 2))
        error = (codes - encode_boxes(targets.boxes)).abs() * code_weights
        return _by_layer(
            self.denoising_weight * self.class_weight * focal / divisors[0],
            self.denoising_weight * self.box_weight * error.sum(dim=(1, 2)) / divisors[1],
            "dn_",
        )


def signal_loss(predictions: Predictions) -> Tensor:
    """Mean binary cross entropy of AQR's output against the target derived from the damage.

    Raises:
        UserError: there is no AQR, or the damage is unknown.
    """
    signal = None if predictions.aqr is None else predictions.aqr.signal
    if signal is None:
        raise UserError(
            "training.criterion.signal_weight supervises AQR with the damage of faults: set data.damage=true and "
            "choose an aqr=, or set it to 0"
        )
    logits, valid = signal.logits.float(), signal.valid.float()
    total = functional.binary_cross_entropy_with_logits(logits, signal.target, valid, reduction="sum")
    return total / valid.sum().clamp(min=1)


def _by_layer(classes: Tensor, boxes: Tensor, prefix: str) -> dict[str, Tensor]:
    """Name per-layer losses (layer,): all but the last layer get the prefix ``d<layer>.``."""
    values = torch.stack((classes, boxes), dim=1).flatten().unbind()
    return dict(zip(_names_by_layer(len(classes), prefix), values, strict=True))


def _names_by_layer(layers: int, prefix: str) -> list[str]:
    layer_prefixes = [*(f"d{layer}." for layer in range(layers - 1)), ""]
    return [f"{layer}{prefix}{loss}" for layer in layer_prefixes for loss in ("loss_cls", "loss_bbox")]


def loss_names(layers: int, denoising: bool, signal: bool) -> list[str]:
    """Names of the loss terms of :class:`Criterion`, with denoising queries and with AQR's own signal."""
    names = _names_by_layer(layers, "") + (_names_by_layer(layers, "dn_") if denoising else [])
    return [*names, SIGNAL] if signal else names
