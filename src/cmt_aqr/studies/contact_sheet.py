"""A contact sheet: a frame under every condition of a suite, from above and in its six cameras."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.selection import frame_numbers
from cmt_aqr.errors import UserError
from cmt_aqr.files import check_folder
from cmt_aqr.runs.configuration import build_data, check_config
from cmt_aqr.runs.resuming import configuration_to_evaluate
from cmt_aqr.runs.saved import without
from cmt_aqr.structures import Frame
from cmt_aqr.studies.rendering import SOLID_STYLE, print_written, render_frame, save
from cmt_aqr.studies.robustness import conditions_of
from cmt_aqr.studies.visualize import PictureSettings, frame_with_faults

COMMAND_KEYS = ("frames", "split", "min_score", "dpi", "out", "suite", "conditions", "severities", "name")
"""Keys of this command that are not put into a checkpoint's configuration."""

_THIN = {**SOLID_STYLE, "linewidths": 0.5}


def contact_sheets(config: DictConfig, settings: PictureSettings, overrides: Sequence[str]) -> list[Path]:
    """Render a sheet per requested frame, by default of the first frame; returns the paths.

    Args:
        config: of ``conf/visualize.yaml`` with a suite. With ``ckpt_path``, the checkpoint's data settings count.
        settings: of the pictures.
        overrides: as given on the command line.
    """
    check_folder("out", settings.out)
    conditions = conditions_of(config)
    base = _configuration(config, settings, overrides)
    sheets: dict[int, list[tuple[str, Frame]]] = {}
    for condition in conditions:
        OmegaConf.update(base, "eval_fault", condition.fault, merge=False, force_add=True)
        data: NuScenesDataModule = build_data(base, evaluating=True)
        data.prepare_data()
        numbers = list(sheets) or frame_numbers(data, settings.frames or (0,))
        data.setup("validate")
        for number in numbers:
            frame, _ = frame_with_faults(data.dataset("val"), number)
            sheets.setdefault(number, []).append((str(condition), frame))
    suites = "_".join(str(suite) for suite in config.conditions)
    written = []
    for number, rows in sheets.items():
        written.append(settings.out / f"{data.val_split}_{number:04d}_{suites}.png")
        save(sheet(rows, list(base.data.point_range)), written[-1], settings.dpi)
    print_written(written)
    return written


def _configuration(config: DictConfig, settings: PictureSettings, overrides: Sequence[str]) -> DictConfig:
    """The checkpoint's configuration, or this command's, with the settings for reading single frames."""
    if config.ckpt_path is None:
        base = config.copy()
        check_config(base, evaluating=True)
    else:
        base = configuration_to_evaluate(config, without(overrides, COMMAND_KEYS), settings.out)
    changes: dict[str, Any] = {"data.limit_eval_frames": None, "data.num_workers": 0, "data.cache_frames": False}
    if settings.split is not None:
        changes["data.eval_split"] = settings.split
    for key, value in changes.items():
        OmegaConf.update(base, key, value)
    if not (base.data.cameras or base.data.lidar):
        raise UserError("data.cameras=false and data.lidar=false: there is nothing to render")
    return base


def sheet(rows: Sequence[tuple[str, Frame]], point_range: Sequence[float]) -> Figure:
    """A figure with a row per condition: points with annotated boxes, and the six images.

    Args:
        rows: the name of each condition, and the frame under it.
        point_range: rendered range of the points: x0, y0, z0, x1, y1, z1 in metres.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.02)
    figure = Figure(figsize=(11.7, 0.35 + 1.2 * len(rows)), layout=layout)
    grid = figure.subplots(len(rows), 7, squeeze=False, width_ratios=(1.0, *(1.6,) * 6))
    for (name, frame), (above, *cameras) in zip(rows, grid, strict=True):
        render_frame(above, cameras, frame, [(frame.boxes, _THIN)], point_range, dot=0.12, boxes_in_cameras=False)
        above.set(xticks=[], yticks=[], xlabel="")
        above.set_ylabel(name.rpartition("/")[2].replace(", severity", ""), fontsize=7)
    for axis in grid[1:, 1:].flat:
        axis.set_title("")
    return figure
