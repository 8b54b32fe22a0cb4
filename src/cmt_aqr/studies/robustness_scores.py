"""RA and RRA: how much of its clean result a detector keeps, and how it compares with a baseline; published rows.

From MultiCorrupt (Beemelmanns et al., IV 2024, arXiv 2402.11677), with NDS:

    RA(c, s) = NDS(c, s) / NDS(clean),  RA(c) its mean over severities s,  mRA the mean of RA(c) over conditions c
    RRA(c)   = sum_s NDS(c, s) / sum_s NDS of the baseline(c, s) - 1,  mRRA its mean over conditions c

A suite without severities has one s. MoME's R is mRA there. Of a detector that hardly sees on clean frames both
are noise, and are unknown here: without any match, NDS is still up to about 8 points.

Values are NDS in points (times 100) by (condition, severity), a series; clean is ``("clean", 0)``, NaN is unknown.
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
"""NDS in points on clean frames, below which nothing is said of a detector's robustness."""


def by_condition(values: pd.Series) -> pd.Series:
    """Mean over severities by condition, in order, without the clean one; NaN where a severity is missing."""
    failures = values[values.index.get_level_values(0) != CLEAN]
    return failures.groupby(level=0, sort=False).agg(lambda some: some.mean(skipna=False))


def clean_of(values: pd.Series) -> float:
    """The value on clean frames; NaN where it is not known."""
    return float(values.get((CLEAN, 0), np.nan))


def resistance(values: pd.Series) -> pd.Series:
    """RA by condition."""
    whole = clean_of(values)
    return by_condition(values) / (whole if whole >= LEAST_CLEAN else np.nan)


def relative_resistance(values: pd.Series, baseline: pd.Series) -> pd.Series:
    """RRA by condition, against a baseline's values of the same index."""
    other = by_condition(baseline)
    known = (other != 0) & (clean_of(baseline) >= LEAST_CLEAN)
    return by_condition(values) / other.where(known) - 1


def mean_of_all(values: pd.Series) -> float:
    """The mean over conditions (mRA, mRRA); NaN where one is unknown, for a mean of others would be another."""
    return float(values.mean(skipna=False)) if len(values) else float("nan")


@dataclass(frozen=True)
class Published:
    """A model's row in ``published.yaml``.

    Attributes:
        model: its name, with the weights where there are several.
        source: where the numbers stand.
        nds: in points, by condition and severity; may be empty.
        mean_ra: mRA as published, where it is.
        mean_rra: mRRA as published, in per cent, against the source's own baseline.
    """

    model: str
    source: str
    nds: pd.Series
    mean_ra: float | None = None
    mean_rra: float | None = None


def _published(nds: Mapping[str, float | list[float]] | None = None, **row: Any) -> Published:
    found: dict[tuple[str, int], float] = {}
    for name, values in (nds or {}).items():
        levels = enumerate(values, start=1) if isinstance(values, list) else [(0, values)]
        found |= {(name, severity): value for severity, value in levels}
    index = pd.MultiIndex.from_tuples(list(found), names=["condition", "severity"])
    return Published(nds=pd.Series(list(found.values()), index=index, dtype=float), **row)


def _read() -> dict[str, list[Published]]:
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    return {suite: [_published(**row) for row in rows] for suite, rows in yaml.safe_load(text).items()}


PUBLISHED = _read()
"""By suite."""
