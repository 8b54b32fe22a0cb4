"""CMT's losses: focal for the classes, L1 for the codes, on every layer, for denoising queries, too."""

import math
from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from cmt_aqr.checks import require_number, require_numbers
from cmt_aqr.errors import UserError
from cmt_aqr.geometry import encode_boxes
from cmt_aqr.ops.devices import processes
from cmt_aqr.outputs import Predictions, QueryOutputs
from cmt_aqr.structures import Batch
from cmt_aqr.training.denoising import DenoisingTargets
from cmt_aqr.training.matching import match

SIGNAL = "loss_aqr"
"""Name of the loss of AQR's own signal."""

CODE_WEIGHTS = (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)


def sigmoid_focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss (..., class), not summed (Lin et al., ICCV 2017), alpha 0.25, gamma 2.

    Args:
        logits: (..., class).
        labels: (...,) int64; the number of classes stands for background.
    """
    target = functional.one_hot(labels, logits.shape[-1] + 1)[..., :-1].to(logits.dtype)
    return sigmoid_focal_loss(logits, target)


def normalisers(counts: Sequence[float], device: torch.device) -> Tensor:
    """What this process divides its sums by, so that the mean over processes is one process' loss.

    Returns:
        (count,) on the device, each summed over all processes, at least 1, and divided by the number of processes.
    """
    own = torch.stack([torch.full((), float(count), device=device) for count in counts])
    return mean_over_processes(own).clamp(min=1 / processes())


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes; the tensor itself where there is one."""
    if processes() == 1:
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / processes()


class Criterion(nn.Module):
    """Sums the losses of a batch.

    Args:
        class_weight: of the focal loss.
        box_weight: of the L1 loss.
        background_weight: a negative query counts this much in the focal loss' normaliser.
        denoising_weight: of the denoising losses, on top of the two above.
        code_weights: (10,) weight of each code column.
        classes: number of classes.
        background_above: as in the denoising queries; it scales their focal loss' normaliser.
        signal_weight: of what AQR is told of the damage that faults did; 0 leaves it out.

    Raises:
        SettingError: a weight is no number of 0 or more.
    """

    code_weights: Tensor

    def __init__(
        self,
        class_weight: float = 2.0,
        box_weight: float = 0.25,
        background_weight: float = 0.1,
        denoising_weight: float = 1.0,
        code_weights: Sequence[float] = CODE_WEIGHTS,
        classes: int = 10,
        background_above: float = 0.75,
        signal_weight: float = 0.0,
    ) -> None:
        super().__init__()
        for name, weight in (
            ("class_weight", class_weight),
            ("box_weight", box_weight),
            ("background_weight", background_weight),
            ("denoising_weight", denoising_weight),
            ("signal_weight", signal_weight),
        ):
            require_number(name, weight, 0)
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.background_weight = background_weight
        self.denoising_weight = denoising_weight
        self.classes = classes
        self.background_above = background_above
        self.signal_weight = signal_weight
        self.register_buffer(
            "code_weights", torch.tensor(require_numbers("code_weights", code_weights, 10, 0)), persistent=False
        )

    def forward(
        self,
        predictions: Predictions,
        batch: Batch,
        denoising: DenoisingTargets | None = None,
        same_terms: bool = False,
    ) -> dict[str, Tensor]:
        """Losses by name: ``loss_cls`` and ``loss_bbox`` of the last layer, ``d0.loss_cls`` of the first, ...

        Denoising losses are ``dn_loss_cls`` and so on. Every value is weighted; their sum is the loss.
        Computed in float32 whatever autocast says. All processes must call it.

        Args:
            predictions: of the batch.
            batch: with its boxes.
            denoising: what the denoising queries should answer; ``None`` for a batch without.
            same_terms: without ``denoising``, its losses are there and 0: processes need the same terms.
        """
        matching, answers = predictions.matching, None if denoising is None else predictions.denoising
        layers, samples, queries = matching.logits.shape[:3]
        positives = sum(min(count, queries) for count in batch.box_counts)
        negatives = samples * queries - positives
        noised = 0 if denoising is None or answers is None else len(denoising.boxes)
        # Share of the noise ball in its cube: about so many of the denoising queries keep their class.
        kept = math.pi / 6 * self.background_above**3
        counts = (positives + self.background_weight * negatives, positives, noised * kept, noised)
        # One exchange for all, also from a process without boxes: the others wait for it.
        divisors = normalisers(counts, matching.logits.device)
        with torch.autocast(matching.logits.device.type, enabled=False):
            losses = self._matching_losses(matching, batch, divisors[:2])
            if denoising is not None and answers is not None:
                losses |= self._denoising_losses(answers, denoising, divisors[2:])
            elif same_terms:
                nothing = divisors.new_zeros(layers)
                losses |= _by_layer(nothing, nothing, "dn_")
            if self.signal_weight:
                losses[SIGNAL] = self.signal_weight * signal_loss(predictions)
        return losses

    def _matching_losses(self, outputs: QueryOutputs, batch: Batch, divisors: Tensor) -> dict[str, Tensor]:
        """``divisors``: (2,) of the class and the box loss."""
        matches = match(outputs, batch, self.code_weights)
        logits, codes = outputs.logits.float(), outputs.codes.float()
        layers, samples, queries = logits.shape[:3]
        labels = torch.full((layers, samples, queries), self.classes, device=logits.device)
        labels[matches.layer, matches.sample, matches.query] = batch.labels[matches.box]
        focal = sigmoid_focal(logits, labels).sum(dim=(1, 2, 3))

        target = encode_boxes(batch.boxes)[matches.box]
        error = (codes[matches.layer, matches.sample, matches.query] - target).abs() * self.code_weights
        distance = error.new_zeros(layers).index_add(0, matches.layer, error.sum(dim=1))
        classes, boxes = self.class_weight * focal / divisors[0], self.box_weight * distance / divisors[1]
        return _by_layer(classes, boxes, "")

    def _denoising_losses(
        self, outputs: QueryOutputs, targets: DenoisingTargets, divisors: Tensor
    ) -> dict[str, Tensor]:
        """``divisors``: (2,) of the class and the box loss."""
        logits = outputs.logits[:, targets.sample, targets.position].float()
        codes = outputs.codes[:, targets.sample, targets.position].float()
        focal = sigmoid_focal(logits, targets.labels.expand(len(logits), -1)).sum(dim=(1, 2))
        error = (codes - encode_boxes(targets.boxes)).abs() * self.code_weights
        return _by_layer(
            self.denoising_weight * self.class_weight * focal / divisors[0],
            self.denoising_weight * self.box_weight * error.sum(dim=(1, 2)) / divisors[1],
            "dn_",
        )


