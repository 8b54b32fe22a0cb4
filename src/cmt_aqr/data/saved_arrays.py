"""Arrays made from the tables, cached in one file that says what they were made from.

The file is mapped into memory, not read: it costs no time at a start, and all processes share its pages.
"""

from __future__ import annotations

import logging
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.data.errors import DataError
from cmt_aqr.files import written_at_once

log = logging.getLogger(__name__)


def save_arrays(path: Path, stamp: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write to ``path`` at once or not at all, stamped with what the arrays were made from."""
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with written_at_once(path) as partial, partial.open("wb") as file:
        np.savez(file, stamp=np.bytes_(stamp.encode()), **plain)


def load_arrays(path: Path, stamp: str, names: Iterable[str]) -> dict[str, NDArray[Any]] | None:
    """Map what :func:`save_arrays` wrote; None where it is absent, of another stamp, or damaged (logged).

    The arrays cannot be written to. The file may be replaced while they are in use, but not changed.

    Raises:
        DataError: a folder has the file's name.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, but has the name of a file of the cache: remove or rename it")
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if str(_mapped(path, file, members["stamp"]).astype(np.str_)) != stamp:
                log.info("The tables behind %s have changed: making it again", path)
                return None
            return {name: _mapped(path, file, members[name]) for name in names}
    except (ValueError, KeyError, EOFError, OSError, struct.error, zipfile.BadZipFile) as error:
        log.warning("The cache %s is damaged (%s): making it again", path, error)
        return None


_LOCAL_HEADER = 30
"""Bytes of a member's header in a zip file before name and extra field, whose lengths end it (APPNOTE 4.3.7)."""


def _mapped(path: Path, file: BinaryIO, member: zipfile.ZipInfo) -> NDArray[Any]:
    """An array of an ``.npz`` that ``np.savez`` wrote, which does not compress; in C order.

    Raises:
        ValueError: it is of Python objects, or no array.
    """
    file.seek(member.header_offset + _LOCAL_HEADER - 4)
    file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} is no array of plain values")
    if 0 in shape:
        return np.zeros(shape, dtype)
    mapped: NDArray[Any] = np.memmap(path, dtype, "r", file.tell(), shape)
    return mapped.view(np.ndarray)
