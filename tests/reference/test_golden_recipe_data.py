"""Resampling, objects and how they are pasted, against the published functions."""

import numpy as np

from cmt_aqr.data.resampling import balanced_frames
from tests.reference.golden_recipe import golden
from tests.shared_data import needs_reference

pytestmark = needs_reference


def test_class_balanced_frames() -> None:
    present = golden()["cbgs_present"]
    ours = balanced_frames(present, np.random.RandomState(0))
    np.testing.assert_array_equal(ours, golden()["cbgs_indices_seed0"])
    assert len(ours) == golden()["cbgs_total"]
    parts = np.split(balanced_frames(present, np.random.default_rng(5)), golden()["cbgs_draws_per_class"].cumsum())
    assert not len(parts[-1])
    for label, frames in enumerate(parts[:-1]):
        assert present[frames, label].all()
