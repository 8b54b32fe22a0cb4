"""The official metrics as tables for the terminal."""

import math
from collections.abc import Mapping

from rich.console import Group
from rich.table import Table

from cmt_aqr.constants import CLASSES, ERRORS


def metrics_table(metrics: Mapping[str, float]) -> Group:
    """The summary and the classes of :func:`cmt_aqr.evaluation.official.evaluate_boxes`."""
    frames, total = int(metrics["frames"]), int(metrics["frames_of_split"])
    summary = Table(title=f"nuScenes detection, frames: {frames} of {total}", title_justify="left")
    names = ["mAP", "NDS", *(f"m{name}" for name in ERRORS.values())]
    for name in names:
        summary.add_column(name, justify="right")
    summary.add_row(*(_number(metrics[name]) for name in names))
    classes = Table("class")
    names = ["AP", *ERRORS.values()]
    for name in names:
        classes.add_column(name, justify="right")
    for label in CLASSES:
        classes.add_row(label, *(_number(metrics[f"{name}/{label}"]) for name in names))
    return Group(summary, classes)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
