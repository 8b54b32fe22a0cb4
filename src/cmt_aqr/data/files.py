"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_at_once(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; afterwards it replaces ``path``, or vanishes after an error.

    The folder is made where it is absent. Several processes may write the same file: the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
