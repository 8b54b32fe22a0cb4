"""The database of objects that are pasted into training frames: points, patches and boxes, in few large files.

``entries.npy`` has a row of fixed size per object, ordered by class, and is mapped into memory. Data of variable
length are in ``part-0000.points`` and ``part-0000.patches``, a few hundred frames each, and are read as needed, so
that processes share the system's file cache. ``database.json`` describes the contents.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.constants import CLASSES, POINT_FEATURES
from cmt_aqr.data.errors import DataError
from cmt_aqr.files import read_json

FORMAT = 1
"""Increase it when the meaning of the files changes."""

ENTRY = np.dtype(
    [
        ("label", np.int8),
        ("view", np.int8),
        ("part", np.int16),
        ("frame", np.int32),
        ("points_at", np.int64),
        ("points", np.int32),
        ("patch_at", np.int64),
        ("rectangle", np.int16, (4,)),
        ("picture", np.int16, (2,)),
        ("depth", np.float32),
        ("box", np.float32, (9,)),
    ]
)
"""An object: its class; the view of its patch, -1 without one; its part; and its frame in the split.

Its ``points`` points start at row ``points_at`` of the part. Its patch starts at byte ``patch_at``, and was cut
out of ``rectangle`` (x0, y0, x1, y1, end exclusive) of a picture of ``picture`` (height, width) pixels, at
``depth`` metres. ``box`` is given by its centre, in the LiDAR frame of its keyframe."""

DESCRIPTION, ENTRIES = "database.json", "entries.npy"
_POINT_BYTES = 4 * POINT_FEATURES


@dataclass(frozen=True)
class Contents:
    """The settings that determine a database."""

    tables: str  # fingerprint of the tables
    version: str  # e.g. v1.0-trainval
    split: str  # source of the frames
    frames: int  # number of frames
    sweeps: int  # maximum number of sweeps before the keyframe's
    cameras: bool  # whether there are patches
    min_points: int  # minimum number of points of an object, over all sweeps
    patch_camera: str  # see cmt_aqr.data.views.patches_of
    patch_behind: str  # see cmt_aqr.data.views.patches_of

    @property
    def stamp(self) -> str:
        """Identifies these contents in this format."""
        return f"format {FORMAT} {json.dumps(dataclasses.asdict(self), sort_keys=True)}"

    def folder(self, cache_dir: Path, root: Path) -> Path:
        """The cache folder: one per data root and settings, so that changed tables replace the database in it."""
        settings = dataclasses.asdict(self) | {"tables": str(root.resolve())}
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return cache_dir / f"objects-{self.version}-{self.split}-{key}"


def part_path(folder: Path, part: int, suffix: str) -> Path:
    """A file of a part: ``points``, float32 (point, 5), or ``patches``, uint8 (height, width, 3), concatenated."""
    return folder / f"part-{part:04d}.{suffix}"


def check_part(folder: Path, part: int, sizes: Sequence[int]) -> None:
    """Raise a ``DataError`` unless the files of a part have their sizes, in bytes."""
    for suffix, size in zip(("points", "patches"), sizes, strict=True):
        path = part_path(folder, part, suffix)
        actual = path.stat().st_size if path.is_file() else 0
        if actual != size:
            state = "truncated" if path.is_file() else "missing"
            raise DataError(f"{path} is {state}: {actual} of {size} bytes; delete it, and it is rebuilt")


def difference(description: Mapping[str, Any], contents: Contents) -> str | None:
    """How an existing database, by its description, differs from the requested one, if it does."""
    if not description:
        return None
    if description.get("format") != FORMAT:
        return f"is of format {description.get('format')}, and the current format is {FORMAT}"
    made_of = description.get("made_of", {})
    for key, value in dataclasses.asdict(contents).items():
        if made_of.get(key) != value:
            if key == "tables":
                return f"was made from other tables of {contents.version} than data.root's, or these have changed"
            return f"was made with {key}={made_of.get(key)}, and {key}={value} is requested"
    return None


def read_description(folder: Path) -> dict[str, Any]:
    """The contents of ``database.json`` in a folder; empty if there is none.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_json(folder / DESCRIPTION)
    except (ValueError, OSError) as error:
        raise DataError(
            f"{folder / DESCRIPTION} cannot be read ({error}): delete it, and what is missing is rebuilt"
        ) from error


