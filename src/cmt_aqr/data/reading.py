"""Reading of frames, :class:`~cmt_aqr.structures.Frame`, from the index and the files on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_aqr.constants import POINT_FEATURES
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.index import FrameIndex
from cmt_aqr.data.points import point_count, read_checked_points, read_points
from cmt_aqr.data.poses import invert, multiply
from cmt_aqr.structures import Frame, Returns

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


def read_image(path: Path, half_size: bool = False, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Read an image (height, width, 3), BGR, as stored: an orientation in its EXIF data is ignored.

    Args:
        path: of a JPEG, PNG or other format of OpenCV.
        half_size: decode at half height and width, rounded up, which is faster; of a JPEG, only the lower half of
            the frequencies is decoded.
        out: a JPEG of this shape is decoded into this array.

    Raises:
        DataError: the file is missing, not an image, or a truncated JPEG (which OpenCV would fill with grey).
    """
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): data.root must contain this image") from error
    tail = raw[-1024:].tobytes()
    if raw[:2].tobytes() == _JPEG_START and _JPEG_END not in tail:
        raise DataError(
            f"{path} is truncated: a JPEG without an end after {len(raw)} bytes; copy or download it again"
        )
    if raw[:2].tobytes() == _JPEG_START:
        return _decode_jpeg(path, raw, half_size, out)
    flags = (cv2.IMREAD_REDUCED_COLOR_2 if half_size else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(raw, flags) if len(raw) else None
    if image is None:
        raise DataError(f"{path} is not a readable image ({len(raw)} bytes): copy or download it again")
    return np.asarray(image, dtype=np.uint8)


def _decode_jpeg(
    path: Path, raw: NDArray[np.uint8], half_size: bool, out: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """Decode to the pixels of OpenCV, but report damage in the middle, which OpenCV would fill with grey."""
    try:
        shape = simplejpeg.decode_jpeg_header(raw)[:2]
        scaled: dict[str, int] = {}
        if half_size:
            shape = tuple((side + 1) // 2 for side in shape)
            scaled = {"min_height": shape[0], "min_width": shape[1], "min_factor": 2}
        buffer = out if out is not None and out.shape[:2] == shape else None
        return simplejpeg.decode_jpeg(raw, colorspace="BGR", buffer=buffer, **scaled)
    except ValueError as error:
        raise DataError(f"{path} is a damaged JPEG ({error}): copy or download it again") from error


@dataclass
class FrameReader:
    """Reads the frames of an index.

    Raises:
        DataError: a frame has no record of a requested sensor.
    """

    root: Path  # nuScenes data root
    index: FrameIndex  # the frames of a split
    sweeps: int = 10  # maximum number of sweeps before the keyframe's
    cameras: bool = True  # whether to read images
    lidar: bool = True  # whether to read points
    for_database: bool = False  # read points as the release's database does, see join_sweeps
    half_size: bool = False  # decode images at half height and width, see read_image

    def __post_init__(self) -> None:
        self.index.check_sensors(self.cameras, self.lidar)
        self._last_shape: tuple[int, ...] = (0, 0, 3)  # of an image; that of the next frame is probably the same

    def __len__(self) -> int:
        return len(self.index)

    def check_first(self) -> NDArray[np.float32] | None:
        """Check that the files of the first frame exist, and that its points look like points.

        Returns:
            Points (point, 5) of the first keyframe's sweep; ``None`` if no points are read.

        Raises:
            DataError: a file cannot be opened, the first one is named; or see :func:`read_checked_points`.
        """
        sweep = self.index.sweep_files[self.index.lidar[0]]
        for name in ([sweep] if self.lidar else []) + (list(self.index.image_files[0]) if self.cameras else []):
            path = self.root / name.decode()
            try:
                path.open("rb").close()
            except OSError as error:
                raise DataError(
                    f"{path} cannot be read ({error.strerror}): the tables name it, so data.root must contain it"
                ) from error
        return read_checked_points(self.root / sweep.decode()) if self.lidar else None

    def read(self, frame: int) -> Frame:
        """Read a frame: images uint8 in their stored size, all boxes of the ten classes, nothing filtered.

        Raises:
            DataError: a file is missing or damaged, or the images differ in size.
        """
        index = self.index
        boxes = slice(int(index.box_offsets[frame]), int(index.box_offsets[frame + 1]))
        points, returns = self.read_points(frame)
        lidar2img = index.lidar2img[frame].copy()
        if self.half_size:
            lidar2img[:, :2] *= 0.5  # pixel edges scale: u' = u / 2
        return Frame(
            token=index.token(frame),
            points=points,
            images=self._images(frame) if self.cameras else None,
            lidar2img=torch.from_numpy(lidar2img),
            boxes=torch.from_numpy(np.nan_to_num(index.boxes[boxes], nan=0.0)),
            labels=torch.from_numpy(index.labels[boxes].copy()),
            box_points=torch.from_numpy(index.box_points[boxes].copy()),
            lidar2global=torch.from_numpy(index.sweep_to_global[index.lidar[frame]].copy()),
            returns=returns,
            source=StoredFrame(self, frame),
        )

    def obstacles(self, frame: int, min_points: int = 1) -> NDArray[np.float32]:
        """Boxes (box, 9) of categories outside the ten classes, with at least ``min_points`` LiDAR points."""
        index = self.index
        rows = slice(int(index.other_offsets[frame]), int(index.other_offsets[frame + 1]))
        return np.nan_to_num(index.others[rows][index.other_points[rows] >= min_points], nan=0.0)

    def read_points(self, frame: int) -> tuple[Tensor, Returns | None]:
        """Points (point, 5) of all sweeps, and their origin (not for a database), see :func:`join_sweeps`."""
        if not self.lidar:
            return torch.zeros(0, POINT_FEATURES), None
        index = self.index
        rows = index.sweeps_of(frame, self.sweeps)
        paths = [self.root / index.sweep_files[row].decode() for row in rows]
        points, returns = join_sweeps(
            map(read_points, paths),
            motions=invert(index.sweep_to_global[rows[0]]) @ index.sweep_to_global[rows],
            lags=1e-6 * (index.sweep_times[rows[0]] - index.sweep_times[rows]),
            capacity=sum(map(point_count, paths)),
            remove_close=self.for_database,
            pad_to=self.sweeps if self.for_database else 0,
        )
        return torch.from_numpy(points), None if self.for_database else returns

    def _images(self, frame: int) -> Tensor:
        """Images (view, 3, height, width) uint8, BGR; channels last in memory, as decoded."""
        paths = [self.root / name.decode() for name in self.index.image_files[frame]]
        images = np.empty((len(paths), *self._last_shape), dtype=np.uint8)
        for view, path in enumerate(paths):
            image = read_image(path, self.half_size, out=images[view])
            if image.shape != images.shape[1:]:
                if view:
                    raise DataError(
                        f"{path} is {image.shape[1]} x {image.shape[0]} pixels, but {paths[0].name} of the same "
                        f"frame is {images.shape[2]} x {images.shape[1]}: a frame's images must have one size"
                    )
                self._last_shape = image.shape
                images = np.empty((len(paths), *image.shape), dtype=np.uint8)
            if not np.shares_memory(image, images[view]):
                images[view] = image
        return torch.from_numpy(images).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class StoredFrame:
    """The files of a frame: implements :class:`~cmt_aqr.structures.FrameSource`."""

    reader: FrameReader
    number: int

    def earlier(self, count: int, same_scene: bool = True) -> StoredFrame | None:
        """The frame ``count`` entries before, or ``None`` if there is none (in this scene)."""
        number, scenes = self.number - count, self.reader.index.scenes
        if number < 0 or (same_scene and scenes[number] != scenes[self.number]):
            return None
        return StoredFrame(self.reader, number)

    def points(self) -> tuple[Tensor, Returns | None]:
        """Points (point, 5) of all its sweeps in its own LiDAR frame, and their origin."""
        return self.reader.read_points(self.number)

    def image(self, view: int) -> Tensor:
        """One of its images (3, height, width), uint8, BGR."""
        path = self.reader.root / self.reader.index.image_files[self.number][view].decode()
        return torch.from_numpy(read_image(path, self.reader.half_size)).permute(2, 0, 1)


CLOSE = 1.0
"""Metres along x and y: nearer points are on the car itself."""


def join_sweeps(
    clouds: Iterable[NDArray[np.float32]],
    motions: NDArray[np.float64],
    lags: NDArray[np.float64],
    capacity: int,
    remove_close: bool = False,
    pad_to: int = 0,
) -> tuple[NDArray[np.float32], Returns]:
    """Points (point, 5): x, y, z in the keyframe's LiDAR frame, intensity, lag in seconds; and their origin.

    The release's database of objects uses the last two arguments, training and testing do not (mmdet3d,
    ``LoadPointsFromMultiSweeps``).

    Args:
        clouds: finite points (point, 5) of each sweep in its own LiDAR frame, the keyframe's first. The ring, in
            the last column, is overwritten. An iterator, so that each sweep is moved while it is in the cache.
        motions: (sweep, 4, 4) from each sweep's LiDAR frame to the keyframe's.
        lags: (sweep,) seconds before the keyframe.
        capacity: upper bound of the number of points.
        remove_close: drop points within ``CLOSE`` of the sensor, but not the keyframe's.
        pad_to: append the keyframe this many times if there are no other sweeps; the origin omits these points.
    """
    points = np.empty((capacity, 5), dtype=np.float32)
    sweeps, rings = np.empty(capacity, dtype=np.uint8), np.empty(capacity, dtype=np.int16)
    end = 0
    for number, (cloud, motion, lag) in enumerate(zip(clouds, motions, lags, strict=True)):
        if number and remove_close:
            cloud = without_close(cloud)
        part = slice(end, end + len(cloud))
        end += len(cloud)
        sweeps[part], rings[part] = number, cloud[:, 4]
        _move(cloud, motion if number else np.eye(4), lag, out=points[part])
    motions = motions.copy()
    motions[:1] = np.eye(4)  # exact, where the product was rounded
    returns = Returns(
        torch.from_numpy(sweeps[:end]), torch.from_numpy(rings[:end]), motions=torch.from_numpy(motions)
    )
    points = points[:end]
    if len(motions) == 1 and pad_to:
        padding = without_close(points) if remove_close else points
        points = np.concatenate([points, *[padding] * pad_to])
    return points, returns


def _move(cloud: NDArray[np.float32], motion: NDArray[np.float64], lag: float, out: NDArray[np.float32]) -> None:
    """Move points (point, 5), and replace the ring by the lag, in one product with ones in place of the ring."""
    cloud[:, 4] = 1
    matrix = np.eye(5)
    # Motions are a few metres, so float32 is precise to micrometres.
    matrix[:3, :3], matrix[4, :3], matrix[4, 4] = motion[:3, :3].T, motion[:3, 3], lag
    multiply(cloud, matrix, out)


def without_close(cloud: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points (point, >= 2) of a sweep in its own frame, without those on the car itself."""
    return cloud[(np.abs(cloud[:, :2]) >= CLOSE).any(axis=1)]
