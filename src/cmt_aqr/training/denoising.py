"""Denoising queries: noised ground-truth boxes the decoder must put right (DN-DETR, Li et al., CVPR 2022).

CMT's form: groups of noised boxes, each group one query a box, padded to the batch's largest box count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_aqr.checks import require_number, require_whole
from cmt_aqr.geometry import to_unit
from cmt_aqr.structures import Batch, DenoisingQueries, sample_index
from cmt_aqr.tensors import TensorStructure, from_host


@dataclass(frozen=True)
class DenoisingTargets(TensorStructure):
    """What the denoising queries should answer; rows are the real ones only, padding left out.

    Attributes:
        queries: what enters the decoder.
        sample: (row,) index of the frame.
        position: (row,) index among the frame's denoising queries.
        boxes: (row, 9) the boxes that were noised.
        labels: (row,) their class, or ``classes`` (background) where the noise went too far.
    """

    queries: DenoisingQueries
    sample: Tensor
    position: Tensor
    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Denoising:
    """Makes denoising queries for a batch.

    Attributes:
        groups: at most this many groups.
        noise_scale: noise in units of half the box size, per axis.
        background_above: a noise vector (in those units) longer than this turns its query into background.
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
        """Make the queries.

        Args:
            batch: frames with their boxes.
            matching_queries: number of learned queries.
            point_range: range in metres that reference points in [0, 1] stand for.
            noise: (group * box, 3) uniform in [0, 1), group-major over the batch's boxes; drawn if not given.
            generator: to draw it from, on the batch's device; ``None``: PyTorch's own, which then stands
                elsewhere for all that comes after, depending on the number of boxes.

        Returns:
            The queries and their targets, or ``None`` for a batch without boxes.
        """
        most = max(batch.box_counts)
        groups = min(self.groups, matching_queries // most) if most else 0
        if groups == 0:
            return None
        boxes, device = batch.boxes.repeat(groups, 1), batch.boxes.device
        count = len(batch.boxes)
        if noise is None:
            noise = torch.rand(len(boxes), 3, device=device, generator=generator)
        offset = (2 * noise - 1) * self.noise_scale
        # Sizes l, w, h shift x, y, z as they stand, whatever the heading: CMT's release does so.
        centres = to_unit(boxes[:, :3] + offset * boxes[:, 3:6] / 2, point_range).clamp(0, 1)
        labels = batch.labels.repeat(groups)
        labels = torch.where(offset.norm(dim=1) > self.background_above, self.classes, labels)

        sample = sample_index(batch.box_counts, device)
        start = from_host([sum(batch.box_counts[:i]) for i in range(batch.size)], device)
        within = torch.arange(count, device=device) - start[sample]
        group = torch.arange(groups, device=device).repeat_interleave(count)
        sample, position = sample.repeat(groups), within.repeat(groups) + group * most
        reference_points = centres.new_zeros(batch.size, groups * most, 3)
        reference_points[sample, position] = centres
        padding = torch.ones(batch.size, groups * most, dtype=torch.bool, device=device)
        padding.index_put_((sample, position), padding.new_zeros(()))  # a False of the host's would be waited for
        mask = attention_mask(groups, most, matching_queries, device)
        queries = DenoisingQueries(reference_points, mask, padding)
        return DenoisingTargets(queries, sample, position, boxes, labels)


def attention_mask(groups: int, size: int, matching_queries: int, device: torch.device) -> Tensor:
    """Who may not see whom in self attention, (query, query) bool, denoising queries first.

    A denoising query sees its own group, padding included, and all matching queries; a matching query sees
    no denoising query.
    """
    total = groups * size + matching_queries
    group = torch.full((total,), -1, device=device)
    group[: groups * size] = torch.arange(groups, device=device).repeat_interleave(size)
    looking, seen = group[:, None], group[None, :]
    return (seen >= 0) & (seen != looking)
