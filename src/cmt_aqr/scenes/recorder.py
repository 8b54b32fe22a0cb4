"""Drives through one scene and writes what the sensors record, with the annotations."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cmt_aqr.constants import CAMERAS, LIDAR
from cmt_aqr.scenes import sensors, tables
from cmt_aqr.scenes.layout import build_scene
from cmt_aqr.scenes.sensors import Array, CameraImage, Mount
from cmt_aqr.scenes.settings import Settings
from cmt_aqr.scenes.shapes import KINDS
from cmt_aqr.scenes.tables import Row, Tables, token

_EPOCH = 1_704_103_200_000_000
_SCENE_SPACING = 120_000_000
_MICROSECONDS = 1_000_000


def start_time(scene: int) -> int:
    """Timestamp in microseconds of a scene's first keyframe; times in a scene count from it."""
    return _EPOCH + scene * _SCENE_SPACING


class Recorder:
    """Records a scene, given by index and name, into the folder ``root`` of a data set."""

    def __init__(self, settings: Settings, root: Path, index: int, name: str) -> None:
        self.settings = settings
        self.root = root
        self.index = index
        self.name = name
        self.scene = build_scene(settings, index)
        self.rig = sensors.build_rig(settings)
        self.log = f"synthetic-{settings.seed}-{index:04d}"
        self.rows: Tables = defaultdict(list, instance=[], sample_annotation=[])  # which a scene may lack
        self.chains: dict[str | int, list[Row]] = defaultdict(list)
        """Rows linked by ``prev`` and ``next``: keyframes, recordings by channel, annotations by object."""

    def run(self) -> Tables:
        """Write the scene's files and return its rows."""
        cv2.setNumThreads(1)
        sweeps = self.settings.sweeps_per_keyframe
        for step in range((self.settings.samples_per_scene - 1) * sweeps + 1):
            timestamp = start_time(self.index) + step * _MICROSECONDS // self.settings.sweep_rate
            sample = math.ceil(step / sweeps)  # a sweep belongs to the keyframe after it
            if step % sweeps:
                self._scan(sample, timestamp, is_key_frame=False)
            else:
                self._keyframe(sample, timestamp)
        self._finish()
        return self.rows

    def _token(self, table: str, *key: object) -> str:
        return token(self.settings.seed, table, self.index, *key)

    def _row(self, table: str, *key: object, **fields: Any) -> Row:
        return {"token": self._token(table, *key), **fields}

    def _chain(self, key: str | int, row: Row) -> None:
        """Append a row to a chain."""
        chain = self.chains[key]
        if chain:
            chain[-1]["next"], row["prev"] = row["token"], chain[-1]["token"]
        chain.append(row)

    def _seconds(self, timestamp: int) -> float:
        return (timestamp - start_time(self.index)) / _MICROSECONDS

    def _random(self, channel: str, timestamp: int) -> Generator:
        """The generator of one recording, which does not depend on the order of recordings."""
        number = 1 + list(self.rig).index(channel)
        return np.random.default_rng((self.settings.seed, self.index, number, timestamp))

    def _keyframe(self, sample: int, timestamp: int) -> None:
        points = self._scan(sample, timestamp, is_key_frame=True)
        images = [self._image(sample, timestamp, self.rig[channel]) for channel in CAMERAS]
        row = self._row("sample", sample, timestamp=timestamp, prev="", next="", scene_token=self._token("scene"))
        self._chain("sample", row)
        self._annotate(sample, self._seconds(timestamp), points, images)

    def _scan(self, sample: int, timestamp: int, is_key_frame: bool) -> NDArray[np.float32]:
        """Write a sweep; returns its points (point, 5)."""
        time, mount = self._seconds(timestamp), self.rig[LIDAR]
        points = sensors.scan(self.scene, mount, time, self.settings, self._random(LIDAR, timestamp))
        self._add_data(mount, sample, timestamp, is_key_frame).write_bytes(points.astype("<f4").tobytes())
        return points

    def _image(self, sample: int, timestamp: int, mount: Mount) -> CameraImage:
        """Write an image and return it."""
        timestamp += round(mount.delay * _MICROSECONDS)
        time, random = self._seconds(timestamp), self._random(mount.channel, timestamp)
        image = sensors.render_image(self.scene, mount, time, self.settings.image_size, random)
        quality = [cv2.IMWRITE_JPEG_QUALITY, self.settings.jpeg_quality]
        jpeg = cv2.imencode(".jpg", image.image[..., ::-1], quality)[1]
        self._add_data(mount, sample, timestamp, is_key_frame=True).write_bytes(jpeg.tobytes())
        return image

    def _add_data(self, mount: Mount, sample: int, timestamp: int, is_key_frame: bool) -> Path:
        """Add a recording's rows of ``sample_data`` and ``ego_pose``; returns the path for its file."""
        channel = mount.channel
        folder = "samples" if is_key_frame else "sweeps"
        is_camera = mount.intrinsic is not None
        height, width = self.settings.image_size if is_camera else (0, 0)
        suffix = ".jpg" if is_camera else ".pcd.bin"
        filename = f"{folder}/{channel}/{self.log}__{channel}__{timestamp}{suffix}"
        position, heading = self.scene.ego_at(self._seconds(timestamp))
        pose = self._row(
            "ego_pose",
            channel,
            timestamp,
            timestamp=timestamp,
            rotation=[math.cos(0.5 * heading), 0.0, 0.0, math.sin(0.5 * heading)],
            translation=position.tolist(),
        )
        self.rows["ego_pose"].append(pose)
        row = self._row(
            "sample_data",
            channel,
            timestamp,
            sample_token=self._token("sample", sample),
            ego_pose_token=pose["token"],
            calibrated_sensor_token=self._token("calibrated_sensor", channel),
            timestamp=timestamp,
            fileformat="jpg" if is_camera else "pcd",
            is_key_frame=is_key_frame,
            height=height,
            width=width,
            filename=filename,
            prev="",
            next="",
        )
        self._chain(channel, row)
        return self.root / filename

    def _annotate(self, sample: int, time: float, points: NDArray[np.float32], images: list[CameraImage]) -> None:
        """Add the annotations of a keyframe: every object within range, visible or not, with true counts."""
        centres, headings = self.scene.boxes_at(time)
        ego, _ = self.scene.ego_at(time)
        near = np.hypot(*(centres - ego)[:, :2].T) < self.settings.annotated_range
        annotated = np.flatnonzero(near & (np.array(self.scene.labels) != ""))
        positions = sensors.pose_of(self.scene, self.rig[LIDAR], time).to_global(points[:, :3].astype(np.float64))
        counts = count_points(positions, centres[annotated], headings[annotated], self.scene.sizes[annotated])
        shares = sensors.visible_shares(images)
        for index, count in zip(annotated.tolist(), counts.tolist(), strict=True):
            attribute = self.scene.attributes[index]
            half = 0.5 * headings[index]
            row = self._row(
                "sample_annotation",
                index,
                sample,
                sample_token=self._token("sample", sample),
                instance_token=self._token("instance", index),
                visibility_token=tables.visibility_token(shares[index]),
                attribute_tokens=[token(self.settings.seed, "attribute", attribute)] if attribute else [],
                translation=centres[index].tolist(),
                size=self.scene.sizes[index, [1, 0, 2]].tolist(),  # width, length, height
                rotation=[float(np.cos(half)), 0.0, 0.0, float(np.sin(half))],
                prev="",
                next="",
                num_lidar_pts=count,
                num_radar_pts=0,
            )
            self.rows["sample_annotation"].append(row)
            self._chain(index, row)

    def _finish(self) -> None:
        """Add the rows that need the complete scene."""
        seed, samples = self.settings.seed, self.chains["sample"]
        self.rows |= {"sample": samples, "sample_data": [row for name in self.rig for row in self.chains[name]]}
        for index in (key for key in self.chains if isinstance(key, int)):
            rows = self.chains[index]
            self.rows["instance"].append(
                self._row(
                    "instance",
                    index,
                    category_token=token(seed, "category", KINDS[self.scene.kinds[index]].category),
                    nbr_annotations=len(rows),
                    first_annotation_token=rows[0]["token"],
                    last_annotation_token=rows[-1]["token"],
                )
            )
        for channel, mount in self.rig.items():
            self.rows["calibrated_sensor"].append(
                self._row(
                    "calibrated_sensor",
                    channel,
                    sensor_token=token(seed, "sensor", channel),
                    translation=mount.translation.tolist(),
                    rotation=mount.quaternion.tolist(),
                    camera_intrinsic=[] if mount.intrinsic is None else mount.intrinsic.tolist(),
                )
            )
        log = self._row(
            "log", logfile=self.log, vehicle="synthetic", date_captured="2024-01-01", location="synthetic"
        )
        scene = self._row(
            "scene",
            log_token=log["token"],
            nbr_samples=self.settings.samples_per_scene,
            first_sample_token=samples[0]["token"],
            last_sample_token=samples[-1]["token"],
            name=self.name,
            description=self.scene.description,
        )
        self.rows |= {"log": [log], "scene": [scene]}


