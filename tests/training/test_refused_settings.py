"""Settings out of range are refused by name and value."""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from cmt_aqr.aqr import AQR, AttentionBias, Modulator, Renderer, WeightGenerator, WindowReader
from cmt_aqr.errors import SettingError
from cmt_aqr.training.clamp import ClampSchedule
from cmt_aqr.training.monitor import AQRMonitor
from cmt_aqr.training.plan import RunPlan

aqr = partial(AQR, *cast(Any, (None, None, None)))
monitor = partial(AQRMonitor, Path())
distance_weighted = partial(Renderer, "distance_weighted")
learned = partial(Modulator, learnable_modulation=True)
one_head = partial(WeightGenerator, num_heads=1)
bias = partial(AttentionBias, WindowReader())

REFUSED: list[tuple[Callable[..., object], str, Any]] = [
    (Renderer, "render_method", "gausian"),
    (Renderer, "gaussian_sigma", 0),
    (Renderer, "gaussian_sigma", "wide"),
    (Renderer, "kernel_normalization", "l2"),
    (distance_weighted, "distance_decay", -0.1),
    (distance_weighted, "reach_fraction", 1.5),
    (distance_weighted, "reach_fraction", 0),
    (Renderer, "min_weight_threshold", -1),
    (Renderer, "normalize_weights", "yes"),
    (Renderer, "clamp_mode", "softer"),
    (Renderer, "max_weight_clamp", -1),
    (Renderer, "max_weight_clamp", math.inf),
    (Renderer, "bev_feature_shape", [128]),
    (Renderer, "pers_feature_shape", [6, 0, 5]),
    (Modulator, "modulation_type", "elementwise"),
    (Modulator, "residual_weight", 1.2),
    (Modulator, "residual_weight", -0.1),
    (Modulator, "residual_weight", None),
    (Modulator, "residual_connection", 1),
    (Modulator, "normalize_weights", "minmax"),
    (Modulator, "activation", "gelu"),
    (learned, "residual_weight", 1.0),
    (partial(Modulator, residual_connection=False), "learnable_modulation", True),
    (WeightGenerator, "bev_window", 4),
    (WeightGenerator, "image_window", 0),
    (WeightGenerator, "image_window", 15.0),
    (WeightGenerator, "num_heads", 3),
    (WeightGenerator, "depth", 0),
    (WeightGenerator, "dropout", 1.0),
    (WeightGenerator, "bias_init", "high"),
    (WeightGenerator, "max_views", 0),
    (WeightGenerator, "embed_dims", True),
    (one_head, "split_heads", True),
    (aqr, "draw", "denoising"),
    (bias, "beta", "best"),
    (bias, "groups", "cameras"),
    (bias, "limit", 0),
    (bias, "strength", -1),
    (ClampSchedule, "mode", "cubic"),
    (monitor, "every_n_steps", 0),
    (monitor, "histogram_bins", 1.5),
    (monitor, "max_over_mean_limit", -1),
    (RunPlan, "steps", 0),
]


@pytest.mark.parametrize(("part", "name", "value"), REFUSED)
def test_a_value_out_of_range_is_refused_by_its_name(part: Callable[..., object], name: str, value: Any) -> None:
    shown = str(value).lower() if isinstance(value, bool) else "null" if value is None else value
    with pytest.raises(SettingError, match="^" + re.escape(f"{name}={shown}: must be ")):
        part(**{name: value})
