"""Published results under sensor failures: those of ``published.yaml``, in points (NDS or mAP times 100)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CLEAN = "clean"


@dataclass(frozen=True)
class Published:
    """A model's row.

    Attributes:
        model: its name, with the weights where there are several.
        source: where the numbers stand.
        nds: by condition and severity; 0 where there are none, as of clean frames.
        mean_ra: mRA as published, where it is.
        mean_rra: mRRA as published, in per cent, against the source's own baseline.
    """

    model: str
    source: str
    nds: Mapping[tuple[str, int], float] = field(default_factory=dict)
    mean_ra: float | None = None
    mean_rra: float | None = None


def _read() -> dict[str, list[Published]]:
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    return {suite: [_published(**row) for row in rows] for suite, rows in yaml.safe_load(text).items()}


def _published(nds: Mapping[str, float | list[float]] | None = None, **row: Any) -> Published:
    found: dict[tuple[str, int], float] = {}
    for name, values in (nds or {}).items():
        levels = enumerate(values, start=1) if isinstance(values, list) else [(0, values)]
        found |= {(name, severity): value for severity, value in levels}
    return Published(nds=found, **row)


PUBLISHED = _read()
"""By suite."""
