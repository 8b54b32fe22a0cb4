"""What training will see, before it begins: the database of objects, and frames with objects pasted into them."""

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
from cmt_aqr.studies.rendering import (
    FOUND_STYLE,
    TRUTH_STYLE,
    box_handles,
    render_cameras,
    render_from_above,
    rgb,
    save,
)


def make_objects(config: DictConfig) -> ObjectDatabase:
    """Make the database of objects of a configuration, or what is missing of it, and print what it holds."""
    data: NuScenesDataModule = build_data(config)
    if data.sampling is None:
        raise UserError(
            "data.sampling=null: no objects are pasted, so there is nothing to make; add data/sampling=cmt"
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
        own = slice(database.starts[label], database.starts[label + 1])
        counts = (description["boxes"][name], description["objects"][name], int(has_patch[own].sum()))
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def show_frames(config: DictConfig, folder: Path) -> Path:
    """Render the first frames of an epoch as they are before augmentation, on one sheet.

    Args:
        config: of a training, with ``count``, ``epoch``, ``dpi`` and ``out``.
        folder: for ``out=null``.
    """
    for key, least, most in (("count", 1, 100), ("epoch", 0, 10**6), ("dpi", 20, 600)):
        require_whole(key, config[key], least, most)
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
    console().print(f"Wrote {path}", soft_wrap=True, highlight=False)
    return path


def sheet(dataset: FrameDataset, keys: list[SampleKey], point_range: list[float]) -> Figure:
    """A row for each frame: points and boxes from above, and the six images with boxes over them."""
    figure = Figure(figsize=(17, 4.9 * len(keys) + 0.5), layout="constrained")
    rows = figure.subfigures(len(keys), 1, squeeze=False)[:, 0]
    screen = console()
    bar = track(rows, "Rendering", console=screen, disable=not screen.is_terminal)
    for part, key in zip(bar, keys, strict=True):
        own = int(dataset.reader.index.box_offsets[key.frame + 1] - dataset.reader.index.box_offsets[key.frame])
        frame = dataset.stored(key)
        left, right = part.subfigures(1, 2, width_ratios=(1, 2.5))
        names = Counter(CLASSES[label] for label in frame.labels[own:].tolist())
        pasted = ", ".join(f"{count} {name}" for name, count in names.items()) or "nothing"
        which = f"frame {key.frame} ({frame.token[:8]}), time {key.repeat + 1} in epoch {key.epoch}"
        part.suptitle(f"{which}; pasted: {pasted}")
        mine = frame.boxes[:own][frame.box_points[:own] > 0]
        boxes, axis = ((mine, TRUTH_STYLE), (frame.boxes[own:], FOUND_STYLE)), left.subplots()
        points = frame.points[:: max(1, len(frame.points) // 60_000)]
        render_from_above(axis, points, boxes, point_range)
        axis.set_ylabel("y, forward (m)")
        if frame.images is not None:
            height, width = frame.images.shape[-2:]
            axes = right.subplots(2, 3).flat
            render_cameras(axes, rgb(frame.images), boxes, frame.lidar2img.float(), (height, width))
    figure.legend(
        handles=box_handles("the frame's own boxes with LiDAR points", "pasted"),
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    return figure
