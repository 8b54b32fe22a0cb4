"""From the index and the files on disk to a :class:`~cmt_aqr.structures.Frame`."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_aqr.constants import CAMERAS, POINT_FEATURES
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.index import FrameIndex
from cmt_aqr.data.poses import invert
from cmt_aqr.structures import Frame, Returns

log = logging.getLogger(__name__)

_POINT_BYTES = 4 * POINT_FEATURES
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


def read_points(path: Path) -> NDArray[np.float32]:
    """Points (point, 5) of a nuScenes sweep: x, y, z, intensity 0..255, ring index; LiDAR frame of the sweep.

    Raises:
        DataError: the file is missing, empty, or does not hold whole points of five float32.
    """
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): data.root lacks this sweep") from error
    if not len(raw) or len(raw) % _POINT_BYTES:
        raise DataError(
            f"{path} is truncated: {len(raw)} bytes, which is not a positive multiple of the {_POINT_BYTES} "
            "bytes of a point; copy or download the file again"
        )
    points = raw.view(np.float32).reshape(-1, POINT_FEATURES)
    usable = np.abs(points) < LARGEST_VALUE  # not so of NaN
    if not usable.all():
        points = points[usable.all(axis=1)]
        _say_dropped(path, len(usable) - len(points), len(usable))
    if not len(points):
        raise DataError(f"{path} holds no usable point: all have values that are not finite; download it again")
    return points


LARGEST_VALUE = 1e5
"""Coordinates in metres, intensities and ring indices are far smaller: a larger value is damage."""


@functools.cache
def _say_dropped(path: Path, count: int, of: int) -> None:
    log.warning("%s: %d of %d points have values that are not finite, or absurd, and are dropped", path, count, of)


def read_checked_points(path: Path) -> NDArray[np.float32]:
    """Points as of :func:`read_points`, of a file whose values look like x, y, z, intensity and ring.

    Raises:
        DataError: the file holds something else, such as points of four numbers, which may fill whole points of
            five by chance.
    """
    points = read_points(path)
    intensity, ring = points[:, 3], points[:, 4]
    rings = (ring >= 0) & (ring < 256) & (ring == np.round(ring))
    intensities = (intensity >= 0) & (intensity <= 255)
    if rings.mean() < 0.99 or intensities.mean() < 0.99:
        raise DataError(
            f"{path} does not hold points of five float32 (x, y, z, intensity 0..255, ring index): its fourth "
            f"column reaches from {intensity.min():.4g} to {intensity.max():.4g}, and {1 - rings.mean():.0%} of "
            "its fifth are no small whole numbers; points of four numbers (KITTI's, say) must be converted first"
        )
    return points


def read_image(path: Path) -> NDArray[np.uint8]:
    """Image (height, width, 3) of a file, BGR.

    Raises:
        DataError: the file is missing, not an image, or a truncated JPEG (which OpenCV would fill with grey).
    """
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): data.root lacks this image") from error
    tail = raw[-1024:].tobytes()
    if raw[:2].tobytes() == _JPEG_START and _JPEG_END not in tail:
        raise DataError(
            f"{path} is truncated: a JPEG without an end after {len(raw)} bytes; copy or download it again"
        )
    if raw[:2].tobytes() == _JPEG_START:
        return _decode_jpeg(path, raw)
    image = cv2.imdecode(raw, cv2.IMREAD_COLOR) if len(raw) else None
    if image is None:
        raise DataError(f"{path} is not a readable image ({len(raw)} bytes): copy or download it again")
    return np.asarray(image, dtype=np.uint8)


def _decode_jpeg(path: Path, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As OpenCV, whose pixels these are, but damage in the middle is refused and not painted over with grey."""
    try:
        return simplejpeg.decode_jpeg(raw.tobytes(), colorspace="BGR")
    except ValueError as error:
        raise DataError(f"{path} is a damaged JPEG ({error}): copy or download it again") from error


