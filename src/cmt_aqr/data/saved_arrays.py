"""Arrays derived from the tables, cached in one file with a stamp that identifies their source.

The file is mapped into memory, not read: loading is immediate, and all processes share its pages.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from cmt_aqr.data.errors import DataError
from cmt_aqr.files import atomic_write

log = logging.getLogger(__name__)


def save_arrays(path: Path, stamp: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays and their stamp to an ``.npy`` file, atomically: one record with a field per array.

    Raises:
        DataError: they have 2 GiB or more, ten times the index of trainval, which NumPy 1 cannot hold in a record.
    """
    fields = {"stamp": np.array(stamp.encode()), **arrays}
    if sum(array.nbytes + 16 for array in fields.values()) >= 2**31:
        raise DataError(f"{path}: the arrays of this split have 2 GiB or more; make splits of fewer scenes")
    layout = [(name, array.dtype, array.shape) for name, array in fields.items()]
    record = np.zeros((), np.dtype(layout, align=True))
    for name, array in fields.items():
        record[name] = array
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.save(file, record)


def load_arrays(path: Path, stamp: str, names: Iterable[str]) -> dict[str, NDArray[Any]] | None:
    """Map what :func:`save_arrays` wrote; ``None`` if it is missing, has another stamp, or is damaged (logged).

    The arrays are read-only. The file may be replaced while they are in use, but not modified.

    Raises:
        DataError: the path is a folder.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, but has the name of a cache file: remove or rename it")
    if not path.is_file():
        return None
    try:
        record = open_memmap(path, mode="r").view(np.ndarray)
        if record["stamp"].item().decode() != stamp:
            log.info("%s was made from other tables or settings: rebuilding it", path)
            return None
        return {name: record[name] for name in names}
    except Exception as error:  # NumPy's parser raises whatever a damaged header leads it to
        log.warning("The cache %s is damaged (%s): rebuilding it", path, error)
        return None
