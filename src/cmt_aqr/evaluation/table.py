"""The official metrics on screen and on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table

from cmt_aqr.constants import CLASSES, ERRORS
from cmt_aqr.files import nan_to_null, null_to_nan, write_json, write_table


def metrics_table(metrics: Mapping[str, float], title: str = "nuScenes detection") -> Group:
    """Tables of the summary and of each class, for rich to print.

    Args:
        metrics: of :func:`cmt_aqr.evaluation.official.evaluate_boxes`.
        title: above the first table. How many frames were evaluated stands behind it.
    """
    frames, total = int(metrics["frames"]), int(metrics["frames_of_split"])
    means = [f"m{name}" for name in ERRORS.values()]
    summary = Table(title=f"{title}, frames: {frames} of {total}", title_justify="left")
    for name in ("mAP", "NDS", *means):
        summary.add_column(name, justify="right")
    summary.add_row(*(_number(metrics[name]) for name in ("mAP", "NDS", *means)))
    classes = Table()
    for name in ("class", "AP", *ERRORS.values()):
        classes.add_column(name, justify="left" if name == "class" else "right")
    for label in CLASSES:
        classes.add_row(label, *(_number(metrics[f"{name}/{label}"]) for name in ("AP", *ERRORS.values())))
    return Group(summary, classes)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def print_metrics(
    metrics: Mapping[str, float], title: str = "nuScenes detection", console: Console | None = None
) -> None:
    """Print :func:`metrics_table`."""
    (console or Console()).print(metrics_table(metrics, title))


def write_metrics(metrics: Mapping[str, float], path: Path) -> Path:
    """Write metrics as JSON, at once or not at all; what nuScenes leaves undefined (NaN) becomes null.

    Returns:
        ``path``.
    """
    write_json(path, nan_to_null(metrics))
    return path


def write_metrics_csv(metrics: Mapping[str, float], path: Path) -> Path:
    """Write metrics as a table of one row, at once or not at all; what is undefined (NaN) is left empty.

    Returns:
        ``path``.
    """
    write_table(path, [nan_to_null(metrics)])
    return path


def read_metrics(path: Path) -> dict[str, float]:
    """Metrics that :func:`write_metrics` wrote; null is NaN again."""
    return null_to_nan(json.loads(path.read_text(encoding="utf-8")))