def signal_loss(predictions: Predictions) -> Tensor:
    """Mean binary cross entropy between what AQR said and what the damage says it should have.

    Raises:
        UserError: there is no AQR, or the damage is not known.
    """
    signal = None if predictions.aqr is None else predictions.aqr.signal
    if signal is None:
        raise UserError(
            "training.criterion.signal_weight tells AQR what faults broke: give data.damage=true and an aqr=, or "
            "set it to 0"
        )
    logits, counts = signal.logits.float(), signal.counts.float()
    every = functional.binary_cross_entropy_with_logits(logits, signal.target, counts, reduction="sum")
    return every / counts.sum().clamp(min=1)


def _by_layer(classes: Tensor, boxes: Tensor, prefix: str) -> dict[str, Tensor]:
    """Name per-layer losses (layer,): the last layer bare, the others with ``d<layer>.`` before them."""
    values = torch.stack((classes, boxes), dim=1).flatten().unbind()
    return dict(zip(_names_by_layer(len(classes), prefix), values, strict=True))


def _names_by_layer(layers: int, prefix: str) -> list[str]:
    places = [*(f"d{layer}." for layer in range(layers - 1)), ""]
    return [f"{place}{prefix}{loss}" for place in places for loss in ("loss_cls", "loss_bbox")]


def loss_names(layers: int, denoising: bool, signal: bool) -> list[str]:
    """Names of the loss terms of :class:`Criterion`, with denoising queries, and with a signal for AQR."""
    names = _names_by_layer(layers, "") + (_names_by_layer(layers, "dn_") if denoising else [])
    return [*names, SIGNAL] if signal else names
