"""The data that flows into the model, as frozen dataclasses of tensors.

``Frame`` -> (augmentation) -> ``Frame`` -> (collation) -> ``Batch`` -> (model) -> ``Predictions``
-> (decoding) -> ``Detections``. Frames of reference are named where they matter: lidar, ego, global,
camera, image.
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
    """Where the points of a frame come from, for faults that strike a LiDAR's file and not a frame.

    Attributes:
        sweep: (point,) uint8, the file: 0 for the keyframe's own, counted backwards in time.
        ring: (point,) int16, the laser, as the file has it; 0 is the lowest of nuScenes' 32.
        motions: (sweep, 4, 4) float64, rigid, from the LiDAR frame of the file to the keyframe's LiDAR frame.
    """

    sweep: Tensor
    ring: Tensor
    motions: Tensor


class FrameSource(Protocol):
    """The files that a frame was read from, and those of the frames before it in the split."""

    @property
    def number(self) -> int:
        """Of the frame in its split, from 0."""
        ...

    def earlier(self, count: int, same_scene: bool = True) -> FrameSource | None:
        """The frame ``count`` entries before, or ``None`` where there is none (in this scene)."""
        ...

    def points(self) -> tuple[Tensor, Returns | None]:
        """Points (point, 5) of all its sweeps, as in :class:`Frame`, in its own LiDAR frame."""
        ...

    def image(self, view: int) -> Tensor:
        """One of its images (3, height, width), uint8, as stored."""
        ...


@dataclass(frozen=True)
class Frame(TensorStructure):
    """One keyframe: what the sensors saw and what stood there.

    Attributes:
        token: nuScenes sample token.
        points: (point, 5) float32: x, y, z in metres in the keyframe's LiDAR frame, intensity 0..255, time
            lag in seconds (0 for the keyframe's own sweep, positive for the sweeps before it). float16 after the
            training filter where half precision is asked for.
        images: (view, 3, height, width) uint8, BGR, views in the order of ``CAMERAS``; stored with the channel
            last. ``None`` where no camera is used.
        lidar2img: (view, 4, 4) float64: a homogeneous point in the LiDAR frame becomes
            (u * depth, v * depth, depth, 1) in pixels of ``images`` as they are now.
        boxes: (box, 9) float32 in the LiDAR frame, see ``cmt_aqr.geometry.boxes``. A velocity that nuScenes
            does not know is 0.
        labels: (box,) int64, indices into ``CLASSES``.
        box_points: (box,) int64, LiDAR points in the box as annotated in nuScenes.
        lidar2global: (4, 4) float64, rigid, from the LiDAR frame *as it now is* (augmentation included
            only where it is rigid; evaluation does not augment).
        image_mask: (height, width) bool, pixels of every image that stay, or ``None``: all; see
            :class:`cmt_aqr.data.masking.GridMask`.
        shuffle: seed of the random order that the points are brought into on the device, or ``None``.
        returns: where each point comes from, while nothing but faults has touched the points; ``None`` where
            nobody knows. Who drops points drops its rows, too: :meth:`keep_points`.
        source: its files, for faults that show an earlier frame; ``None`` for a frame that was made by hand.
        damage: what faults broke, where it was asked for, see :class:`cmt_aqr.data.damage.MeasureDamage`.
        unseen_rows: how many rows at the top of ``images`` will be cut off, so that faults may leave them alone.
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
        """Drop points, and what ``returns`` says of them.

        Args:
            keep: (point,) bool, those that stay, or their row numbers.
            points: (point, 5) to take them from, where they have changed, too.
        """
        returns = self.returns
        if returns is not None:
            returns = returns.replace(sweep=returns.sweep[keep], ring=returns.ring[keep])
        return self.replace(points=(self.points if points is None else points)[keep], returns=returns)


@dataclass(frozen=True)
class DeviceWork(TensorStructure):
    """What was drawn for the frames of a batch and is done on the device: :mod:`cmt_aqr.data.finishing`.

    Attributes:
        image_masks: (batch, height, width) bool, pixels of every view that stay, or ``None``: all.
        shuffles: of each frame the seed of its points' order, or ``None``: as they are.
    """

    image_masks: Tensor | None
    shuffles: tuple[int | None, ...]


@dataclass(frozen=True)
class Batch(TensorStructure):
    """Frames side by side. Points and boxes, whose number differs, are concatenated.

    The counts are Python integers, so that nothing waits for a GPU to learn a shape.

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
        device_work: what is left to do on the device; ``None`` once the batch is finished.
        damage: what faults broke, where it was asked for.
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
        for name in ("point_counts", "box_counts", "lidar2img", "lidar2global"):
            if len(getattr(self, name)) != size:
                raise ValueError(f"Batch.{name} has {len(getattr(self, name))} entries for {size} frames")
        if self.points.shape != (sum(self.point_counts), POINT_FEATURES):
            raise ValueError(
                f"Batch.points is {tuple(self.points.shape)}, but point_counts add up to "
                f"({sum(self.point_counts)}, {POINT_FEATURES})"
            )
        if self.boxes.shape != (sum(self.box_counts), BOX_SIZE):
            raise ValueError(
                f"Batch.boxes is {tuple(self.boxes.shape)}, but box_counts add up to "
                f"({sum(self.box_counts)}, {BOX_SIZE})"
            )
        if self.lidar2img.shape[1:] != (len(CAMERAS), 4, 4):
            raise ValueError(
                f"Batch.lidar2img is {tuple(self.lidar2img.shape)}; expected (batch, {len(CAMERAS)}, 4, 4)"
            )

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
    """How the cameras of a batch look.

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
        """The views of cameras; data are read with a check that the matrices can be inverted."""
        return cls(lidar2img, torch.linalg.inv_ex(lidar2img)[0], size)  # inv would synchronise with the device


@dataclass(frozen=True)
class Sensors(TensorStructure):
    """What the decoder reads of each sensor. What belongs to a sensor that is not there is ``None``.

    Attributes:
        bev: (batch, channel, row, column), the LiDAR's map.
        bev_position: (row * column, channel), position embedding of its cells.
        grid: where its cells are.
        images: (batch, view, channel, row, column), the cameras' maps.
        image_position: (batch, view, row * column, channel), position embedding of their cells.
        views: how the cameras look.
        damage: what faults broke, where it is known.
    """

    bev: Tensor | None = None
    bev_position: Tensor | None = None
    grid: BEVGrid | None = None
    images: Tensor | None = None
    image_position: Tensor | None = None
    views: Views | None = None
    damage: Damage | None = None

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Cells of both sensors as tokens (batch, token, channel), and their positions, BEV first."""
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
        """(token, group), 1 where a token of :meth:`tokens` belongs to a group.

        Args:
            per_view: a group per camera; otherwise one, the LiDAR's tokens.
        """
        like = self.bev if self.bev is not None else self.images
        assert like is not None
        cells = 0 if self.bev is None else self.bev.shape[-2] * self.bev.shape[-1]
        views, view_cells = 0, 0
        if self.images is not None:
            views, view_cells = self.images.shape[1], self.images.shape[-2] * self.images.shape[-1]
        lidar = like.new_ones(cells, 1)
        if not per_view:
            return torch.cat((lidar, like.new_zeros(views * view_cells, 1)))
        cameras = torch.eye(views, dtype=like.dtype, device=like.device).repeat_interleave(view_cells, dim=0)
        return torch.cat((lidar.new_zeros(cells, views), cameras))


@dataclass(frozen=True)
class DenoisingQueries(TensorStructure):
    """Noised boxes that enter the decoder as extra queries in training (DN-DETR, Li et al., CVPR 2022).

    Attributes:
        reference_points: (batch, denoising query, 3) in [0, 1] over the range; group-major; padding is 0.
        attention_mask: (denoising + matching query, the same), bool, True where a row may NOT look at a
            column. Denoising queries come first.
        padding: (batch, denoising query) bool, True for those that stand for no box.
    """

    reference_points: Tensor
    attention_mask: Tensor
    padding: Tensor


@dataclass(frozen=True)
class Queries(TensorStructure):
    """The queries of a batch: denoising queries first, then the learned ones, which are matched.

    Attributes:
        embedding: (batch, query, channel), the position embedding that they enter the decoder with.
        reference_points: (batch, query, 3) in (0, 1) over the range.
        places: (batch, query, 3), the same in metres, LiDAR frame.
        denoising: how many are denoising queries.
        forbidden: (query, query) bool, True where a query may not look at another; ``None``: all may.
        draws: (batch, query) bool, False for padding among the denoising queries; ``None``: there is none.
    """

    embedding: Tensor
    reference_points: Tensor
    places: Tensor
    denoising: int = 0
    forbidden: Tensor | None = None
    draws: Tensor | None = None

    def matching(self) -> Queries:
        """The learned queries alone."""
        if not self.denoising:
            return self
        rest = slice(self.denoising, None)
        return Queries(self.embedding[:, rest], self.reference_points[:, rest], self.places[:, rest])


def sample_index(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Index of the frame that each concatenated row belongs to: (2, 3) gives [0, 0, 1, 1, 1]."""
    return torch.repeat_interleave(
        torch.arange(len(counts), device=device), from_host(counts, device), output_size=sum(counts)
    )
