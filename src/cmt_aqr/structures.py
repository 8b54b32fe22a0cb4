"""The data that flows into the model, as frozen dataclasses of tensors.

``Frame`` -> (augmentation) -> ``Frame`` -> (collation) -> ``Batch`` -> (model) -> ``Predictions`` -> (decoding) ->
``Detections``. Frames of reference are named where they matter: lidar, ego, global, camera, image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from cmt_aqr.constants import BOX_SIZE, CAMERAS, POINT_FEATURES
from cmt_aqr.damage import Damage
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.tensors import TensorStructure, from_host


@dataclass(frozen=True)
class Returns(TensorStructure):
    """Provenance of a frame's points, for faults that act on one sweep's file rather than on the frame.

    Attributes:
        sweep: (point,) uint8, index of the file: 0 is the keyframe's, counted backwards in time.
        ring: (point,) int16, the laser as stored in the file; 0 is the lowest of nuScenes' 32.
        motions: (sweep, 4, 4) float64, rigid, from the file's LiDAR frame to the keyframe's LiDAR frame.
    """

    sweep: Tensor
    ring: Tensor
    motions: Tensor


class FrameSource(Protocol):
    """The files of a frame and of the frames before it in the split."""

    @property
    def number(self) -> int:
        """Index of the frame in its split, from 0."""
        ...

    def earlier(self, count: int, same_scene: bool = True) -> FrameSource | None:
        """The frame ``count`` entries earlier; ``None`` if the split, or the scene, starts after it."""
        ...

    def points(self) -> tuple[Tensor, Returns | None]:
        """Points (point, 5) of all its sweeps, as in :class:`Frame`, in its own LiDAR frame."""
        ...

    def image(self, view: int) -> Tensor:
        """Image (3, height, width) of a view, uint8, as stored."""
        ...


@dataclass(frozen=True)
class Frame(TensorStructure):
    """One keyframe: sensor data and annotations.

    Attributes:
        token: nuScenes sample token.
        points: (point, 5) float32: x, y, z in metres in the keyframe's LiDAR frame, intensity 0..255, time
            lag in seconds (0 for the keyframe's own sweep, positive for the sweeps before it). float16 after the
            training filter where half precision is configured.
        images: (view, 3, height, width) uint8, BGR, views in the order of ``CAMERAS``; stored with the channel
            last. ``None`` where no camera is used.
        lidar2img: (view, 4, 4) float64: a homogeneous point in the LiDAR frame becomes (u * depth, v * depth,
            depth, 1) in pixels of ``images`` as they are now.
        boxes: (box, 9) float32 in the LiDAR frame, see ``cmt_aqr.geometry.boxes``. Unknown velocities are 0.
        labels: (box,) int64, indices into ``CLASSES``.
        box_points: (box,) int64, LiDAR points in the box as annotated in nuScenes.
        lidar2global: (4, 4) float64, rigid, from the *current* LiDAR frame (augmentation included only where it is
            rigid; evaluation does not augment).
        image_mask: (height, width) bool, pixels of every image to keep; ``None``: all; see
            :class:`cmt_aqr.data.masking.GridMask`.
        shuffle: seed of the random order of the points, applied on the device; ``None``: keep the order.
        returns: provenance of the points, as long as only faults have changed them; ``None`` if unknown. To drop
            points, use :meth:`keep_points`.
        source: the frame's files, for faults that replay an earlier frame; ``None`` for a frame built by hand.
        damage: what faults broke, where it is recorded, see :mod:`cmt_aqr.data.damage`.
        unseen_rows: number of rows at the top of ``images`` that will be cropped, so that faults may skip them.
    """

    token: str
    points: Tensor
    images: Tensor | None
    lidar2img: Tensor
    boxes: Tensor
    labels: Tensor
    box_points: Tensor
    lidar2global: Tensor
    image_mask: Tensor | None = None
    shuffle: int | None = None
    returns: Returns | None = None
    source: FrameSource | None = None
    damage: Damage | None = None
    unseen_rows: int = 0

    def keep_points(self, keep: Tensor, points: Tensor | None = None) -> Self:
        """Select points together with their provenance.

        Args:
            keep: (point,) bool mask, or indices of the points to keep.
            points: (point, 5) to select from, if their values have changed, too.
        """
        returns = self.returns
        if returns is not None:
            returns = returns.replace(sweep=returns.sweep[keep], ring=returns.ring[keep])
        return self.replace(points=(self.points if points is None else points)[keep], returns=returns)


@dataclass(frozen=True)
class DeviceWork(TensorStructure):
    """Random choices made by the loader and applied on the device by :mod:`cmt_aqr.data.finishing`.

    Attributes:
        image_masks: (batch, height, width) bool, pixels of every view to keep; ``None``: all.
        shuffles: seed of each frame's random order of points; ``None``: keep the order.
    """

    image_masks: Tensor | None
    shuffles: tuple[int | None, ...]


@dataclass(frozen=True)
class Batch(TensorStructure):
    """A batch of frames. Points and boxes, whose numbers differ, are concatenated.

    The counts are Python integers, so that shapes are known without synchronising with a GPU.

    Attributes:
        tokens: sample token of every frame.
        points: (points of all frames, 5), see :class:`Frame`.
        point_counts: number of points of every frame; their sum is ``len(points)``.
        images: (batch, view, 3, height, width), or ``None``. uint8 as loaded; float32 and normalised once the
            batch is finished.
        lidar2img: (batch, view, 4, 4) float32.
        boxes: (boxes of all frames, 9).
        labels: (boxes of all frames,) int64.
        box_counts: number of boxes of every frame.
        lidar2global: (batch, 4, 4) float64.
        device_work: processing left for the device; ``None`` once the batch is finished.
        damage: what faults broke, where it is recorded.
    """

    tokens: tuple[str, ...]
    points: Tensor
    point_counts: tuple[int, ...]
    images: Tensor | None
    lidar2img: Tensor
    boxes: Tensor
    labels: Tensor
    box_counts: tuple[int, ...]
    lidar2global: Tensor
    device_work: DeviceWork | None = None
    damage: Damage | None = None

    def __post_init__(self) -> None:
        size = len(self.tokens)
        for name in ("point_counts", "box_counts", "lidar2global"):
            if len(getattr(self, name)) != size:
                raise ValueError(f"Batch.{name} has {len(getattr(self, name))} entries for {size} frames")
        shapes = {
            "points": (sum(self.point_counts), POINT_FEATURES),
            "boxes": (sum(self.box_counts), BOX_SIZE),
            "lidar2img": (size, len(CAMERAS), 4, 4),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"Batch.{name} is {tuple(getattr(self, name).shape)}; expected {shape}")

    @property
    def size(self) -> int:
        """Number of frames."""
        return len(self.tokens)

    def boxes_of_each(self) -> tuple[Tensor, ...]:
        """Boxes of every frame, as views of ``boxes``."""
        return self.boxes.split(self.box_counts)

    def labels_of_each(self) -> tuple[Tensor, ...]:
        """Labels of every frame, as views of ``labels``."""
        return self.labels.split(self.box_counts)


@dataclass(frozen=True)
class Views(TensorStructure):
    """Geometry of a batch's cameras.

    Attributes:
        lidar2img: (batch, view, 4, 4), LiDAR frame to pixels, see :class:`Frame`.
        img2lidar: (batch, view, 4, 4), its inverse.
        size: height and width of the padded images in pixels.
    """

    lidar2img: Tensor
    img2lidar: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, lidar2img: Tensor, size: tuple[int, int]) -> Views:
        """Views with the inverse of ``lidar2img``, whose invertibility is checked when data are read."""
        return cls(lidar2img, torch.linalg.inv_ex(lidar2img)[0], size)  # inv would synchronise with the device


@dataclass(frozen=True)
class Sensors(TensorStructure):
    """Features and geometry of each sensor; the fields of an absent sensor are ``None``.

    Attributes:
        bev: (batch, channel, row, column), the LiDAR's BEV features.
        bev_position: (row * column, channel), position embedding of the BEV cells.
        grid: geometry of the BEV cells.
        images: (batch, view, channel, row, column), the cameras' features.
        image_position: (batch, view, row * column, channel), position embedding of the image cells.
        views: geometry of the cameras.
        damage: what faults broke, where it is recorded.
    """

    bev: Tensor | None = None
    bev_position: Tensor | None = None
    grid: BEVGrid | None = None
    images: Tensor | None = None
    image_position: Tensor | None = None
    views: Views | None = None
    damage: Damage | None = None

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Cells of both sensors as tokens (batch, token, channel), and their position embeddings; BEV first."""
        memory: list[Tensor] = []
        positions: list[Tensor] = []
        if self.bev is not None and self.bev_position is not None:
            memory.append(self.bev.flatten(2).transpose(1, 2))
            positions.append(self.bev_position.expand(len(self.bev), -1, -1))
        if self.images is not None and self.image_position is not None:
            memory.append(self.images.permute(0, 1, 3, 4, 2).flatten(1, 3))
            positions.append(self.image_position.flatten(1, 2))
        return torch.cat(memory, dim=1), torch.cat(positions, dim=1)

    def token_groups(self, per_view: bool) -> Tensor:
        """Membership (token, group) of both sensors' :meth:`tokens`, 1 where a token belongs to a group.

        Args:
            per_view: one group per camera; otherwise one group, the LiDAR's tokens.
        """
        assert self.bev is not None and self.images is not None
        views, cells = self.images.shape[1], self.bev.shape[-2] * self.bev.shape[-1]
        view_cells = self.images.shape[-2] * self.images.shape[-1]
        if not per_view:
            return torch.cat((self.bev.new_ones(cells, 1), self.bev.new_zeros(views * view_cells, 1)))
        cameras = torch.eye(views, dtype=self.bev.dtype, device=self.bev.device)
        return torch.cat((self.bev.new_zeros(cells, views), cameras.repeat_interleave(view_cells, dim=0)))


@dataclass(frozen=True)
class DenoisingQueries(TensorStructure):
    """Noised boxes that enter the decoder as extra queries in training (DN-DETR, Li et al., CVPR 2022).

    Attributes:
        reference_points: (batch, denoising query, 3) in [0, 1] over the range; group-major; padding is 0.
        attention_mask: (query, query) bool, denoising queries first; True where a row must NOT attend to a
            column.
        padding: (batch, denoising query) bool, True for queries without a box.
    """

    reference_points: Tensor
    attention_mask: Tensor
    padding: Tensor


@dataclass(frozen=True)
class Queries(TensorStructure):
    """The queries of a batch: denoising queries first, then the learned queries, which are matched.

    Attributes:
        embedding: (batch, query, channel), position embedding.
        reference_points: (batch, query, 3) in (0, 1) over the range.
        places: (batch, query, 3), reference points in metres, LiDAR frame.
        denoising: number of denoising queries.
        attention_mask: (query, query) bool, True where a row must NOT attend to a column; ``None``: nowhere.
        valid: (batch, query) bool, False for padding among the denoising queries; ``None``: no padding.
    """

    embedding: Tensor
    reference_points: Tensor
    places: Tensor
    denoising: int = 0
    attention_mask: Tensor | None = None
    valid: Tensor | None = None

    def matching(self) -> Queries:
        """The learned queries alone."""
        if not self.denoising:
            return self
        learned = slice(self.denoising, None)
        return Queries(self.embedding[:, learned], self.reference_points[:, learned], self.places[:, learned])


def sample_index(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Frame index of each concatenated row: counts (2, 3) give [0, 0, 1, 1, 1]."""
    return torch.repeat_interleave(
        torch.arange(len(counts), device=device), from_host(counts, device), output_size=sum(counts)
    )