def record_scene(settings: Settings, root: Path, index: int, name: str) -> Tables:
    """Write the files of a scene and return its rows, see :class:`Recorder`."""
    return Recorder(settings, root, index, name).run()


def count_points(points: Array, centres: Array, headings: Array, sizes: Array) -> NDArray[np.int64]:
    """Number of points (point, 3) in each box, borders included, as the devkit's ``points_in_box`` counts them.

    Boxes have centres (box, 3), headings (box,) in radians and sizes (box, 3): length, width, height, all in one
    frame.
    """
    order = np.argsort(points[:, 0])
    points = points[order]
    # A box is tested against the points in its strip of x only.
    reach = 0.5 * np.hypot(sizes[:, 0], sizes[:, 1])
    first = np.searchsorted(points[:, 0], centres[:, 0] - reach)
    last = np.searchsorted(points[:, 0], centres[:, 0] + reach, side="right")
    cosine, sine, half = np.cos(headings), np.sin(headings), 0.5 * sizes
    counts = np.zeros(len(centres), np.int64)
    for box in range(len(centres)):
        x, y, z = (points[first[box] : last[box]] - centres[box]).T
        along = cosine[box] * x + sine[box] * y
        across = cosine[box] * y - sine[box] * x
        inside = (np.abs(along) <= half[box, 0]) & (np.abs(across) <= half[box, 1])
        counts[box] = np.count_nonzero(inside & (np.abs(z) <= half[box, 2]))
    return counts