class ObjectDatabase:
    """Random access to the objects of a complete database.

    Raises:
        DataError: there is none, it has other contents or another format, or it is damaged.
    """

    def __init__(self, folder: Path, contents: Contents) -> None:
        self.folder, self.contents = folder, contents
        description = read_description(folder)
        if not description:
            raise DataError(f"{folder} holds no complete database of objects: run scripts/make_database.py")
        differs = difference(description, contents)
        if differs is not None:
            raise DataError(f"the database of objects in {folder} {differs}: delete it, or name another folder")
        for part, sizes in enumerate(description["parts"]):
            check_part(folder, part, sizes)
        _check_entries(self.entries, description["parts"], folder)
        self.starts: NDArray[np.int64] = np.searchsorted(self.entries["label"], np.arange(len(CLASSES) + 1))
        """(class + 1,) objects of class c are rows ``starts[c]:starts[c + 1]``."""

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped entries, which each process maps itself."""
        return {key: value for key, value in vars(self).items() if key != "entries"}

    @functools.cached_property
    def entries(self) -> NDArray[np.void]:
        """All objects (object,) as :data:`ENTRY`, ordered by class."""
        path = self.folder / ENTRIES
        try:
            entries: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}): delete it, and it is rebuilt") from error
        if entries.dtype != ENTRY:
            raise DataError(f"{path} does not hold objects of format {FORMAT}: delete {self.folder}")
        return entries

    def points(self, row: int) -> NDArray[np.float32]:
        """Points (point, 5) of an object, relative to the centre of its box's **bottom**; with intensity, lag."""
        entry = self.entries[row]
        shape = (int(entry["points"]), POINT_FEATURES)
        return self._read(entry["part"], "points", entry["points_at"] * _POINT_BYTES, np.float32, shape)

    def patch(self, row: int) -> NDArray[np.uint8] | None:
        """The patch (height, width, 3) of an object, BGR, or ``None``."""
        entry = self.entries[row]
        if entry["view"] < 0:
            return None
        x0, y0, x1, y1 = entry["rectangle"].tolist()
        return self._read(entry["part"], "patches", entry["patch_at"], np.uint8, (y1 - y0, x1 - x0, 3))

    def _read(self, part: int, suffix: str, offset: int, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
        path = part_path(self.folder, part, suffix)
        try:
            return np.fromfile(path, dtype, count=int(np.prod(shape)), offset=int(offset)).reshape(shape)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}): delete it, and it is rebuilt") from error


def _check_entries(entries: NDArray[np.void], parts: list[list[int]], folder: Path) -> None:
    """Check that objects lie within the files, and patches within the pictures they were cut from."""
    sizes = np.array(parts, dtype=np.int64).reshape(-1, 2)
    part = entries["part"].astype(np.int64)
    valid = (part >= 0) & (part < len(sizes)) & (entries["label"] >= 0) & (entries["label"] < len(CLASSES))
    sizes = sizes[np.where(valid, part, 0)] if len(sizes) else np.zeros((len(entries), 2), dtype=np.int64)
    end = (entries["points_at"] + entries["points"]) * _POINT_BYTES
    valid &= (entries["points_at"] >= 0) & (entries["points"] >= 0) & (end <= sizes[:, 0])
    x0, y0, x1, y1 = entries["rectangle"].astype(np.int64).T
    height, width = entries["picture"].astype(np.int64).T
    within = (x0 >= 0) & (y0 >= 0) & (x0 < x1) & (y0 < y1) & (x1 <= width) & (y1 <= height)
    stored = (entries["patch_at"] >= 0) & (entries["patch_at"] + 3 * (x1 - x0) * (y1 - y0) <= sizes[:, 1])
    no_patch = entries["view"] < 0
    for condition, problem in (
        (valid, "lies outside the files"),
        (no_patch | within, "has a patch that lies outside its picture"),
        (no_patch | stored, "has a patch that lies outside the files"),
    ):
        if not condition.all():
            row = int(np.argmin(condition))
            raise DataError(
                f"{folder / ENTRIES} is damaged: object {row} {problem} (rectangle "
                f"{entries['rectangle'][row].tolist()} of {entries['picture'][row].tolist()}); delete {folder}, "
                "and it is rebuilt"
            )