class FrameReader:
    """Reads the frames of an index.

    Args:
        root: nuScenes data root.
        index: the frames of a split.
        sweeps: how many sweeps before the keyframe's own to add, at most.
        cameras: whether to read the images.
        lidar: whether to read the points; without it a frame has none.
    """

    def __init__(
        self, root: Path, index: FrameIndex, sweeps: int = 10, cameras: bool = True, lidar: bool = True
    ) -> None:
        self.root = root
        self.index = index
        self.sweeps = sweeps
        self.cameras = cameras
        self.lidar = lidar

    def __len__(self) -> int:
        return len(self.index)

    def read_first_points(self) -> NDArray[np.float32]:
        """The points (point, 5) of the first keyframe's own sweep.

        Raises:
            DataError: see :func:`read_checked_points`.
        """
        return read_checked_points(self.root / self.index.sweep_files[self.index.lidar[0]].decode())

    def read(self, frame: int) -> Frame:
        """Read a frame: images uint8 and unresized, all boxes of the ten classes, nothing filtered.

        Raises:
            DataError: a file is missing or damaged, or the images of a frame differ in size.
        """
        index = self.index
        boxes = slice(int(index.box_offsets[frame]), int(index.box_offsets[frame + 1]))
        points, returns = self.read_points(frame)
        return Frame(
            token=index.token(frame),
            points=points,
            images=self._images(frame) if self.cameras else None,
            lidar2img=torch.from_numpy(index.lidar2img[frame].astype(np.float32)),
            boxes=torch.from_numpy(np.nan_to_num(index.boxes[boxes], nan=0.0)),
            labels=torch.from_numpy(index.labels[boxes].copy()),
            box_points=torch.from_numpy(index.box_points[boxes].copy()),
            lidar2global=torch.from_numpy(index.sweep_to_global[index.lidar[frame]].copy()),
            returns=returns,
            source=StoredFrame(self, frame),
        )

    def read_points(self, frame: int) -> tuple[Tensor, Returns]:
        """Points (point, 5) of all sweeps in the keyframe's LiDAR frame, the last column the lag in s, and where
        they come from.
        """
        if not self.lidar:
            return torch.zeros(0, POINT_FEATURES), _returns_of([], np.zeros((0, 4, 4)))
        index = self.index
        rows = index.sweeps_of(frame, self.sweeps)
        to_keyframe = invert(index.sweep_to_global[rows[0]]) @ index.sweep_to_global[rows]
        lags = 1e-6 * (index.sweep_times[rows[0]] - index.sweep_times[rows])
        clouds = [read_points(self.root / index.sweep_files[row].decode()) for row in rows]
        returns = _returns_of(clouds, to_keyframe)
        for number, cloud in enumerate(clouds):
            if number:
                # The relative motion is a few metres, so float32 keeps micrometres.
                motion = to_keyframe[number].astype(np.float32)
                cloud[:, :3] = cloud[:, :3] @ motion[:3, :3].T + motion[:3, 3]
            cloud[:, 4] = lags[number]
        return torch.from_numpy(np.concatenate(clouds)), returns

    def image_path(self, frame: int, view: int) -> Path:
        """The file of one of a frame's images."""
        return self.root / self.index.image_files[frame][view].decode()

    def _images(self, frame: int) -> Tensor:
        """Images (view, 3, height, width) uint8, BGR; stored with the channel last, as decoded."""
        paths = [self.image_path(frame, view) for view in range(len(CAMERAS))]
        images = [read_image(path) for path in paths]
        for path, image in zip(paths, images, strict=True):
            if image.shape != images[0].shape:
                raise DataError(
                    f"{path} is {image.shape[1]} x {image.shape[0]} pixels, but {paths[0].name} of the same "
                    f"frame is {images[0].shape[1]} x {images[0].shape[0]}: "
                    "a frame's images must have one size"
                )
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _returns_of(clouds: list[NDArray[np.float32]], motions: NDArray[np.float64]) -> Returns:
    """Where the points of files come from.

    Args:
        clouds: points (point, 5) of each file as stored: the last column is the ring.
        motions: (file, 4, 4) from each file's LiDAR frame to the keyframe's.
    """
    rings = [cloud[:, 4].astype(np.int16) for cloud in clouds]
    sweeps = np.repeat(np.arange(len(clouds), dtype=np.uint8), [len(cloud) for cloud in clouds])
    motions = motions.copy()
    motions[:1] = np.eye(4)  # what rounding made of the keyframe's own
    return Returns(
        sweep=torch.from_numpy(sweeps),
        ring=torch.from_numpy(np.concatenate([np.zeros(0, np.int16), *rings])),
        motions=torch.from_numpy(motions),
    )


class StoredFrame:
    """The files of a frame: a :class:`~cmt_aqr.structures.FrameSource`.

    Args:
        reader: of its split.
        number: of the frame in it.
    """

    def __init__(self, reader: FrameReader, number: int) -> None:
        self.reader = reader
        self.number = number

    def earlier(self, count: int, same_scene: bool = True) -> StoredFrame | None:
        """The frame ``count`` entries before, or ``None`` where there is none (in this scene)."""
        scenes, number = self.reader.index.scenes, self.number - count
        if number < 0 or (same_scene and scenes[number] != scenes[self.number]):
            return None
        return StoredFrame(self.reader, number)

    def points(self) -> tuple[Tensor, Returns]:
        """Points (point, 5) of all its sweeps in its own LiDAR frame, and where they come from."""
        return self.reader.read_points(self.number)

    def image(self, view: int) -> Tensor:
        """One of its images (3, height, width), uint8, as stored."""
        return torch.from_numpy(read_image(self.reader.image_path(self.number, view))).permute(2, 0, 1)
