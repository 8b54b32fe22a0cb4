"""Makes the database of objects: cuts them out of all training frames, in several processes, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.database import (
    DESCRIPTION,
    ENTRIES,
    ENTRY,
    FORMAT,
    Contents,
    ObjectDatabase,
    difference,
    patches_path,
    points_path,
    read_description,
)
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.index import FrameIndex
from cmt_aqr.data.paste import points_inside
from cmt_aqr.data.reading import FrameReader
from cmt_aqr.data.saved_arrays import load_arrays, save_arrays
from cmt_aqr.data.views import patches_of
from cmt_aqr.files import check_folder, remove_partial, write_json, writing, written_at_once
from cmt_aqr.runs.threads import cores

log = logging.getLogger(__name__)

_MOST_FRAMES = 512
"""Of a part: one is made at a time, by one process, and made again where it was not finished."""

_PARTS = 16
"""Of a small data set, so that several processes have something to do."""


_PART = ("entries", "valid", "sizes")
"""What is known of a part: its objects, how many boxes of each class a sensor sees, and bytes of its two files."""


@dataclass(frozen=True)
class Making:
    """What the making of a database needs, and each process of it gets.

    Attributes:
        folder: where it goes.
        contents: what it is made of.
        root: data root.
        index: the frames.
    """

    folder: Path
    contents: Contents
    root: Path
    index: FrameIndex

    def parts(self) -> list[range]:
        """The frames of each part; the same whatever the number of processes."""
        frames = len(self.index)
        size = min(_MOST_FRAMES, max(1, -(-frames // _PARTS)))
        return [range(first, min(first + size, frames)) for first in range(0, frames, size)]

    def read_part(self, part: int) -> dict[str, NDArray[Any]] | None:
        """What is known of a part that is whole; ``None``: it must be made."""
        path = self.folder / f"part-{part:04d}.npz"
        arrays = load_arrays(path, self.contents.stamp, _PART)
        if arrays is None:
            return None
        for file, size in zip((points_path, patches_path), arrays["sizes"].tolist(), strict=True):
            there = file(self.folder, part)
            if not there.is_file() or there.stat().st_size != size:
                log.warning("%s is missing or cut: making it again", there)
                return None
        return arrays

    def make_part(self, part: int, stop: Event | None = None) -> int:
        """Write a part, at once or not at all, and return its number of frames."""
        frames = self.parts()[part]
        reader = FrameReader(
            self.root, self.index, self.contents.sweeps, cameras=self.contents.cameras, for_database=True
        )
        entries: list[NDArray[np.void]] = []
        valid = np.zeros(len(CLASSES), dtype=np.int64)
        paths = points_path(self.folder, part), patches_path(self.folder, part)
        with contextlib.ExitStack() as stack:
            partial = [stack.enter_context(written_at_once(path)) for path in paths]
            points_file, patches_file = (stack.enter_context(path.open("wb")) for path in partial)
            written = [0, 0]
            for frame in frames:
                if stop is not None and stop.is_set():
                    raise _StoppedError
                objects, points, patches = self.cut_objects(reader, frame, part, valid)
                objects["points_at"] += written[0]
                objects["patch_at"] += written[1]
                points_file.write(points.tobytes())
                patches_file.writelines(patches)
                written[0] += len(points)
                written[1] += sum(map(len, patches))
                entries.append(objects)
        sizes = np.array([path.stat().st_size for path in paths])
        arrays = {"entries": np.concatenate(entries), "valid": valid, "sizes": sizes}
        save_arrays(self.folder / f"part-{part:04d}.npz", self.contents.stamp, arrays)
        return len(frames)

    def cut_objects(
        self, reader: FrameReader, number: int, part: int, valid: NDArray[np.int64]
    ) -> tuple[NDArray[np.void], NDArray[np.float32], list[bytes]]:
        """A frame's objects, their points one after the other, and their patches; ``valid`` counts its boxes."""
        own = slice(int(self.index.box_offsets[number]), int(self.index.box_offsets[number + 1]))
        seen = self.index.box_points[own] + self.index.box_radar_points[own] > 0
        frame = reader.read(number)
        boxes, labels = frame.boxes.numpy()[seen], frame.labels.numpy()[seen]
        valid += np.bincount(labels, minlength=len(CLASSES))
        points = frame.points.numpy()
        point, box = points_inside(points, boxes)
        counts = np.bincount(box, minlength=len(boxes))
        kept = counts >= self.contents.min_points
        boxes, labels, counts = boxes[kept], labels[kept], counts[kept]

        by_box = np.argsort(box, kind="stable")
        cut = points[point[by_box][kept[box[by_box]]]]
        bottom = boxes[:, :3].copy()
        bottom[:, 2] -= boxes[:, 5] / 2
        cut[:, :3] -= np.repeat(bottom, counts, axis=0)
        objects = np.zeros(len(boxes), dtype=ENTRY)
        objects["label"], objects["part"], objects["frame"], objects["box"] = labels, part, number, boxes
        objects["points"], objects["points_at"] = counts, np.cumsum(counts) - counts
        objects["view"] = -1
        patches: list[bytes] = []
        if frame.images is not None:
            patches = self._cut_patches(objects, frame.images.permute(0, 2, 3, 1).numpy(), frame.lidar2img.numpy())
        return objects, cut, patches

    def _cut_patches(
        self, objects: NDArray[np.void], images: NDArray[np.uint8], lidar2img: NDArray[np.float64]
    ) -> list[bytes]:
        """Patches of those objects that have one, which are told where it is."""
        size = (images.shape[1], images.shape[2])
        contents = self.contents
        found = patches_of(objects["box"], lidar2img, size, contents.patch_camera, contents.patch_behind)
        objects["view"], objects["rectangle"], objects["depth"] = found
        objects["picture"] = size
        patches = [
            images[view, y0:y1, x0:x1].tobytes()
            for view, (x0, y0, x1, y1) in zip(found.views.tolist(), found.rectangles.tolist(), strict=True)
            if view >= 0
        ]
        lengths = 3 * (found.rectangles[:, 2:] - found.rectangles[:, :2]).prod(axis=1)
        objects["patch_at"] = np.cumsum(lengths) - lengths
        return patches


