"""What the nuScenes tables must hold; a record that does not is refused by table, token and field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    check_order,
    column_of,
    linked,
    numbered,
    read_column,
    refused,
)
from cmt_aqr.data.errors import DataError

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

MAY_LACK = ("category", "attribute", "visibility", "instance", "sample_annotation")
"""Tables without which a split without annotations can be read."""

MAY_BE_EMPTY = ("sample_annotation", "instance", "attribute", "visibility")


class TableChecks:
    """Checks the tables of a folder as they are read, piece by piece, each against those before it.

    Attributes:
        rows: row by token of each table that was read whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, dict[str, int]] = {}
        self._tokens: list[str] = []
        self._links: dict[str, list[str]] = {}

    def check(self, table: str, records: Records) -> dict[str, Any]:
        """See that some more records of a table are what they must be, and refer to records that are there.

        Returns:
            By field: numbers as an array (record, *shape) of float64, references as rows (record,) of int64, -1
            for none, all else as a list. Fields that refer to the table itself come with :meth:`finish`.

        Raises:
            DataError: naming the table, and where there is one, the record's token and field.
        """
        first = len(self._tokens)
        tokens = column_of(records, table, "token", first)
        check_column(table, "token", tokens, range(first, first + len(tokens)), TEXT)
        self._tokens += tokens
        columns: dict[str, Any] = {"token": tokens}
        for name, kind in FIELDS[table].items():
            column = column_of(records, table, name)
            target = REFERENCES.get(table, {}).get(name)
            if isinstance(kind, Numbers):
                columns[name] = read_column(table, name, column, tokens, kind)
                continue
            check_column(table, name, column, tokens, kind)
            if target == table:
                self._links.setdefault(name, []).extend(column)
            elif target is not None:
                optional = kind is AT_MOST_ONE
                links = [one[0] if one else "" for one in column] if optional else column
                columns[name] = linked(self.rows[target], links, tokens, table, name, target, may_end=optional)
            else:
                columns[name] = column
        return columns

    def finish(self, table: str, times: NDArray[np.int64] | None = None) -> dict[str, NDArray[np.int64]]:
        """See what can be seen of a table once all of it was read.

        Args:
            table: its name.
            times: (record,) microseconds, of a table with chains.

        Returns:
            Rows (record,) by field, -1 for none: ``prev`` and ``next`` where the table has them.

        Raises:
            DataError: see :meth:`check`.
        """
        tokens, links = self._tokens, self._links
        self._tokens, self._links = [], {}
        absent = table in MAY_LACK and not (self.folder / f"{table}.json").exists()
        if not tokens and table not in MAY_BE_EMPTY and not absent:
            raise DataError(f"{self.folder / table}.json has no record; download the version's metadata again")
        rows = self.rows[table] = numbered(tokens, table)
        found = {}
        for name, column in links.items():
            found[name] = linked(rows, column, tokens, table, name, table, may_end=True)
            assert times is not None
            check_order(table, name, found[name], times, tokens, equal=table == "sample_data")
        return found

    def forget(self, *tables: str) -> None:
        """Let go of the tokens of tables that no other refers to."""
        for table in tables:
            del self.rows[table]

    def check_logs(self, of_maps: Sequence[Sequence[str]]) -> None:
        """See that every log has a map, for which the devkit looks."""
        without = set(self.rows["log"]).difference(*of_maps)
        if without:
            raise refused("log", min(without), "no record of map.json has this token in its log_tokens")
