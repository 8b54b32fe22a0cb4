"""RA and RRA: how much of its clean score a detector keeps, and how it compares with a baseline; published scores.

From MultiCorrupt (Beemelmanns et al., IV 2024, arXiv 2402.11677), with NDS:

    RA(c, s) = NDS(c, s) / NDS(clean),  RA(c) its mean over severities s,  mRA the mean of RA(c) over conditions c
    RRA(c)   = sum_s NDS(c, s) / sum_s NDS of the baseline(c, s) - 1,  mRRA its mean over conditions c

A mean is unknown (NaN) if one of its values is.
A suite without severities has one s; MoME's R is then mRA. For a detector that detects next to nothing on clean
frames, both are noise and therefore undefined here: even without any match, NDS can be about 8 points.

Values are NDS in points (times 100), a series by (condition, severity); clean is ``("clean", 0)``, NaN is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

CLEAN = "clean"

LEAST_CLEAN = 10.0
"""NDS in points on clean frames below which RA and RRA are undefined."""


def by_condition(values: pd.Series) -> pd.Series:
    """Mean over severities by condition, in order, without the clean one; NaN if a severity is missing."""
    failures = values[values.index.get_level_values(0) != CLEAN]
    return failures.groupby(level=0, sort=False).agg(lambda severities: severities.mean(skipna=False))


def clean_of(values: pd.Series) -> float:
    """The value on clean frames; NaN if unknown."""
    return float(values.get((CLEAN, 0), np.nan))


def resistance(values: pd.Series) -> pd.Series:
    """RA by condition."""
    clean = clean_of(values)
    return by_condition(values) / (clean if clean >= LEAST_CLEAN else np.nan)


def relative_resistance(values: pd.Series, baseline: pd.Series) -> pd.Series:
    """RRA by condition, against a baseline's values with the same index."""
    base = by_condition(baseline)
    return by_condition(values) / base.where((base != 0) & (clean_of(baseline) >= LEAST_CLEAN)) - 1


@dataclass(frozen=True)
class Published:
    """A model in ``published.yaml``."""

    model: str  # its name, with the backbone where there are several
    source: str
    nds: pd.Series  # in points, by condition and severity; may be empty
    mean_ra: float | None = None  # mRA as published
    mean_rra: float | None = None  # mRRA as published, in per cent, against the source's own baseline


def _published(nds: Mapping[str, float | list[float]] | None = None, **fields: Any) -> Published:
    scores: dict[tuple[str, int], float] = {}
    for name, values in (nds or {}).items():
        levels = enumerate(values, start=1) if isinstance(values, list) else [(0, values)]
        scores |= {(name, severity): value for severity, value in levels}
    index = pd.MultiIndex.from_tuples(list(scores), names=["condition", "severity"])
    return Published(nds=pd.Series(list(scores.values()), index=index, dtype=float), **fields)


def _read() -> dict[str, list[Published]]:
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    return {suite: [_published(**fields) for fields in models] for suite, models in yaml.safe_load(text).items()}


PUBLISHED = _read()
"""By suite."""
