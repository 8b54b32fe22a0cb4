"""Reference data beside the checkout; tests that need it are skipped where it is missing."""

import csv
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

SHARED = Path(os.environ.get("CMT_AQR_SHARED", Path(__file__).resolve().parents[3] / "shared"))
KEYFRAME = SHARED / "nuscenes-keyframe"
REFERENCE = SHARED / "reference"

needs_keyframe = pytest.mark.skipif(
    not KEYFRAME.is_dir(), reason=f"needs the real nuScenes keyframe at {KEYFRAME}"
)
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"needs the golden values of the published CMT at {REFERENCE}"
)


def parameter_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Official parameter names and shapes of a published variant, such as ``cmt_voxel0100_r50_800x320``."""
    with (REFERENCE / f"state_dict.{variant}.tsv").open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["parameter"]: tuple(int(n) for n in row["shape"].split("x") if n) for row in rows}


def official_state_dict(variant: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights by official name, by the rule in the README of the reference."""
    weights = {}
    for name, shape in parameter_shapes(variant).items():
        random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
            continue
        if name.endswith("running_var"):
            value = 0.5 + random.random(shape)
        elif name.endswith("running_mean"):
            value = 0.1 * random.standard_normal(shape)
        elif len(shape) <= 1:
            value = 0.1 * random.standard_normal(shape) + name.endswith("weight")
        elif name.endswith("reference_points.weight"):
            value = random.random(shape)
        else:
            value = random.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
        weights[name] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return weights
