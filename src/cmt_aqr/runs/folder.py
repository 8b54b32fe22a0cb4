"""Reads what a run left in its folder, file by file on demand, and without PyTorch."""

import csv
import functools
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cmt_aqr.files import RECORD, null_to_nan
from cmt_aqr.runs.tree import at

COMPLETE, FAILED, STOPPED, NEW = "complete", "failed", "stopped", "new"

CURVES = ("train/loss", "val/NDS", "val/mAP")
"""Columns of ``csv/metrics.csv`` that are learning curves."""

SWEEP_KEYS = ("sweep", "launcher", "sweep_dir")
"""Settings that determine how and where runs are started, not what they compute."""

Value = float | int | str
"""A setting's value; null, true, false, lists and mappings as Hydra writes them."""

Curve = tuple[list[int], list[float]]
"""Steps, ascending, and their values."""


_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError, csv.Error)


class Run:
    """A run's folder. A missing or unreadable file counts as empty; :attr:`problems` lists the unreadable ones.

    Args:
        folder: of the run; it need not exist.
        name: displayed name; by default the folder's.
        overrides: of a run without a folder.
    """

    def __init__(self, folder: Path, name: str | None = None, overrides: Sequence[str] = ()) -> None:
        self.folder = folder
        self.name = folder.name if name is None else name
        self._overrides = tuple(overrides)
        self._contents: dict[str, Any] = {}
        self._problems: dict[str, str] = {}

    def _file(self, name: str) -> Any:
        if name not in self._contents:
            self._contents[name] = {}
            try:
                if (self.folder / name).is_file():
                    self._contents[name] = _READERS[name](self.folder / name)
            except _UNREADABLE as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                self._problems[name] = f"{name} cannot be read: {reason}"
        return self._contents[name]

    @property
    def problems(self) -> list[str]:
        """One sentence per unreadable file; reads all files."""
        for name in _READERS:
            self._file(name)
        return list(self._problems.values())

    @property
    def record(self) -> Mapping[str, Any]:
        """``record.json``."""
        return self._file(RECORD)

    @property
    def metrics(self) -> dict[str, float]:
        """``metrics.json``: the official metrics; NaN where nuScenes defines no value."""
        return self._file("metrics.json")

    @property
    def maps(self) -> dict[str, float]:
        """Statistics of AQR's maps, such as ``bev/mean``."""
        return self._file("map_statistics.json")

    @property
    def numbers(self) -> dict[str, float]:
        """Every recorded number: official metrics, statistics of AQR's maps, and the record's."""
        record = {key: float(value) for key, value in self.record.items() if type(value) in (int, float)}
        return {**record, **self.maps, **self.metrics}

    @property
    def curves(self) -> Mapping[str, Curve]:
        """Learning curves, by the names in :data:`CURVES`."""
        return self._file("csv/metrics.csv")

    @property
    def config(self) -> Mapping[str, Any]:
        """The composed configuration."""
        return self._file("config.yaml") or self._file(".hydra/config.yaml")

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides of the last command in this folder, as Hydra parsed them."""
        return tuple(map(str, self.record.get("overrides", self._file(".hydra/overrides.yaml"))))

    @property
    def claimed(self) -> tuple[str, ...]:
        """Overrides with which a sweep's run claimed the folder, else those that Hydra wrote, which may change."""
        return self._overrides or tuple(self._file(".hydra/run.json") or self._file(".hydra/overrides.yaml"))

    @property
    def status(self) -> str | None:
        """As recorded: ``running``, ``complete``, ``failed`` or ``stopped``."""
        return self.record.get("status")

    @property
    def outcome(self) -> str:
        """How the run ended: complete, failed, stopped (also without a record of it), or new without a folder."""
        if not self.folder.exists():
            return NEW
        status = self.record.get("status", COMPLETE)
        if RECORD in self._problems or (status == COMPLETE and not self.metrics):
            return STOPPED
        return status if status in (COMPLETE, FAILED) else STOPPED

    @property
    def ending(self) -> str:
        """The recorded status for people; a killed run could not record more than that it was running."""
        return {None: "not recorded", "running": "unfinished"}.get(self.status) or str(self.status)

    @property
    def error(self) -> str | None:
        """The recorded reason of a failure."""
        return self.record.get("error")

    @property
    def seed(self) -> int | None:
        """The recorded seed, or that of the composed configuration."""
        return self.record.get("seed", self.config.get("seed"))

    @property
    def commit(self) -> str:
        """The recorded git commit in short, and whether the code had changes; empty without a record."""
        commit, changes = self.record.get("git_commit"), self.record.get("git_dirty")
        return f"{str(commit)[:10]}{' with changes' if changes else ''}" if commit else ""

    @property
    def machine(self) -> str:
        """The recorded machine in words; empty without a record."""
        machine = self.record.get("machine") or {}
        cores, memory = machine.get("cores"), machine.get("memory_bytes")
        parts = [*(machine.get("gpus") or []), machine.get("cpu"), cores and f"{cores} cores"]
        return ", ".join(map(str, filter(None, [*parts, memory and f"{memory / 2**30:.2f} GiB of memory"])))

    def setting(self, key: str) -> Value | None:
        """A setting, from the overrides, the chosen groups or the configuration; ``None``: not recorded."""
        for name, value in map(parse_override, reversed(self.overrides)):
            if name == key:
                return value
        choices = self._file(".hydra/hydra.yaml").get("runtime", {}).get("choices", {})
        if key in choices:
            return _plain(choices[key])
        node = at(self.config, key, default={})
        return None if isinstance(node, dict) else _plain(node)

    @property
    def command(self) -> str:
        """The command line that repeats this run on its own, quoted for a POSIX shell."""
        job = self._file(".hydra/hydra.yaml").get("job", {}).get("name", "train")
        script = Path((self.record.get("command") or [f"{job}.py"])[0]).name
        overrides = [text for text in self.overrides if parse_override(text)[0] not in SWEEP_KEYS]
        return " ".join(["python", f"scripts/{script}", *map(shlex.quote, overrides)])


