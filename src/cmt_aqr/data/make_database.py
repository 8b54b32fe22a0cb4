"""Builds the database of objects: cut out of all training frames, in several processes, resumable."""

import contextlib
import dataclasses
import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.database import (
    DESCRIPTION,
    ENTRIES,
    ENTRY,
    FORMAT,
    Contents,
    ObjectDatabase,
    check_part,
    difference,
    part_path,
    read_description,
)
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.index import FrameIndex
from cmt_aqr.data.paste import points_inside
from cmt_aqr.data.reading import FrameReader
from cmt_aqr.data.saved_arrays import load_arrays, save_arrays
from cmt_aqr.data.views import patches_of
from cmt_aqr.data.workers import WorkerLoader
from cmt_aqr.files import atomic_write, check_folder, remove_partial, write_json, writing
from cmt_aqr.runs.threads import cores

log = logging.getLogger(__name__)

_MAX_FRAMES, _PARTS = 512, 16
"""Maximum number of frames in a part, which is the unit of resuming; number of parts of a small data set."""


@dataclass(frozen=True)
class Cut:
    """The objects of a frame."""

    objects: NDArray[np.void]  # rows of database.ENTRY, with offsets of points and patches within the frame
    points: NDArray[np.float32]  # (point, 5) of all objects, concatenated
    patches: list[bytes]  # of the objects that have one
    boxes: NDArray[np.int64]  # (class,) number of boxes that a sensor sees


class ObjectCutter(Dataset[Cut]):
    """Maps frame numbers to the objects of the frame."""

    def __init__(self, root: Path, index: FrameIndex, contents: Contents) -> None:
        self.contents = contents
        self.reader = FrameReader(root, index, contents.sweeps, cameras=contents.cameras, for_database=True)

    def __getitem__(self, number: int) -> Cut:
        """Cut the objects out of a frame."""
        index, frame = self.reader.index, self.reader.read(number)
        rows = slice(int(index.box_offsets[number]), int(index.box_offsets[number + 1]))
        seen = index.box_points[rows] + index.box_radar_points[rows] > 0
        boxes, labels = frame.boxes.numpy()[seen], frame.labels.numpy()[seen]
        seen_boxes = np.bincount(labels, minlength=len(CLASSES))
        points = frame.points.numpy()
        point, box = points_inside(points, boxes)
        counts = np.bincount(box, minlength=len(boxes))
        kept = counts >= self.contents.min_points
        boxes, labels, counts = boxes[kept], labels[kept], counts[kept]

        by_box = np.argsort(box, kind="stable")
        cloud = points[point[by_box][kept[box[by_box]]]]
        bottom = boxes[:, :3].copy()
        bottom[:, 2] -= boxes[:, 5] / 2
        cloud[:, :3] -= np.repeat(bottom, counts, axis=0)
        objects = np.zeros(len(boxes), dtype=ENTRY)
        objects["label"], objects["frame"], objects["box"], objects["view"] = labels, number, boxes, -1
        objects["points"], objects["points_at"] = counts, np.cumsum(counts) - counts
        patches: list[bytes] = []
        if frame.images is not None:
            patches = self._cut_patches(objects, frame.images.permute(0, 2, 3, 1).numpy(), frame.lidar2img.numpy())
        return Cut(objects, cloud, patches, seen_boxes)

    def _cut_patches(
        self, objects: NDArray[np.void], images: NDArray[np.uint8], lidar2img: NDArray[np.float64]
    ) -> list[bytes]:
        """Cut the patches, and store their position in the objects."""
        size = (images.shape[1], images.shape[2])
        contents = self.contents
        crops = patches_of(objects["box"], lidar2img, size, contents.patch_camera, contents.patch_behind)
        objects["view"], objects["rectangle"], objects["depth"] = crops
        objects["picture"] = size
        lengths = 3 * (crops.rectangles[:, 2:] - crops.rectangles[:, :2]).prod(axis=1)
        objects["patch_at"] = np.cumsum(lengths) - lengths
        return [
            images[view, y0:y1, x0:x1].tobytes()
            for view, (x0, y0, x1, y1) in zip(crops.views.tolist(), crops.rectangles.tolist(), strict=True)
            if view >= 0
        ]


