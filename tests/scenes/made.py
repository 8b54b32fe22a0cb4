"""A small synthetic data set: how it is made, and an independent reading of it by the devkit's lookups."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes import NuScenes
from nuscenes.utils.geometry_utils import transform_matrix
from pyquaternion import Quaternion

from cmt_aqr.scenes import Settings, build_scene, make_dataset, recorder
from cmt_aqr.scenes.sensors import Array
from cmt_aqr.scenes.tables import Row, token

SMALL = Settings(scenes=2, seed=5, samples_per_scene=3, sweep_rate=4)
SCENES = [build_scene(SMALL, index) for index in range(SMALL.scenes)]
VERSION = "v1.0-mini"


def make(out: Path, **more: Any) -> None:
    make_dataset(out, **{"workers": 1, "progress": False, **vars(SMALL), **more})


def scene_index(nusc: NuScenes, sample: Row) -> int:
    return SMALL.scene_names().index(nusc.get("scene", sample["scene_token"])["name"])


def object_index(nusc: NuScenes, annotation: Row) -> tuple[int, int]:
    """Index of the scene, and of the object in it, that an annotation is of."""
    index = scene_index(nusc, nusc.get("sample", annotation["sample_token"]))
    tokens = [token(SMALL.seed, "instance", index, number) for number in range(len(SCENES[index].kinds))]
    return index, tokens.index(annotation["instance_token"])


def annotations_of(nusc: NuScenes, sample: Row) -> list[Row]:
    return [nusc.get("sample_annotation", key) for key in sample["anns"]]


def attribute_of(nusc: NuScenes, annotation: Row) -> str:
    """Name of the annotation's attribute, empty if it has none."""
    return "".join(nusc.get("attribute", key)["name"] for key in annotation["attribute_tokens"])


def seconds(index: int, timestamp: int) -> float:
    return (timestamp - recorder.start_time(index)) / 1e6


def pose_matrix(nusc: NuScenes, record: Row) -> Array:
    """Sensor to global, by the devkit."""
    pose = nusc.get("ego_pose", record["ego_pose_token"])
    mount = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
    matrices = [transform_matrix(row["translation"], Quaternion(row["rotation"])) for row in (pose, mount)]
    return matrices[0] @ matrices[1]


def read_points(nusc: NuScenes, record: Row) -> NDArray[np.float32]:
    return np.fromfile(nusc.get_sample_data_path(record["token"]), np.float32).reshape(-1, 5)


def points_in_global(nusc: NuScenes, record: Row) -> Array:
    """Positions (point, 3)."""
    return move(pose_matrix(nusc, record), read_points(nusc, record)[:, :3].astype(float))


def move(matrix: Array, points: Array) -> Array:
    return points @ matrix[:3, :3].T + matrix[:3, 3]
