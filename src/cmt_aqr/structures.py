"""The data that flows through the framework, as frozen dataclasses of tensors.

``Frame`` -> (augmentation) -> ``Frame`` -> (collation) -> ``Batch`` -> (model) -> ``Predictions``
-> (decoding) -> ``Detections``. Frames of reference are named where they matter: lidar, ego, global,
camera, image.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from cmt_aqr.constants import BOX_SIZE, CAMERAS, POINT_FEATURES


def _map_tensors(value: Any, function: Any) -> Any:
    """Apply ``function`` to every tensor in a dataclass, tuple or tensor; anything else stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_map_tensors(item, function) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            field.name: _map_tensors(getattr(value, field.name), function) for field in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changed)
    return value


class TensorStructure:
    """Moves every tensor of a dataclass at once. Lightning finds ``to`` and ``pin_memory`` by name."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Return a copy whose tensors went through ``Tensor.to(*args, **kwargs)``."""
        return _map_tensors(self, lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory, for asynchronous copies to a GPU."""
        return _map_tensors(self, lambda tensor: tensor.pin_memory())

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


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

    def points(self) -> tuple[Tensor, Returns]:
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
            lag in seconds (0 for the keyframe's own sweep, positive for the sweeps before it).
        images: (view, 3, height, width), BGR, views in the order of ``CAMERAS``. uint8 as read; float32 and
            normalised after the image transform. ``None`` where no camera is used.
        lidar2img: (view, 4, 4) float32: a homogeneous point in the LiDAR frame becomes
            (u * depth, v * depth, depth, 1) in pixels of ``images`` as they are now.
        boxes: (box, 9) float32 in the LiDAR frame, see ``cmt_aqr.geometry.boxes``. A velocity that nuScenes
            does not know is 0.
        labels: (box,) int64, indices into ``CLASSES``.
        box_points: (box,) int64, LiDAR points in the box as annotated in nuScenes.
        lidar2global: (4, 4) float64, rigid, from the LiDAR frame *as it now is* (augmentation included
            only where it is rigid; evaluation does not augment).
        returns: where each point comes from, while nothing but faults has touched the points; ``None`` where
            nobody knows. Who drops points drops its rows, too: :meth:`keep_points`.
        source: its files, for faults that show an earlier frame; ``None`` for a frame that was made by hand.
    """

    token: str
    points: Tensor
    images: Tensor | None
    lidar2img: Tensor
    boxes: Tensor
    labels: Tensor
    box_points: Tensor
    lidar2global: Tensor
    returns: Returns | None = None
    source: FrameSource | None = None

    def keep_points(self, keep: Tensor, points: Tensor | None = None) -> Self:
        """Drop points, and what ``returns`` says of them.

        Args:
            keep: (point,) bool, those that stay.
            points: (point, 5) to take them from, where they have changed, too.
        """
        returns = self.returns
        if returns is not None:
            returns = returns.replace(sweep=returns.sweep[keep], ring=returns.ring[keep])
        return self.replace(points=(self.points if points is None else points)[keep], returns=returns)


@dataclass(frozen=True)
class Batch(TensorStructure):
    """Frames side by side. Points and boxes, whose number differs, are concatenated.

    The counts are Python integers, so that nothing waits for a GPU to learn a shape.

    Attributes:
        tokens: sample token of every frame.
        points: (points of all frames, 5), see :class:`Frame`.
        point_counts: number of points of every frame; their sum is ``len(points)``.
        images: (batch, view, 3, height, width) float32, normalised, or ``None``.
        lidar2img: (batch, view, 4, 4) float32.
        boxes: (boxes of all frames, 9).
        labels: (boxes of all frames,) int64.
        box_counts: number of boxes of every frame.
        lidar2global: (batch, 4, 4) float64.
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
class AQROutput(TensorStructure):
    """What AQR did: the modulated features and everything a monitor wants to see.

    Attributes:
        weights: (batch, query, 2) in [0, 1]: LiDAR weight, camera weight of every query that AQR was given:
            the matching queries, after the denoising queries with ``aqr.draw=all``.
        camera_seen: (batch, query) bool: False where no camera sees the query; its camera weight is unused.
        bev_features: (batch, channel, height, width) modulated, or ``None`` without LiDAR.
        image_features: (batch, view, channel, height, width) modulated, or ``None`` without cameras.
        bev_map_raw: (batch, height, width) as rendered, before threshold and clamp.
        bev_map: the same after post-processing; it is what modulated the features.
        image_map_raw: (batch, view, height, width) as rendered.
        image_map: the same after post-processing.
        bev_seen: (batch, query) bool: False where a query stands off the BEV map; its LiDAR weight is unused.
        draws: (batch, query) bool: False for queries that must not draw (padding); ``None``: all may.
    """

    weights: Tensor
    camera_seen: Tensor
    bev_features: Tensor | None
    image_features: Tensor | None
    bev_map_raw: Tensor | None
    bev_map: Tensor | None
    image_map_raw: Tensor | None
    image_map: Tensor | None
    bev_seen: Tensor | None = None
    draws: Tensor | None = None

    def maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The maps before and after post-processing: ``bev`` (batch, row, column) and ``camera``
        (batch, view, row, column), without those of an absent sensor.
        """
        pairs = {"bev": (self.bev_map_raw, self.bev_map), "camera": (self.image_map_raw, self.image_map)}
        return {
            name: (drawn, processed)
            for name, (drawn, processed) in pairs.items()
            if drawn is not None and processed is not None
        }


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
    aqr: AQROutput | None = None


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


def sample_index(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Index of the frame that each concatenated row belongs to: (2, 3) gives [0, 0, 1, 1, 1]."""
    return torch.repeat_interleave(
        torch.arange(len(counts), device=device),
        torch.tensor(counts, device=device),
        output_size=sum(counts),
    )
