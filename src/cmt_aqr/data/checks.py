"""What the nuScenes tables must hold; a record that does not is refused by table, token and field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cmt_aqr.data.columns import (
    AT_MOST_ONE,
    ATTRIBUTE,
    CATEGORY,
    COUNT,
    FLAG,
    INTRINSICS,
    LINK,
    MOUNT,
    PATH,
    POSITION,
    ROTATION,
    SIZE,
    TEXT,
    TIME,
    TOKENS,
    Numbers,
    Records,
    Words,
    check_column,
    check_links,
    check_order,
    check_tokens,
    column_of,
    refused,
)
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.table_files import read_records

FIELDS: dict[str, dict[str, Numbers | Words]] = {
    "category": {"name": CATEGORY},
    "attribute": {"name": ATTRIBUTE},
    "visibility": {},
    "instance": {"category_token": TEXT},
    "sensor": {"channel": TEXT, "modality": TEXT},
    "calibrated_sensor": {
        "sensor_token": TEXT,
        "translation": MOUNT,
        "rotation": ROTATION,
        "camera_intrinsic": INTRINSICS,
    },
    "ego_pose": {"translation": POSITION, "rotation": ROTATION},
    "log": {},
    "scene": {"name": TEXT},
    "sample": {"timestamp": TIME, "scene_token": TEXT, "prev": LINK, "next": LINK},
    "sample_data": {
        "sample_token": TEXT,
        "ego_pose_token": TEXT,
        "calibrated_sensor_token": TEXT,
        "timestamp": TIME,
        "is_key_frame": FLAG,
        "filename": PATH,
        "prev": LINK,
        "next": LINK,
    },
    "sample_annotation": {
        "sample_token": TEXT,
        "instance_token": TEXT,
        "attribute_tokens": AT_MOST_ONE,
        "translation": POSITION,
        "size": SIZE,
        "rotation": ROTATION,
        "num_lidar_pts": COUNT,
        "num_radar_pts": COUNT,
        "prev": LINK,
        "next": LINK,
    },
    "map": {"log_tokens": TOKENS, "filename": PATH},
}
"""The fields that the devkit and we read, by table in the order of nuScenes, and what each holds."""

REFERENCES: dict[str, dict[str, str]] = {
    "instance": {"category_token": "category"},
    "calibrated_sensor": {"sensor_token": "sensor"},
    "sample": {"scene_token": "scene", "prev": "sample", "next": "sample"},
    "sample_data": {
        "sample_token": "sample",
        "ego_pose_token": "ego_pose",
        "calibrated_sensor_token": "calibrated_sensor",
        "prev": "sample_data",
        "next": "sample_data",
    },
    "sample_annotation": {
        "sample_token": "sample",
        "instance_token": "instance",
        "attribute_tokens": "attribute",
        "prev": "sample_annotation",
        "next": "sample_annotation",
    },
}
"""The tables whose tokens the fields hold."""

MAY_BE_EMPTY = ("sample_annotation", "instance", "attribute", "visibility")


@dataclass
class TableChecks:
    """Checks the tables of a folder as they are read, each against those before it.

    Attributes:
        folder: of the tables.
        known: tokens by table, of what was checked, and "".
    """

    folder: Path
    known: dict[str, set[str]] = field(default_factory=dict)
    _times: dict[str, float] = field(default_factory=dict)

    def read(self, table: str) -> list[dict[str, Any]]:
        """The records of a table; of the thirteen of nuScenes they are checked.

        Raises:
            DataError: naming the file, and where there is one, the record's token and field.
        """
        records = read_records(self.folder / f"{table}.json")
        if table in FIELDS:
            self.check(table, records)
        return records

    def check(self, table: str, records: Records) -> None:
        """See that records are what they must be, and refer to records that are there."""
        if not records and table not in MAY_BE_EMPTY:
            raise DataError(f"{self.folder / table}.json has no record; download the version's metadata again")
        tokens = check_tokens(table, records)
        self.known[table] = {"", *tokens}
        columns = {name: column_of(records, table, name) for name in FIELDS[table]}
        for name, column in columns.items():
            check_column(table, name, column, tokens, FIELDS[table][name])
        for name, target in REFERENCES.get(table, {}).items():
            check_links(table, name, columns[name], tokens, target, self.known[target])
        if table == "map":
            self._check_logs(columns["log_tokens"])
        if table == "sample":
            self._times = dict(zip(tokens, columns["timestamp"], strict=True))
        if "prev" in columns:
            of = columns.get("timestamp") or [self._times[sample] for sample in columns["sample_token"]]
            times = np.array(of, dtype=np.float64)
            check_order(table, tokens, columns["prev"], columns["next"], times, equal=table == "sample_data")

    def _check_logs(self, of_maps: Sequence[Sequence[str]]) -> None:
        """The devkit looks for every log's map."""
        without = self.known["log"].difference(("",), *of_maps)
        if without:
            raise refused("log", min(without), "no record of map.json has this token in its log_tokens")
