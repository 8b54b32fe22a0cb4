"""Sweeps: many runs from one command, in a folder that can be gone on with, and a summary at the end.

What a run is told by is its overrides, and how it ended stands in its folder; so it does not matter in which
process, on which machine or in which order the runs took place.
"""

from cmt_aqr.sweeps.job import in_sweep, run
from cmt_aqr.sweeps.whole import SweepCallback, finish

__all__ = ["SweepCallback", "finish", "in_sweep", "run"]
