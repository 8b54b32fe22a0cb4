"""Makes a data set: scenes in parallel, tables, a folder that appears complete or not at all."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cmt_aqr.checks import require_count, require_flag, require_folder
from cmt_aqr.constants import CAMERAS, CLASSES, LIDAR
from cmt_aqr.errors import SettingError
from cmt_aqr.files import check_folder, folder_size
from cmt_aqr.scenes.recorder import record_scene
from cmt_aqr.scenes.settings import GENERATOR_VERSION, Settings
from cmt_aqr.scenes.shapes import DETECTION_CLASSES
from cmt_aqr.scenes.tables import MAP_FILE, Tables, common_tables

DESCRIPTION_FILE = "synthetic.json"
"""File beside the tables that marks a set as synthetic and holds its settings."""


def make_dataset(
    out: Path | str,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Write a synthetic data set in the nuScenes v1.0 format.

    The content depends on the settings alone, byte for byte, not on the number of workers. The folder appears when
    it is complete; an interrupted call leaves none. (A killed one leaves a hidden ``.NAME.partial-PID`` beside it,
    which may be deleted.)

    Args:
        out: folder to write, the devkit's ``dataroot``.
        workers: processes; ``None`` starts one per available core, 1 runs in this process.
        overwrite: replace an existing synthetic data set.
        progress: show a progress bar, and a table at the end.
        **settings: those of :class:`~cmt_aqr.scenes.settings.Settings`.

    Raises:
        SettingError: a setting is out of range, or the folder exists and may not be replaced.
        UserError: the folder cannot be created.
    """
    checked = Settings(**settings)
    if workers is not None:
        require_count("workers", workers)
    require_flag("overwrite", overwrite)
    require_flag("progress", progress)
    require_folder("out", out)
    out = Path(out).resolve()
    _check_target(out, overwrite)
    check_folder("out", out)
    start = time.perf_counter()
    partial_folder = out.with_name(f".{out.name}.partial-{os.getpid()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        rows = _record(checked, partial_folder, workers or cores, progress)
        _write_tables(checked, partial_folder, rows)
        _check_target(out, overwrite)  # another process may have written there meanwhile
        _put_in_place(partial_folder, out)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    if progress:
        _report(checked, out, rows, time.perf_counter() - start)


def _check_target(out: Path, overwrite: bool) -> None:
    """Refuse an existing target, unless it is empty or a synthetic data set that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise SettingError(f"out={out} exists; choose another folder or set overwrite=true")
    if not out.is_dir() or not any(out.glob(f"*/{DESCRIPTION_FILE}")):
        raise SettingError(
            f"out={out} is not a synthetic data set (no */{DESCRIPTION_FILE} in it), so overwrite=true does "
            "not replace it; choose another folder"
        )


def _record(settings: Settings, root: Path, workers: int, progress: bool) -> Tables:
    """Write the files of all scenes and return all rows, scene after scene."""
    for folder in (*(f"samples/{channel}" for channel in (LIDAR, *CAMERAS)), f"sweeps/{LIDAR}", "maps"):
        (root / folder).mkdir(parents=True)
    scenes = _record_scenes(settings, root, workers)
    console = Console(stderr=True)
    recorded = list(track(scenes, "Scenes", total=settings.scenes, console=console, disable=not progress))
    merged = {table: [row for rows in recorded for row in rows[table]] for table in recorded[0]}
    return merged | common_tables(settings.seed, [log["token"] for log in merged["log"]])


def _record_scenes(settings: Settings, root: Path, workers: int) -> Iterator[Tables]:
    """Record every scene; yields their rows in order."""
    record, names = partial(record_scene, settings, root), settings.scene_names()
    if workers == 1:
        yield from map(record, range(len(names)), names)
        return
    # Spawned: a fork would inherit the threads that torch or OpenCV may have started.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(names)), context, initializer=_prepare_worker) as pool:
        yield from pool.map(record, range(len(names)), names)


def _prepare_worker() -> None:
    """Make this worker exit immediately on Ctrl-C, and when its parent is killed, instead of waiting forever."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_tables(settings: Settings, root: Path, rows: Tables) -> None:
    """Write the thirteen tables, the description and the blank map."""
    folder = root / settings.version
    folder.mkdir()
    for table in rows:
        lines = ",\n".join(json.dumps(row) for row in rows[table])
        (folder / f"{table}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    description = {
        "made_by": "cmt_aqr.scenes",
        "generator_version": GENERATOR_VERSION,
        "version": settings.version,
        "splits": settings.split_names(),
        "settings": dataclasses.asdict(settings),
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (root / MAP_FILE).write_bytes(cv2.imencode(".png", np.zeros((16, 16), np.uint8))[1].tobytes())


def _put_in_place(folder: Path, out: Path) -> None:
    """Rename the complete folder; an existing data set is deleted only after that."""
    if not out.exists():
        folder.rename(out)
        return
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)


def _report(settings: Settings, out: Path, rows: Tables, seconds: float) -> None:
    """Print the number of objects and boxes per class, and the size of the data set."""
    category = {row["token"]: row["name"] for row in rows["category"]}
    class_of = {row["token"]: DETECTION_CLASSES[category[row["category_token"]]] for row in rows["instance"]}
    boxes = [(class_of[row["instance_token"]], row["num_lidar_pts"] > 0) for row in rows["sample_annotation"]]
    counts = (
        Counter(class_of.values()),
        Counter(name for name, _ in boxes),
        Counter(name for name, has_points in boxes if has_points),
    )
    table = Table(title=f"{out} ({settings.version})")
    for heading in ("class", "objects", "boxes", "with LiDAR points"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name in CLASSES:
        table.add_row(name, *(str(count[name]) for count in counts))
    sweeps = sum(not row["is_key_frame"] for row in rows["sample_data"])
    console = Console()
    console.print(table)
    console.print(
        f"{settings.scenes} scenes, {len(rows['sample'])} keyframes, {sweeps} sweeps between them, "
        f"{folder_size(out) / 1e6:.0f} MB, {seconds:.1f} s"
    )
