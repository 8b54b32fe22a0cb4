"""Published results under sensor failures, in points (NDS or mAP times 100).

Only what was read in the named source stands here. What is not known is left out, and stays empty in tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CLEAN = "clean"
SEVERITIES = (1, 2, 3)


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


_MOME_README = "README of konyul/MoME"
_MULTICORRUPT = "ika-rwth-aachen/MultiCorrupt, evaluation and README; RRA against BEVFusion"


def _plain(**nds: float) -> dict[tuple[str, int], float]:
    return {(name, 0): value for name, value in nds.items()}


def _by_severity(clean: float, **nds: tuple[float, float, float]) -> dict[tuple[str, int], float]:
    rows: dict[tuple[str, int], float] = {(CLEAN, 0): clean}
    for name, values in nds.items():
        rows |= {(name, severity): value for severity, value in zip(SEVERITIES, values, strict=True)}
    return rows


PUBLISHED: dict[str, list[Published]] = {
    "mome": [
        Published(
            "MoME",
            _MOME_README,
            _plain(
                clean=73.6,
                beams4_horizon=63.0,
                lidar_drop=48.2,
                fov60=58.3,
                object_failure=71.0,
                view_drop=69.5,
                occlusion=70.5,
            ),
        ),
        Published("CMT vov99", "CMT, clean; under failures not read", _plain(clean=72.9)),
        Published("MetaBEV", "abstract", _plain(clean=71.5, view_drop=69.2)),
    ],
    "multicorrupt": [
        Published(
            "CMT vov99",
            _MULTICORRUPT,
            _by_severity(
                72.90,
                beamsreducing=(68.26, 58.73, 44.97),
                pointsreducing=(70.12, 68.34, 63.80),
                missingcamera=(71.80, 71.09, 70.09),
                brightness=(70.38, 68.52, 66.05),
                dark=(70.51, 69.04, 67.86),
                motionblur=(68.86, 61.54, 53.57),
                fog=(69.74, 65.27, 41.34),
                snow=(64.83, 61.90, 55.54),
                spatialmisalignment=(64.62, 58.60, 53.67),
                temporalmisalignment=(65.72, 56.80, 49.88),
            ),
            mean_ra=0.865,
            mean_rra=7.16,
        ),
        Published(
            "MoME",
            _MULTICORRUPT,
            _by_severity(
                73.54,
                beamsreducing=(68.47, 57.52, 40.78),
                pointsreducing=(70.54, 68.43, 63.68),
                missingcamera=(71.66, 70.61, 69.86),
                brightness=(71.10, 69.53, 67.51),
                dark=(71.04, 69.55, 68.46),
                motionblur=(69.81, 61.79, 52.66),
                fog=(69.61, 64.12, 40.19),
                snow=(65.97, 62.66, 55.24),
                spatialmisalignment=(64.30, 57.79, 51.66),
                temporalmisalignment=(66.23, 57.29, 49.96),
            ),
            mean_ra=0.856,
            mean_rra=6.84,
        ),
        Published("MEFormer", _MULTICORRUPT, mean_ra=0.856, mean_rra=7.39),
        *(
            Published(model, _MULTICORRUPT, mean_ra=value)
            for model, value in (
                ("MEFormer without PME", 0.853),
                ("UniBEV cat", 0.847),
                ("UniBEV avg", 0.844),
                ("UniBEV cnw", 0.837),
                ("SparseFusion", 0.834),
                ("BEVFusion", 0.830),
                ("IS-Fusion", 0.826),
                ("TransFusion", 0.824),
                ("DeepInteraction", 0.795),
            )
        ),
    ],
}
"""By suite. nuScenes-R and nuScenes-C have no rows of these models that were read at their source."""