def prepare_database(
    folder: Path,
    contents: Contents,
    root: Path,
    index: FrameIndex,
    user_folder: bool,
    processes: int | None = None,
) -> ObjectDatabase:
    """Open the database; build it, or its missing parts, first.

    Args:
        folder: of the database.
        contents: of the database.
        root: nuScenes data root.
        index: of the frames.
        user_folder: whether the user chose the folder; a database of other contents is then not replaced.
        processes: number of processes; ``None``: one per core.

    Raises:
        DataError: there is a database of other contents in a folder that the user chose.
        UserError: the database cannot be written, because the disk is full, say; complete parts are kept.
    """
    key = "data.sampling.database" if user_folder else "data.cache_dir"
    description = read_description(folder)
    differs = difference(description, contents)
    if differs is not None and user_folder:
        raise DataError(f"{key}={folder}: the database there {differs}; name another folder, or delete this one")
    with writing(key, folder):
        if differs is not None:
            log.info("The database of objects in %s %s: rebuilding it", folder, differs)
            for path in (folder / DESCRIPTION, folder / ENTRIES, *folder.glob("part-*")):
                path.unlink(missing_ok=True)
        check_folder(key, folder)
        if description and differs is None:
            try:
                return ObjectDatabase(folder, contents)
            except DataError as error:
                log.warning("%s", error)
        remove_partial(folder)
        size = min(_MAX_FRAMES, max(1, -(-len(index) // _PARTS)))
        parts = [range(first, min(first + size, len(index))) for first in range(0, len(index), size)]
        missing = {
            number: frames for number, frames in enumerate(parts) if _read_part(folder, number, contents) is None
        }
        _build_parts(ObjectCutter(root, index, contents), folder, missing, processes or cores())
        _complete(folder, contents, len(parts))
    return ObjectDatabase(folder, contents)


def _read_part(folder: Path, part: int, contents: Contents) -> dict[str, NDArray[Any]] | None:
    """The objects of a part, the number of boxes per class, and the sizes of its files; ``None``: to be built."""
    arrays = load_arrays(part_path(folder, part, "npy"), contents.stamp, ("entries", "valid", "sizes"))
    if arrays is None:
        return None
    try:
        check_part(folder, part, arrays["sizes"].tolist())
    except DataError as error:
        log.warning("%s", error)
        return None
    return arrays


def _build_parts(cutter: ObjectCutter, folder: Path, parts: dict[int, range], processes: int) -> None:
    """Build parts, given the frames of each, with a progress bar."""
    frames = list(itertools.chain(*parts.values()))
    processes = min(processes, len(frames))
    loader: WorkerLoader[Cut] = WorkerLoader(cutter, frames, processes if processes > 1 else 0, batch_size=None)
    start = time.perf_counter()
    cuts = track(loader.loaded(), "Cutting objects out of frames", total=len(frames), console=Console(stderr=True))
    for number, part in parts.items():
        _write_part(folder, number, cutter.contents, itertools.islice(cuts, len(part)))
    if frames:
        log.info("Cut objects out of %d frames in %.0f s", len(frames), time.perf_counter() - start)


def _write_part(folder: Path, part: int, contents: Contents, cuts: Iterator[Cut]) -> None:
    """Write the files of a part, atomically."""
    entries, boxes, sizes = [], np.zeros(len(CLASSES), dtype=np.int64), np.zeros(2, dtype=np.int64)
    rows = 0
    with contextlib.ExitStack() as stack:
        points_file, patches_file = (
            stack.enter_context(stack.enter_context(atomic_write(part_path(folder, part, suffix))).open("wb"))
            for suffix in ("points", "patches")
        )
        for cut in cuts:
            objects = cut.objects
            objects["part"] = part
            objects["points_at"] += rows
            objects["patch_at"] += sizes[1]
            points_file.write(cut.points.tobytes())
            patches_file.writelines(cut.patches)
            rows += len(cut.points)
            sizes += (cut.points.nbytes, sum(map(len, cut.patches)))
            entries.append(objects)
            boxes += cut.boxes
    arrays = {"entries": np.concatenate(entries), "valid": boxes, "sizes": sizes}
    save_arrays(part_path(folder, part, "npy"), contents.stamp, arrays)


def _complete(folder: Path, contents: Contents, count: int) -> None:
    """Write the objects of all parts, by class, then the description, which marks the database as complete."""
    parts = [part for number in range(count) if (part := _read_part(folder, number, contents)) is not None]
    entries = np.concatenate([part["entries"] for part in parts])
    entries = entries[np.argsort(entries["label"], kind="stable")]
    with atomic_write(folder / ENTRIES) as partial, partial.open("wb") as file:
        np.save(file, entries)
    objects = np.bincount(entries["label"], minlength=len(CLASSES))
    boxes = np.sum([part["valid"] for part in parts], axis=0)
    description = {
        "format": FORMAT,
        "made_of": dataclasses.asdict(contents),
        "parts": [part["sizes"].tolist() for part in parts],
        "boxes": dict(zip(CLASSES, boxes.tolist(), strict=True)),
        "objects": dict(zip(CLASSES, objects.tolist(), strict=True)),
    }
    write_json(folder / DESCRIPTION, description)


def sizes_of(database: ObjectDatabase) -> dict[str, float]:
    """Sizes of a database's files in megabytes, by kind: ``points``, ``patches``, ``entries``."""
    sizes: Counter[str] = Counter()
    for path in database.folder.iterdir():
        kind = path.suffix.removeprefix(".")
        sizes[kind if kind in ("points", "patches") else "entries"] += path.stat().st_size
    return {kind: size / 1e6 for kind, size in sizes.items()}
