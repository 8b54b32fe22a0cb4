"""Makes a whole data set: scenes in parallel, tables, a folder that appears complete or not at all."""

from __future__ import annotations

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
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
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
from cmt_aqr.files import check_folder
from cmt_aqr.scenes import tables
from cmt_aqr.scenes.recorder import Recorder
from cmt_aqr.scenes.sensors import build_rig
from cmt_aqr.scenes.settings import GENERATOR_VERSION, Settings
from cmt_aqr.scenes.shapes import KINDS
from cmt_aqr.scenes.tables import MAP_FILE, TABLE_NAMES, Tables

DESCRIPTION_FILE = "synthetic.json"
"""Lies beside the tables and says that, and from which settings, a set was made."""


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
    it
    is complete; an interrupted call leaves none. (One killed outright leaves a hidden ``.NAME.partial-PID`` beside
    it,
    which may be deleted.)

    Args:
        out: folder to write, the devkit's ``dataroot``.
        workers: processes; ``None`` takes one per core available, 1 works in this process.
        overwrite: replace a synthetic data set that is already there.
        progress: show a progress bar, and a table at the end.
        **settings: those of :class:`~cmt_aqr.scenes.settings.Settings`.

    Raises:
        SettingError: a setting is out of its range, or the folder is there and may not be replaced.
        UserError: the folder cannot be made.
    """
    wanted = Settings(**settings)
    if workers is not None:
        require_count("workers", workers)
    require_flag("overwrite", overwrite)
    require_flag("progress", progress)
    require_folder("out", out)
    out = Path(out).resolve()
    _check_target(out, overwrite)
    check_folder("out", out)
    began = time.perf_counter()
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        rows = _record(wanted, partial, workers or cores, progress)
        _write_tables(wanted, partial, rows)
        # Somebody else may have written there meanwhile.
        _check_target(out, overwrite)
        _put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if progress:
        _report(wanted, out, rows, time.perf_counter() - began)


def _check_target(out: Path, overwrite: bool) -> None:
    """Refuse a target that exists, unless it is empty or a synthetic data set that may be replaced."""
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
    names = settings.scene_names()
    for folder in (*(f"samples/{channel}" for channel in (LIDAR, *CAMERAS)), f"sweeps/{LIDAR}", "maps"):
        (root / folder).mkdir(parents=True)
    recorders = [Recorder(settings, index, name, root) for index, name in enumerate(names)]
    recorded = _run_all(recorders, min(workers, len(recorders)))
    screen = Console(stderr=True)
    done = dict(track(recorded, "Scenes", total=len(recorders), console=screen, disable=not progress))
    logs = [done[index]["log"][0]["token"] for index in range(len(names))]
    merged: Tables = {name: [] for name in TABLE_NAMES}
    merged.update(tables.common_tables(settings.seed, build_rig(settings), logs))
    for index in range(len(names)):
        for name, rows_of_table in done[index].items():
            merged[name].extend(rows_of_table)
    return merged


def _run_all(recorders: list[Recorder], workers: int) -> Iterator[tuple[int, Tables]]:
    """Run every recorder; yields index and rows as they come, in no particular order."""
    if workers == 1:
        for recorder in recorders:
            yield recorder.index, recorder.run()
        return
    # Fresh processes: a fork would inherit the threads that torch or OpenCV may have started.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker) as pool:
        futures: dict[Future[Tables], int] = {pool.submit(recorder.run): recorder.index for recorder in recorders}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    """Make this worker end at once on Ctrl-C, and when its parent is killed, instead of waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_tables(settings: Settings, root: Path, rows: Tables) -> None:
    """Write the thirteen tables, the description and the blank map."""
    folder = root / settings.version
    folder.mkdir()
    for name in TABLE_NAMES:
        lines = ",\n".join(json.dumps(row) for row in rows[name])
        (folder / f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    train, val = settings.split_names()
    description = {
        "made_by": "cmt_aqr.scenes",
        "generator_version": GENERATOR_VERSION,
        "version": settings.version,
        "splits": [train, val],
        "settings": dataclasses.asdict(settings),
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (root / MAP_FILE).write_bytes(cv2.imencode(".png", np.zeros((16, 16), np.uint8))[1].tobytes())


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename the finished folder; what was there before goes only once the new one is whole."""
    if not out.exists():
        partial.rename(out)
        return
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)


def _report(settings: Settings, out: Path, rows: Tables, seconds: float) -> None:
    """Print what was written: objects of every class and how many of them the LiDAR sees."""
    category = {row["token"]: row["name"] for row in rows["category"]}
    label = {kind.category: kind.detection_class for kind in KINDS.values() if kind.category}
    class_of = {row["token"]: label[category[row["category_token"]]] for row in rows["instance"]}
    instances = Counter(class_of.values())
    boxes = Counter(class_of[row["instance_token"]] for row in rows["sample_annotation"])
    seen = Counter(class_of[row["instance_token"]] for row in rows["sample_annotation"] if row["num_lidar_pts"])
    table = Table(title=f"{out} ({settings.version})")
    for heading in ("class", "objects", "boxes", "with LiDAR points"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name in CLASSES:
        table.add_row(name, str(instances[name]), str(boxes[name]), str(seen[name]))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    sweeps = sum(not row["is_key_frame"] for row in rows["sample_data"])
    console = Console()
    console.print(table)
    console.print(
        f"{settings.scenes} scenes, {len(rows['sample'])} keyframes, {sweeps} sweeps between them, "
        f"{size / 1e6:.0f} MB, {seconds:.1f} s"
    )
