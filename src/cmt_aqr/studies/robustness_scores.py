"""RA and RRA: how much of its clean result a detector keeps, and how it compares with a baseline.

From MultiCorrupt (Beemelmanns et al., IV 2024, arXiv 2402.11677), with NDS:

    RA(c, s) = NDS(c, s) / NDS(clean),  RA(c) its mean over severities s,  mRA the mean of RA(c) over conditions c
    RRA(c)   = sum_s NDS(c, s) / sum_s NDS of the baseline(c, s) - 1,  mRRA its mean over conditions c

A suite without severities has one s. MoME's R is mRA there.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cmt_aqr.studies.published import CLEAN


def by_condition(values: pd.Series) -> pd.Series:
    """Values by (condition, severity) as their mean by condition, without the clean one; order is kept.

    A condition of which a severity is missing is NaN.
    """
    failures = values[values.index.get_level_values(0) != CLEAN]
    return failures.groupby(level=0, sort=False).agg(lambda some: some.mean(skipna=False))


def resistance(values: pd.Series) -> pd.Series:
    """RA by condition.

    Args:
        values: NDS by (condition, severity); clean is ``("clean", 0)``. NaN is unknown.
    """
    clean = values[values.index.get_level_values(0) == CLEAN]
    whole = float(clean.iloc[0]) if len(clean) else np.nan
    return by_condition(values) / (whole if whole else np.nan)


def relative_resistance(values: pd.Series, baseline: pd.Series) -> pd.Series:
    """RRA by condition, against a baseline's values of the same index."""
    other = by_condition(baseline)
    return by_condition(values) / other.where(other != 0) - 1


def mean_of_all(values: pd.Series) -> float:
    """The mean over conditions (mRA, mRRA); NaN where one is unknown, for a mean of others would be another."""
    return float(values.mean(skipna=False)) if len(values) else float("nan")
