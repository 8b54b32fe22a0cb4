"""Arrays made from the tables, cached in one file that says what they were made from."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.data.errors import DataError
from cmt_aqr.files import written_at_once

log = logging.getLogger(__name__)

Layout = Mapping[str, tuple[str, tuple[str | int, ...]]]
"""Arrays by name: the kind of their type (``f``, ``i``, ``S`` or ``U``) and their shape.

A size that has a name, as ``box``, is the same wherever that name stands; ``box+1`` is one more.
"""


def save_arrays(path: Path, stamp: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write to ``path`` at once or not at all, stamped with what the arrays were made from."""
    with written_at_once(path) as partial, partial.open("wb") as file:
        np.savez(file, stamp=np.bytes_(stamp.encode()), **arrays)


def load_arrays(path: Path, stamp: str, layout: Layout) -> dict[str, NDArray[Any]] | None:
    """Read what :func:`save_arrays` wrote; None where it is absent, of another stamp, or damaged (logged).

    Raises:
        DataError: a folder has the file's name.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, but has the name of a file of the cache: remove or rename it")
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["stamp"].astype(np.str_)) != stamp:
                log.info("The tables behind %s have changed: making it again", path)
                return None
            arrays = {name: file[name] for name in layout}
        check_layout(arrays, layout)
        return arrays
    except (ValueError, TypeError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        report_damage(path, error)
        return None


def report_damage(path: Path, reason: object) -> None:
    """Say that a cache is made again."""
    log.warning("The cache %s is damaged (%s): making it again", path, reason)


def check_layout(arrays: Mapping[str, NDArray[Any]], layout: Layout) -> None:
    """See that arrays are of the types and shapes of a layout.

    Raises:
        ValueError: naming the first that is not.
    """
    sizes: dict[str, int] = {}
    for name, (kind, shape) in layout.items():
        array = arrays[name]
        fits = array.dtype.kind == kind and array.ndim == len(shape)
        for size, wanted in zip(array.shape, shape, strict=False):
            if isinstance(wanted, int):
                fits &= size == wanted
            else:
                of, _, more = wanted.partition("+")
                fits &= size - int(more or 0) == sizes.setdefault(of, size - int(more or 0))
        if not fits:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, and must be {kind} {shape} with {sizes}")
