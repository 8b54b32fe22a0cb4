"""From the index and the files on disk to a :class:`~cmt_aqr.structures.Frame`."""

from __future__ import annotations

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
from cmt_aqr.data.poses import invert
from cmt_aqr.data.sources import StoredFrame
from cmt_aqr.data.sweeps import join_sweeps
from cmt_aqr.structures import Frame, Returns

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


def read_image(path: Path, half_size: bool = False, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Image (height, width, 3) of a file, BGR, as stored: an orientation in its EXIF data is not looked at.

    Args:
        path: of a JPEG, PNG or what else OpenCV reads.
        half_size: decode to half the height and width, rounded up, which is faster; of a JPEG's frequencies the
            upper half is then left out.
        out: array of a result's shape, which a JPEG of this shape is decoded into.

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
        return _decode_jpeg(path, raw, half_size, out)
    how = (cv2.IMREAD_REDUCED_COLOR_2 if half_size else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(raw, how) if len(raw) else None
    if image is None:
        raise DataError(f"{path} is not a readable image ({len(raw)} bytes): copy or download it again")
    return np.asarray(image, dtype=np.uint8)


def _decode_jpeg(
    path: Path, raw: NDArray[np.uint8], half_size: bool, out: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """As OpenCV, whose pixels these are, but damage in the middle is refused and not painted over with grey."""
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


class FrameReader:
    """Reads the frames of an index.

    Args:
        root: nuScenes data root.
        index: the frames of a split.
        sweeps: how many sweeps before the keyframe's own to add, at most.
        cameras: whether to read the images.
        lidar: whether to read the points; without it a frame has none.
        for_database: read points as the release does for its database of objects: without those on the car
            itself, and a frame without earlier sweeps has its keyframe so many times more.
        half_size: decode images to half their height and width, see :func:`read_image`.

    Raises:
        DataError: a frame has no record of a sensor that is read.
    """

    def __init__(
        self,
        root: Path,
        index: FrameIndex,
        sweeps: int = 10,
        cameras: bool = True,
        lidar: bool = True,
        for_database: bool = False,
        half_size: bool = False,
    ) -> None:
        index.check_sensors(cameras, lidar)
        self.root = root
        self.index = index
        self.sweeps = sweeps
        self.cameras = cameras
        self.lidar = lidar
        self.for_database = for_database
        self.half_size = half_size
        self._last_shape: tuple[int, ...] = (0, 0, 3)  # of an image; the next frame's likely have it, too

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
            lidar2img=torch.from_numpy(index.lidar2img[frame] * self._image_scale[:, None]),
            boxes=torch.from_numpy(np.nan_to_num(index.boxes[boxes], nan=0.0)),
            labels=torch.from_numpy(index.labels[boxes].copy()),
            box_points=torch.from_numpy(index.box_points[boxes].copy()),
            lidar2global=torch.from_numpy(index.sweep_to_global[index.lidar[frame]].copy()),
            returns=returns,
            source=StoredFrame(self, frame),
        )

    @property
    def _image_scale(self) -> NDArray[np.float64]:
        """(4,) from pixels of the images as stored to those of a frame, times depth; edges scale: u' = s u."""
        scale = 0.5 if self.half_size else 1.0
        return np.array([scale, scale, 1.0, 1.0])

    def obstacles(self, frame: int, least_points: int = 1) -> NDArray[np.float32]:
        """Boxes (box, 9) of categories outside the ten classes, with so many LiDAR points at least."""
        index = self.index
        rows = slice(int(index.other_offsets[frame]), int(index.other_offsets[frame + 1]))
        return np.nan_to_num(index.others[rows][index.other_points[rows] >= least_points], nan=0.0)

    def read_points(self, frame: int) -> tuple[Tensor, Returns | None]:
        """Points (point, 5) of all sweeps in the keyframe's LiDAR frame, the last column the lag in s, and where
        they come from; ``None`` for a database.
        """
        if not self.lidar:
            return torch.zeros(0, POINT_FEATURES), None
        index = self.index
        rows = index.sweeps_of(frame, self.sweeps)
        paths = [self.root / index.sweep_files[row].decode() for row in rows]
        points, returns = join_sweeps(
            map(read_points, paths),
            motions=invert(index.sweep_to_global[rows[0]]) @ index.sweep_to_global[rows],
            lags=1e-6 * (index.sweep_times[rows[0]] - index.sweep_times[rows]),
            room=sum(map(point_count, paths)),
            remove_close=self.for_database,
            pad_to=self.sweeps if self.for_database else 0,
        )
        return torch.from_numpy(points), None if self.for_database else returns

    def scene(self, frame: int) -> bytes:
        """Name of the scene that a frame is of."""
        return self.index.scenes[frame]

    def read_view(self, frame: int, view: int) -> Tensor:
        """One of a frame's images (3, height, width), uint8, BGR."""
        path = self.root / self.index.image_files[frame][view].decode()
        return torch.from_numpy(read_image(path, self.half_size)).permute(2, 0, 1)

    def _images(self, frame: int) -> Tensor:
        """Images (view, 3, height, width) uint8, BGR; stored with the channel last, as decoded."""
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