class _StoppedError(Exception):
    """Another process failed, or the command ends."""


def prepare_database(making: Making, given: bool, processes: int | None = None) -> ObjectDatabase:
    """Make the database where it is absent, or what is missing of it, and open it.

    Args:
        making: what is made, and where.
        given: whether the user named the folder: a database of other contents there is not replaced then.
        processes: that make it; ``None``: one for each core.

    Raises:
        DataError: the folder holds a database of other contents.
        UserError: it cannot be written, for want of room, say; parts that are whole stay, and count.
    """
    folder, key = making.folder, "data.sampling.database" if given else "data.cache_dir"
    differs = difference(folder, making.contents)
    if differs is not None and given:
        raise DataError(f"{key}={folder}: the database there {differs}; name another folder, or delete this one")
    with writing(key, folder):
        if differs is not None:
            log.info("The database of objects in %s %s: making it again", folder, differs)
            for path in (folder / DESCRIPTION, folder / ENTRIES, *folder.glob("part-*")):
                path.unlink(missing_ok=True)
        check_folder(key, folder)
        parts = [making.read_part(part) for part in range(len(making.parts()))]
        missing = [number for number, part in enumerate(parts) if part is None]
        database = None if missing else _open(making)
        if database is not None:
            return database
        remove_partial(folder)
        _make_parts(making, missing, processes)
        _complete(making)
    return ObjectDatabase(folder, making.contents)


def _open(making: Making) -> ObjectDatabase | None:
    """The database, if it is complete; what is damaged is told."""
    if not read_description(making.folder):
        return None
    try:
        return ObjectDatabase(making.folder, making.contents)
    except DataError as error:
        log.warning("%s", error)
        return None


def _make_parts(making: Making, missing: list[int], processes: int | None) -> None:
    """Make the parts that are missing, and show how far it is."""
    frames = [len(part) for part in making.parts()]
    began = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        done = sum(frames) - sum(frames[part] for part in missing)
        task = bar.add_task("Cutting objects out of frames", total=sum(frames), completed=done)
        for count in _run(making, missing, processes or cores()):
            bar.advance(task, count)
    if missing:
        seconds = time.perf_counter() - began
        log.info("Cut objects out of %d frames in %.0f s", sum(frames[part] for part in missing), seconds)


def _run(making: Making, parts: list[int], processes: int) -> Iterator[int]:
    """Make parts; yields the frames of each as it is done."""
    if min(processes, len(parts)) <= 1:
        yield from (making.make_part(part) for part in parts)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    stop = context.Event()
    with ProcessPoolExecutor(
        min(processes, len(parts)), mp_context=context, initializer=_begin_worker, initargs=(making, stop)
    ) as pool:
        futures = [pool.submit(_work, part) for part in parts]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Any] = {}
"""What a process of the making was given."""


def _begin_worker(making: Making, stop: Event) -> None:
    """One thread; it is the main process that a signal stops, and with whose end this one ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    _worker.update(making=making, stop=stop)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(part: int) -> int:
    return _worker["making"].make_part(part, _worker["stop"])


def _complete(making: Making) -> None:
    """Write the list of all objects, by class, and what the database was made of, which says that it is whole."""
    folder = making.folder
    parts = [making.read_part(part) for part in range(len(making.parts()))]
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        raise DataError(f"{folder}: a part of the database vanished while it was made; make it again")
    entries = np.concatenate([part["entries"] for part in whole])
    entries = entries[np.argsort(entries["label"], kind="stable")]
    with written_at_once(folder / ENTRIES) as partial, partial.open("wb") as file:
        np.save(file, entries)
    kept = np.bincount(entries["label"], minlength=len(CLASSES))
    valid = np.sum([part["valid"] for part in whole], axis=0)
    description = {
        "format": FORMAT,
        "made_of": dataclasses.asdict(making.contents),
        "parts": [part["sizes"].tolist() for part in whole],
        "boxes": {name: int(count) for name, count in zip(CLASSES, valid, strict=True)},
        "objects": {name: int(count) for name, count in zip(CLASSES, kept, strict=True)},
    }
    write_json(folder / DESCRIPTION, description)


def sizes_of(database: ObjectDatabase) -> dict[str, float]:
    """Megabytes of a database's files by kind: ``points``, ``patches``, ``entries``."""
    sizes: Counter[str] = Counter()
    paths: Iterable[Path] = database.folder.iterdir()
    for path in paths:
        kind = path.suffix.removeprefix(".")
        sizes[kind if kind in ("points", "patches") else "entries"] += path.stat().st_size
    return {kind: size / 1e6 for kind, size in sizes.items()}
