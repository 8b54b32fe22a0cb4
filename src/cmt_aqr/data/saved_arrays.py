"""Arrays made from the tables, cached in one file that says what they were made from."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.files import written_at_once

log = logging.getLogger(__name__)


def save_arrays(path: Path, stamp: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write to ``path`` at once or not at all, stamped with what the arrays were made from."""
    with written_at_once(path) as partial, partial.open("wb") as file:
        np.savez(file, stamp=np.bytes_(stamp.encode()), **arrays)


def load_arrays(path: Path, stamp: str, names: Iterable[str]) -> dict[str, NDArray[Any]] | None:
    """Read what :func:`save_arrays` wrote; None where it is absent, of another stamp, or damaged (logged)."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if bytes(file["stamp"].item()).decode() != stamp:
                log.info("The tables behind %s have changed: making it again", path)
                return None
            return {name: file[name] for name in names}
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        log.warning("The cache %s is damaged (%s): making it again", path, error)
        return None
