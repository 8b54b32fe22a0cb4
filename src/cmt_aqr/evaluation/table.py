"""The official metrics on screen."""

import math
from collections.abc import Mapping

from rich.console import Group
from rich.table import Table

from cmt_aqr.constants import CLASSES, ERRORS


def metrics_table(metrics: Mapping[str, float]) -> Group:
    """The summary and each class of :func:`cmt_aqr.evaluation.official.evaluate_boxes`, for rich to print."""
    frames, total = int(metrics["frames"]), int(metrics["frames_of_split"])
    means = [f"m{name}" for name in ERRORS.values()]
    summary = Table(title=f"nuScenes detection, frames: {frames} of {total}", title_justify="left")
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
