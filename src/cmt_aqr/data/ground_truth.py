"""What nuScenes' official evaluation compares detections with, cached so that tables are read once."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuscenes import NuScenes
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import load_gt_of_sample_tokens
from nuscenes.eval.detection.data_classes import DetectionBox

from cmt_aqr.constants import LIDAR
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.tables import (
    cache_path,
    check_request,
    consistent_tables,
    fingerprint,
    open_tables,
    samples_of_split,
)
from cmt_aqr.files import check_folder, writing, written_at_once

log = logging.getLogger(__name__)

FORMAT = 2
_BIKE_RACK = "static_object.bicycle_rack"


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of a split in the form of the devkit's evaluation, and what its filters look up.

    Attributes:
        version: e.g. ``v1.0-trainval``.
        split: e.g. ``val``.
        tokens: sample tokens in the order of the devkit's sample table.
        boxes: the devkit's own boxes of every token: global frame, not filtered.
        ego_translations: of every token, where the car was at the LiDAR's time: x, y, z in metres,
            global frame.
        bike_racks: of every token, the annotated bicycle racks: translation, size, rotation.
    """

    version: str
    split: str
    tokens: tuple[str, ...]
    boxes: EvalBoxes
    ego_translations: dict[str, list[float]]
    bike_racks: dict[str, list[dict[str, list[float]]]]

    def get(self, table: str, token: str) -> dict[str, Any]:
        """Stand in for ``NuScenes.get`` in the devkit's ``add_center_dist`` and ``filter_eval_boxes``.

        They ask for the ego pose of a sample's LiDAR record and for its annotated bicycle racks. Tokens of
        those records are made up here: the sample's own, or the sample's with a rack's number.

        Raises:
            KeyError: another table is asked for.
        """
        if table == "sample":
            racks = range(len(self.bike_racks[token]))
            return {"data": {LIDAR: token}, "anns": [f"{token}/{rack}" for rack in racks]}
        if table == "sample_data":
            return {"ego_pose_token": token}
        if table == "ego_pose":
            return {"translation": self.ego_translations[token]}
        if table == "sample_annotation":
            sample, _, rack = token.rpartition("/")
            return {"category_name": _BIKE_RACK, **self.bike_racks[sample][int(rack)]}
        raise KeyError(f"the evaluation's tables hold no {table}")

    def save(self, path: Path, stamp: str) -> None:
        """Write JSON to ``path`` at once or not at all, stamped with what it was made from."""
        content = {
            "stamp": stamp,
            "tokens": self.tokens,
            "boxes": self.boxes.serialize(),
            "ego_translations": self.ego_translations,
            "bike_racks": self.bike_racks,
        }
        with written_at_once(path) as partial:
            partial.write_text(json.dumps(content))


def load_ground_truth(root: Path, version: str, split: str, cache_dir: Path) -> GroundTruth:
    """The ground truth of a split: from the cache while the tables are what they were, else made and cached.

    Raises:
        DataError: see :func:`cmt_aqr.data.tables.check_request`, or the split has no annotations at all.
    """
    check_request(root, version, split)
    stamp = f"format {FORMAT} {fingerprint(root, version)}"
    path = cache_path(cache_dir, "ground-truth", root, version, split, ".json")
    truth = _read(path, version, split, stamp)
    if truth is None:
        check_folder("data.cache_dir", cache_dir)
        with consistent_tables(root / version):
            truth = build_ground_truth(open_tables(root, version), split)
        with writing("data.cache_dir", cache_dir):
            truth.save(path, stamp)
    return truth


def _read(path: Path, version: str, split: str, stamp: str) -> GroundTruth | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        if content.pop("stamp") != stamp:
            log.info("The tables behind %s have changed: making it again", path)
            return None
        content["boxes"] = EvalBoxes.deserialize(content["boxes"], DetectionBox)
        content["tokens"] = tuple(content["tokens"])
        return GroundTruth(version, split, **content)
    except (ValueError, KeyError, TypeError) as error:
        log.warning("The cached ground truth %s is damaged (%s): making it again", path, error)
        return None


def build_ground_truth(tables: NuScenes, split: str) -> GroundTruth:
    """Make the ground truth of a split by the devkit's own loader.

    Raises:
        DataError: the split has no frame, or no annotation, as the official test split.
    """
    samples = samples_of_split(tables, split)
    if not any(sample["anns"] for sample in samples):
        raise DataError(f"split {split} of {tables.version} has no annotations: it cannot be evaluated here")
    for token in (token for sample in samples for token in sample["anns"]):
        if len(attributes := tables.get("sample_annotation", token)["attribute_tokens"]) > 1:
            raise DataError(
                f"sample_annotation.json, token {token}: attribute_tokens={attributes} must be one or none; mend "
                "the record, or download the version's metadata again"
            )
    tokens = tuple(sample["token"] for sample in samples)
    # The devkit's loader draws a bar even when it is told to be quiet; its errors still come through.
    with contextlib.redirect_stderr(io.StringIO()):
        boxes = load_gt_of_sample_tokens(tables, list(tokens), DetectionBox, verbose=False)
    for box in boxes.all:
        box.velocity = tuple(float(value) for value in box.velocity)
    ego, racks = {}, {}
    for sample in samples:
        lidar = tables.get("sample_data", sample["data"][LIDAR])
        ego[sample["token"]] = tables.get("ego_pose", lidar["ego_pose_token"])["translation"]
        annotations = [tables.get("sample_annotation", token) for token in sample["anns"]]
        racks[sample["token"]] = [
            {key: record[key] for key in ("translation", "size", "rotation")}
            for record in annotations
            if record["category_name"] == _BIKE_RACK
        ]
    return GroundTruth(tables.version, split, tokens, boxes, ego, racks)
