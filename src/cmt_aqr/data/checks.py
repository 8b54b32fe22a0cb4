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
    read_column,
    refused,
)
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.tokens import TokenRows, bytes_of

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

LARGE = ("ego_pose",)
"""Tables so large that references to them are looked up all at once."""

MAY_LACK = ("category", "attribute", "visibility", "instance", "sample_annotation")
"""Tables without which a split without annotations can be read."""

MAY_BE_EMPTY = ("sample_annotation", "instance", "attribute", "visibility")


class TableChecks:
    """Checks the tables of a folder as they are read, piece by piece, each against those before it.

    Attributes:
        rows: of each table that was read whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, TokenRows] = {}
        self._read = 0
        self._tokens: list[NDArray[np.bytes_]] = []
        self._links: dict[str, list[NDArray[np.bytes_]]] = {}

    def check(self, table: str, records: Records) -> dict[str, Any]:
        """See that some more records of a table are what they must be, and refer to records that are there.

        Returns:
            By field: numbers as an array (record, *shape) of float64, references as rows (record,) of int64, -1
            for none, all else as a list. Fields that refer to the table itself, or to a large one, come with
            :meth:`finish`.

        Raises:
            DataError: naming the table, and where there is one, the record's token and field.
        """
        first = self._read
        tokens = column_of(records, table, "token", first)
        check_column(table, "token", tokens, range(first, first + len(tokens)), TEXT)
        self._read += len(tokens)
        self._tokens.append(bytes_of(tokens))
        columns: dict[str, Any] = {"token": tokens}
        for name, kind in FIELDS[table].items():
            column = column_of(records, table, name)
            target = REFERENCES.get(table, {}).get(name)
            if isinstance(kind, Numbers):
                columns[name] = read_column(table, name, column, tokens, kind)
                continue
            check_column(table, name, column, tokens, kind)
            if target == table or target in LARGE:
                self._links.setdefault(name, []).append(bytes_of(column))
            elif target is not None:
                optional = kind is AT_MOST_ONE
                links = bytes_of([one[0] if one else "" for one in column] if optional else column)
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
            Rows (record,) by field, -1 for none, of references to the table itself and to large ones.

        Raises:
            DataError: see :meth:`check`.
        """
        tokens, links = np.concatenate(self._tokens), self._links
        self._read, self._tokens, self._links = 0, [], {}
        absent = table in MAY_LACK and not (self.folder / f"{table}.json").exists()
        if not len(tokens) and table not in MAY_BE_EMPTY and not absent:
            raise DataError(f"{self.folder / table}.json has no record; download the version's metadata again")
        rows = self.rows[table] = TokenRows(tokens)
        twice = rows.twice()
        if twice is not None:
            raise refused(table, tokens[twice].decode(), "token is that of two records, and must be of one")
        found = {}
        for name, pieces in links.items():
            target = REFERENCES[table][name]
            own = target == table
            found[name] = linked(
                self.rows[target], np.concatenate(pieces), tokens, table, name, target, may_end=own
            )
            if own:
                assert times is not None
                check_order(table, name, found[name], times, tokens, equal=table == "sample_data")
        return found

    def forget(self, *tables: str) -> None:
        """Let go of the tokens of tables that no other refers to."""
        for table in tables:
            del self.rows[table]

    def check_logs(self, of_maps: Sequence[Sequence[str]]) -> None:
        """See that every log has a map, for which the devkit looks."""
        logs = [token.decode() for token in self.rows["log"].tokens.tolist()]
        without = set(logs).difference(*of_maps)
        if without:
            raise refused("log", min(without), "no record of map.json has this token in its log_tokens")
