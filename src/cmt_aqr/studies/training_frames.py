"""A preview of the training data: the database of objects, and frames with pasted objects."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.progress import track
from rich.table import Table

from cmt_aqr.checks import require_whole
from cmt_aqr.constants import CLASSES
from cmt_aqr.data.database import ObjectDatabase, read_description
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.dataset import FrameDataset, SampleKey
from cmt_aqr.data.make_database import sizes_of
from cmt_aqr.errors import UserError
from cmt_aqr.files import check_folder
from cmt_aqr.runs.configuration import build_data
from cmt_aqr.runs.console import console
from cmt_aqr.studies.rendering import DASHED_STYLE, SOLID_STYLE, box_handles, print_written, render_frame, save

_MOST_POINTS = 60_000
"""Points rendered per frame."""


def make_objects(config: DictConfig) -> ObjectDatabase:
    """Build the database of objects of a configuration, as far as it is missing, and print a summary."""
    data: NuScenesDataModule = build_data(config)
    if data.sampling is None:
        raise UserError(
            "data.sampling=null: no objects are pasted, so no database is needed; add data/sampling=cmt"
        )
    data.prepare_data()
    database = data.make_database()
    console().print(objects_table(database), soft_wrap=True)
    return database


def objects_table(database: ObjectDatabase) -> Table:
    """Objects by class, and the size of their files."""
    description = read_description(database.folder)
    sizes = sizes_of(database)
    table = Table(
        title=f"{database.folder}: {sum(sizes.values()):,.1f} MB "
        f"({', '.join(f'{kind} {size:,.1f}' for kind, size in sorted(sizes.items()))})"
    )
    for heading in ("class", "boxes that a sensor sees", "objects", "with a patch"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    has_patch = database.entries["view"] >= 0
    for label, name in enumerate(CLASSES):
        entries = slice(database.starts[label], database.starts[label + 1])
        counts = (description["boxes"][name], description["objects"][name], int(has_patch[entries].sum()))
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def show_frames(config: DictConfig, folder: Path) -> Path:
    """Render the first frames of an epoch, before augmentation, on one sheet.

    Args:
        config: of a training, with ``count``, ``epoch``, ``dpi`` and ``out``.
        folder: for ``out=null``.
    """
    for key, low, high in (("count", 1, 100), ("epoch", 0, 10**6), ("dpi", 20, 600)):
        require_whole(key, config[key], low, high)
    out = folder if config.out is None else Path(config.out)
    check_folder("out", out)
    data: NuScenesDataModule = build_data(config)
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    loader.set_position(config.epoch, 0)
    keys = list(itertools.islice(loader.frame_sampler, config.count))
    figure = sheet(data.dataset("train"), keys, [float(value) for value in data.point_range])
    path = out / "frames.png"
    save(figure, path, config.dpi)
    print_written([path])
    return path


def sheet(dataset: FrameDataset, keys: list[SampleKey], point_range: list[float]) -> Figure:
    """A figure with a row per frame: points and boxes from above, and the six images with boxes."""
    figure = Figure(figsize=(17, 4.9 * len(keys) + 0.5), layout="constrained")
    rows = figure.subfigures(len(keys), 1, squeeze=False)[:, 0]
    screen = console()
    progress = track(rows, "Rendering", console=screen, disable=not screen.is_terminal)
    offsets = dataset.reader.index.box_offsets
    for row, key in zip(progress, keys, strict=True):
        annotated = int(offsets[key.frame + 1] - offsets[key.frame])
        frame = dataset.stored(key)
        names = Counter(CLASSES[label] for label in frame.labels[annotated:].tolist())
        pasted = ", ".join(f"{count} {name}" for name, count in names.items()) or "nothing"
        title = f"frame {key.frame} ({frame.token[:8]}), time {key.repeat + 1} in epoch {key.epoch}"
        row.suptitle(f"{title}; pasted: {pasted}")
        left, right = row.subfigures(1, 2, width_ratios=(1, 2.5))
        above, cameras = left.subplots(), right.subplots(2, 3).flat
        visible = frame.boxes[:annotated][frame.box_points[:annotated] > 0]
        boxes = (visible, SOLID_STYLE), (frame.boxes[annotated:], DASHED_STYLE)
        frame = frame.replace(points=frame.points[:: max(1, len(frame.points) // _MOST_POINTS)])
        render_frame(above, list(cameras), frame, boxes, point_range)
        above.set_ylabel("y, forward (m)")
    figure.legend(
        handles=box_handles("annotated boxes with LiDAR points", "pasted"),
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    return figure
