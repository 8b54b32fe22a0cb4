"""The JSON files of a version: tables and splits, refused by name where they are none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmt_aqr.data.columns import TEXT, check_column, column_of, shown
from cmt_aqr.data.errors import DataError


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: it cannot be read, or is none in UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); download the version's metadata again"
        ) from error
    except (ValueError, RecursionError) as error:  # also for a number of thousands of digits
        raise DataError(
            f"{path} is not valid JSON in UTF-8 ({error}); download the version's metadata again"
        ) from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a table.

    Raises:
        DataError: the file is no list of records.
    """
    records = read_json(path)
    if not (isinstance(records, list) and set(map(type, records)) <= {dict}):
        raise DataError(f"{path} is no list of records; download the version's metadata again")
    return records


def read_splits(folder: Path) -> dict[str, list[str]]:
    """The splits of one's own in ``splits.json``: scene names by split; none where the file is absent.

    Args:
        folder: of the tables.

    Raises:
        DataError: the file holds something else.
    """
    path = folder / "splits.json"
    if not path.exists():
        return {}
    splits = read_json(path)
    if not isinstance(splits, dict):
        raise DataError(f'{path} must be lists of scene names by split, as in {{"mine": ["scene-0061"]}}')
    for name, scenes in splits.items():
        if not (isinstance(scenes, list) and scenes and TEXT.fits(scenes)):
            raise DataError(f'{path}: split "{name}" is {shown(scenes)}, and must be a list of scene names')
    return splits


def check_scenes(folder: Path, split: str, scenes: Sequence[str]) -> None:
    """See that the scenes of a split of one's own are there.

    Raises:
        DataError: naming the first that is not.
    """
    there = column_of(read_records(folder / "scene.json"), "scene", "name")
    check_column("scene", "name", there, there, TEXT)
    unknown = [scene for scene in scenes if scene not in set(there)]
    if unknown:
        raise DataError(
            f'{folder / "splits.json"}: split "{split}" names {shown(unknown[0])}, which is no name in '
            f"scene.json ({len(unknown)} of its {len(scenes)} scenes are not); correct the name"
        )
