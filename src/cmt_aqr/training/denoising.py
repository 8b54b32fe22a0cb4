"""Denoising queries: noised ground-truth boxes that the decoder must restore (DN-DETR, Li et al., CVPR 2022).

As in CMT, they form groups with one query per box, padded to the largest number of boxes in the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_aqr.checks import require_number, require_whole
from cmt_aqr.geometry import to_unit
from cmt_aqr.structures import Batch, DenoisingQueries, sample_index
from cmt_aqr.tensors import TensorStructure, from_host


@dataclass(frozen=True)
class DenoisingTargets(TensorStructure):
    """Targets of the denoising queries; padding has no row.

    Attributes:
        queries: inputs of the decoder.
        sample: (row,) index of the frame.
        position: (row,) index among the frame's denoising queries.
        boxes: (row, 9) the original boxes.
        labels: (row,) their classes, or ``classes`` (background) where the noise exceeds ``background_above``.
    """

    queries: DenoisingQueries
    sample: Tensor
    position: Tensor
    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Denoising:
    """Builds denoising queries for a batch.

    Attributes:
        groups: maximum number of groups.
        noise_scale: noise per axis, in half box sizes.
        background_above: a query whose noise vector is longer than this, in half box sizes, becomes background.
        classes: number of classes; the label of the background.
    """

    groups: int = 10
    noise_scale: float = 1.0
    background_above: float = 0.75
    classes: int = 10

    def __post_init__(self) -> None:
        require_whole("groups", self.groups)
        require_number("noise_scale", self.noise_scale, 0)
        require_number("background_above", self.background_above, 0)

    def __call__(
        self,
        batch: Batch,
        matching_queries: int,
        point_range: tuple[float, ...],
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> DenoisingTargets | None:
        """Build the queries and their targets; ``None`` for a batch without boxes.

        Args:
            batch: frames with their boxes.
            matching_queries: number of learned queries.
            point_range: range in metres of the reference points in [0, 1].
            noise: (group * box, 3) uniform in [0, 1), group-major over the batch's boxes; random if omitted.
            generator: for the noise, on the batch's device. ``None``: PyTorch's default, which then advances by
                the number of boxes.
        """
        most = max(batch.box_counts)
        groups = min(self.groups, matching_queries // most) if most else 0
        if groups == 0:
            return None
        boxes, device, count = batch.boxes.repeat(groups, 1), batch.boxes.device, len(batch.boxes)
        if noise is None:
            noise = torch.rand(len(boxes), 3, device=device, generator=generator)
        offset = (2 * noise - 1) * self.noise_scale
        # As in CMT's release, sizes l, w, h scale the shifts in x, y, z regardless of the heading.
        centres = to_unit(boxes[:, :3] + offset * boxes[:, 3:6] / 2, point_range).clamp(0, 1)
        labels = batch.labels.repeat(groups)
        labels = torch.where(offset.norm(dim=1) > self.background_above, self.classes, labels)

        sample = sample_index(batch.box_counts, device)
        counts = from_host(batch.box_counts, device)
        within = torch.arange(count, device=device) - (counts.cumsum(0) - counts)[sample]
        group = torch.arange(groups, device=device).repeat_interleave(count)
        sample, position = sample.repeat(groups), within.repeat(groups) + group * most
        reference_points = centres.new_zeros(batch.size, groups * most, 3)
        reference_points[sample, position] = centres
        padding = torch.ones(batch.size, groups * most, dtype=torch.bool, device=device)
        padding.index_put_((sample, position), padding.new_zeros(()))  # assigning False would synchronise
        mask = attention_mask(groups, most, matching_queries, device)
        queries = DenoisingQueries(reference_points, mask, padding)
        return DenoisingTargets(queries, sample, position, boxes, labels)


def attention_mask(groups: int, size: int, matching_queries: int, device: torch.device) -> Tensor:
    """Mask of the self attention (query, query) bool, denoising queries first, True where a row must not attend.

    A denoising query attends to its own group, padding included, and to all matching queries; a matching query
    attends to no denoising query.
    """
    group = torch.full((groups * size + matching_queries,), -1, device=device)
    group[: groups * size] = torch.arange(groups, device=device).repeat_interleave(size)
    return (group >= 0) & (group != group[:, None])