@functools.lru_cache(maxsize=10_000)
def parse_override(text: str) -> tuple[str, Value]:
    """Key and value of an override; text that Hydra cannot parse becomes a key without a value."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return text, ""
    return override.key_or_group, "deleted" if override.is_delete() else _plain(override.value())


def _plain(value: Any) -> Value:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = getattr(value, "text", value)  # a quoted string
    return text if isinstance(text, float | int | str) else str(value)


def find_runs(folder: Path) -> list[Run]:
    """All runs in or below a folder, named by their path in it, in natural order (2 before 10).

    A run's folder holds ``record.json`` or ``.hydra/overrides.yaml``; it is not searched further, and neither are
    hidden folders.
    """
    runs = []
    for place, folders, files in os.walk(folder):
        path = Path(place)
        if RECORD in files or (path / ".hydra" / "overrides.yaml").is_file():
            folders.clear()
            runs.append(
                Run(path, path.relative_to(folder).as_posix() if path != folder else folder.resolve().name)
            )
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(runs, key=lambda run: natural(run.name))


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Sorting key that compares the digits in a text as numbers."""
    parts = re.split(r"([0-9]+)", text)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml if it is installed: a hundred configurations take a second, not ten."""


def _mapping(path: Path) -> dict[str, Any]:
    return _read(path, dict)


def _read(path: Path, kind: type = list) -> Any:
    """The content of a JSON or YAML file, which must be of a kind; an empty one for an empty file."""
    text = path.read_text(encoding="utf-8")
    values = json.loads(text) if path.suffix == ".json" else yaml.load(text, _LOADER) or kind()
    if not isinstance(values, kind):
        raise ValueError(f"it holds no {'mapping of names to values' if kind is dict else 'list of overrides'}")
    return values


def _map_statistics(path: Path) -> dict[str, float]:
    """``{"bev": {"mean": 0.1}}`` as ``{"bev/mean": 0.1}``."""
    return {
        f"{sensor}/{name}": value
        for sensor, statistics in _mapping(path).items()
        for name, value in null_to_nan(statistics).items()
    }


def _curves(path: Path) -> dict[str, Curve]:
    """Learning curves of Lightning's CSV log; if a resumed run logged a step twice, the last value counts."""
    values: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, points in values.items():
                if row.get(name):
                    points[int(row["step"])] = float(row[name])
    return {name: (sorted(points), [points[step] for step in sorted(points)]) for name, points in values.items()}


_READERS: dict[str, Callable[[Path], Any]] = {
    RECORD: _mapping,
    ".hydra/run.json": _read,
    ".hydra/overrides.yaml": _read,
    ".hydra/hydra.yaml": lambda path: _mapping(path).get("hydra", {}),
    ".hydra/config.yaml": _mapping,
    "config.yaml": _mapping,
    "metrics.json": lambda path: null_to_nan(_mapping(path)),
    "map_statistics.json": _map_statistics,
    "csv/metrics.csv": _curves,
}
