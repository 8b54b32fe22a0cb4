"""RA and RRA: how much of its clean result a detector keeps, and how it compares with a baseline.

From MultiCorrupt (Beemelmanns et al., IV 2024, arXiv 2402.11677), with NDS:

    RA(c, s) = NDS(c, s) / NDS(clean),  RA(c) its mean over severities s,  mRA the mean of RA(c) over conditions c
    RRA(c)   = sum_s NDS(c, s) / sum_s NDS of the baseline(c, s) - 1,  mRRA its mean over conditions c

A suite without severities has one s. MoME's R is mRA there. Of a detector that hardly sees on clean frames both
are noise, and are unknown here: without any match, NDS is still up to about 8 points.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cmt_aqr.studies.published import CLEAN

LEAST_CLEAN = 10.0
"""NDS in points on clean frames, below which nothing is said of a detector's robustness."""


def by_condition(values: pd.Series) -> pd.Series:
    """Values by (condition, severity) as their mean by condition, without the clean one; order is kept.

    A condition of which a severity is missing is NaN.
    """
    failures = values[values.index.get_level_values(0) != CLEAN]
    return failures.groupby(level=0, sort=False).agg(lambda some: some.mean(skipna=False))


def resistance(values: pd.Series) -> pd.Series:
    """RA by condition.

    Args:
        values: NDS in points by (condition, severity); clean is ``("clean", 0)``. NaN is unknown.
    """
    whole = clean_of(values)
    return by_condition(values) / (whole if whole >= LEAST_CLEAN else np.nan)


def clean_of(values: pd.Series) -> float:
    """The value on clean frames; NaN where it is not known."""
    return float(values.get((CLEAN, 0), np.nan))


def relative_resistance(values: pd.Series, baseline: pd.Series) -> pd.Series:
    """RRA by condition, against a baseline's values of the same index, in points."""
    other = by_condition(baseline)
    known = (other != 0) & (clean_of(baseline) >= LEAST_CLEAN)
    return by_condition(values) / other.where(known) - 1


def mean_of_all(values: pd.Series) -> float:
    """The mean over conditions (mRA, mRRA); NaN where one is unknown, for a mean of others would be another."""
    return float(values.mean(skipna=False)) if len(values) else float("nan")
