"""Sweeps: many runs from one command, in a folder that can be gone on with, and a summary at the end.

What a run is told by is its overrides, and how it ended stands in its folder; so it does not matter in which
process, on which machine or in which order the runs took place.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from cmt_aqr.data.files import written_at_once
from cmt_aqr.errors import UserError

log = logging.getLogger(__name__)

COMPLETE, FAILED, STOPPED, NEW = "complete", "failed", "stopped", "new"
_NOT_OF_THE_RUN = ("sweep", "launcher", "sweep_dir")
"""Overrides that decide how runs are started, not what they compute."""


def identity(overrides: Sequence[str]) -> frozenset[tuple[str, str]]:
    """What a run is told by: keys and values of its overrides, in any order and spelling."""
    values: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.get_key_element(), override.get_value_element_as_str()
        if key not in _NOT_OF_THE_RUN and (key, value) != ("ckpt_path", "auto"):
            values[key] = value
    return frozenset(values.items())


@dataclass(frozen=True)
class Run:
    """A run's folder in a sweep.

    Attributes:
        folder: of the run; it need not exist.
        overrides: those of the run.
        status: ``complete``, ``failed``, ``stopped`` or ``new``.
        metrics: the official metrics of a complete run.
        error: why it failed, in one sentence.
        seconds: wall time, where it is known.
    """

    folder: Path
    overrides: tuple[str, ...]
    status: str
    metrics: dict[str, float]
    error: str | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        """The folder's name: the run's number."""
        return self.folder.name

    @classmethod
    def read(cls, folder: Path) -> Run:
        """What a folder tells; a run that nobody ended counts as stopped."""
        overrides = _written_overrides(folder)
        record = _read_json(folder / "record.json")
        metrics = _read_json(folder / "metrics.json")
        status = record.get("status", COMPLETE if metrics else STOPPED)
        if status not in (COMPLETE, FAILED) or (status == COMPLETE and not metrics):
            status = STOPPED
        if not folder.exists():
            status = NEW
        return cls(
            folder=folder,
            overrides=tuple(overrides or ()),
            status=status,
            metrics=metrics if status == COMPLETE else {},
            error=record.get("error") if status == FAILED else None,
            seconds=record.get("wall_time_s"),
        )


def runs_of(sweep_dir: Path) -> list[Run]:
    """All runs in a sweep's folder, by their numbers."""
    folders = [path.parent.parent for path in sweep_dir.glob("*/.hydra/overrides.yaml")]
    return [Run.read(folder) for folder in sorted(folders, key=_number)]


def _number(folder: Path) -> tuple[float, str]:
    return (int(folder.name) if folder.name.isdecimal() else math.inf, folder.name)


def run_folder(sweep_dir: str, number: int, overrides: Sequence[str]) -> str:
    """The name of a run's folder in its sweep: the one that it had before, else its number or the next free one.

    The folder is made at once, so that runs that begin at the same time get different ones.
    """
    wanted, names = identity(overrides), []
    for path in Path(sweep_dir).glob("*/.hydra/overrides.yaml"):
        names.append(path.parent.parent.name)
        if identity(_written_overrides(path.parent.parent) or ()) == wanted:
            return names[-1]
    name = number
    while not _claim(Path(sweep_dir) / str(name), overrides):
        name = max(name, *(int(taken) for taken in names if taken.isdecimal()), 0) + 1
    return str(name)


def _claim(folder: Path, overrides: Sequence[str]) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    (folder / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
    return True


def _written_overrides(folder: Path) -> list[str] | None:
    path = folder / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return None
    written = OmegaConf.load(path)
    return [str(item) for item in written] if isinstance(written, ListConfig) else []


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


OmegaConf.register_new_resolver("sweep_folder", lambda given, default: given or default, replace=True)
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


def in_sweep() -> bool:
    """Whether this is a run of a sweep that ends with a summary."""
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and "sweep" in hydra.callbacks


def run(function: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """A run of a sweep: skipped if it is complete; if it fails, that is written down and the others go on.

    Returns:
        What ``function`` returns, the NDS of a run that was complete, or ``None`` after a failure.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    before = Run.read(folder)
    if before.status == COMPLETE:
        log.info("%s is complete: skipped", folder)
        return before.metrics["NDS"]
    try:
        return function(config)
    except Exception as error:
        known = isinstance(error, UserError)
        log.error("This run failed: %s", error, exc_info=None if known else error)
        _write_failure(folder, error)
        return None


def checkpoint_to_go_on_from(folder: Path) -> Path | None:
    """The checkpoint that an unfinished run of a sweep left, if this is one."""
    last = folder / "checkpoints" / "last.ckpt"
    return last if in_sweep() and last.is_file() else None


def _write_failure(folder: Path, error: Exception) -> None:
    text = " ".join(str(error).split())
    sentence = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    record = _read_json(folder / "record.json") | {"status": FAILED, "error": sentence}
    with written_at_once(folder / "record.json") as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")


@dataclass
class Sweep:
    """A sweep under way.

    Attributes:
        folder: where its runs are.
        grid: overrides of each run; ``None`` where they are chosen on the way (Optuna).
    """

    folder: Path
    grid: list[list[str]] | None

    def runs(self) -> list[Run]:
        """The runs of this sweep; those of its folder that it does not ask for are left out."""
        found = {identity(run.overrides): run for run in runs_of(self.folder)}
        if self.grid is None:
            return list(found.values())
        absent = self.folder / "-"
        return [found.get(identity(item), Run(absent, tuple(item), NEW, {})) for item in self.grid]


_under_way: Sweep | None = None


class SweepCallback(Callback):
    """Looks at all runs of a sweep before the first one starts.

    Args:
        check: whether to check the values of each run; a sweep none of whose runs can work is refused.
    """

    def __init__(self, check: bool = True) -> None:
        self.check = check

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say what there is to do."""
        global _under_way
        try:
            grid = _grid(config)
            _under_way = Sweep(Path(config.hydra.sweep.dir), grid)
            _under_way.folder.mkdir(parents=True, exist_ok=True)
            if grid is None:
                _go_on_with_study(config)
            else:
                refused = _refused(config, grid) if self.check else {}
                _print_plan(_under_way, refused)
                if len(refused) == len(grid):
                    raise UserError(f"none of the {len(grid)} runs can work: {next(iter(refused.values()))}")
        except UserError as error:
            # Hydra turns other exceptions of callbacks into warnings.
            _under_way = None
            raise SystemExit(f"error: {error}") from error


def finish() -> str | None:
    """Print the summary of the sweep that ended in this process, and write ``summary.csv``.

    Returns:
        What went wrong, in one sentence; ``None`` if all runs are complete or there was no sweep.
    """
    global _under_way
    sweep, _under_way = _under_way, None
    if sweep is None:
        return None
    # Imported here: pages of text are printed by this process only.
    from cmt_aqr.visual.console import console

    runs = sweep.runs()
    console().print(summary_table(runs, f"Sweep {sweep.folder}"))
    path = write_summary(runs, sweep.folder / "summary.csv")
    console().print(f"This table is in {path}", soft_wrap=True)
    failed = [run for run in runs if run.status == FAILED]
    unfinished = [run for run in runs if run.status in (STOPPED, NEW)]
    sentences = []
    if failed:
        reasons = "; ".join(f"{run.name}: {run.error}" for run in failed)
        sentences.append(f"{len(failed)} of {len(runs)} runs failed ({reasons})")
    if unfinished:
        sentences.append(f"{len(unfinished)} of {len(runs)} runs did not end")
    if not sentences:
        return None
    return f"{', and '.join(sentences)}; the same command with sweep_dir={sweep.folder} goes on with these"


def _grid(config: DictConfig) -> list[list[str]] | None:
    """Overrides of each run of a grid, as Hydra's own sweeper makes them; ``None`` with another sweeper."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(".BasicSweeper"):
        return None
    of_sweep = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    given = list(config.hydra.overrides.task)
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    _refuse_nothing_to_sweep(parser.parse_overrides(of_sweep), parser.parse_overrides(given))
    (grid,) = BasicSweeper.split_arguments(parser.parse_overrides(of_sweep + given), None)
    return [list(item) for item in grid]


def _refuse_nothing_to_sweep(of_sweep: list[Override], given: list[Override]) -> None:
    fixed = {item.get_key_element(): item for item in given if not item.is_sweep_override()}
    if of_sweep and all(item.get_key_element() in fixed for item in of_sweep):
        lines = ", ".join(str(fixed[item.get_key_element()].input_line) for item in of_sweep)
        raise UserError(f"{lines}: leaves nothing to sweep, because the sweep chooses it; drop one of them")


def _refused(config: DictConfig, grid: list[list[str]]) -> dict[int, str]:
    """Which runs cannot work, by their place in the grid, and why."""
    from cmt_aqr.configuration import check_config

    refused = {}
    for number, overrides in enumerate(grid):
        job = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
        if job.ckpt_path:
            continue  # the configuration stands in the checkpoint
        with _job_config(job) as task:
            try:
                check_config(task, overrides)
            except UserError as error:
                refused[number] = str(error)
    return refused


@contextlib.contextmanager
def _job_config(job: DictConfig) -> Iterator[DictConfig]:
    """A run's configuration without Hydra's part, which can be asked for meanwhile."""
    outer = HydraConfig.instance().cfg
    with read_write(job.hydra.runtime), open_dict(job.hydra.runtime):
        job.hydra.runtime.output_dir = str(job.hydra.sweep.dir)
    HydraConfig.instance().set_config(job)
    task = copy.deepcopy(job)
    with open_dict(task):
        del task["hydra"]
    try:
        yield task
    finally:
        HydraConfig.instance().cfg = outer


def _print_plan(sweep: Sweep, refused: dict[int, str]) -> None:
    runs = sweep.runs()
    count = {status: sum(run.status == status for run in runs) for status in (COMPLETE, FAILED, STOPPED)}
    parts = [f"{count[COMPLETE]} complete and skipped"] if count[COMPLETE] else []
    again = count[FAILED] + count[STOPPED]
    parts += [f"{again} begun, and gone on with from their checkpoints where they have one"] if again else []
    log.info("A sweep of %d runs in %s%s", len(runs), sweep.folder, "".join(f"; {part}" for part in parts))
    for number, reason in refused.items():
        log.warning("Run %d of the sweep cannot work: %s", number, reason)


def _go_on_with_study(config: DictConfig) -> None:
    """Let Optuna go on with the study in the sweep's folder.

    The trials that were under way are asked for again, with the same values, so that their runs go on; and
    ``n_trials`` counts those of the whole study.
    """
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # SQLAlchemy 1.4 on its successor
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import optuna
    from optuna.trial import TrialState

    sweeper = config.hydra.sweeper
    study = optuna.create_study(
        study_name=sweeper.study_name, storage=sweeper.storage, direction="maximize", load_if_exists=True
    )
    ended = 0
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.RUNNING:
            study._storage.set_trial_user_attr(trial._trial_id, "asked_again", True)
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
        elif trial.state.is_finished() and "asked_again" not in trial.user_attrs:
            ended += 1
    with read_write(config), open_dict(config):
        sweeper.n_trials = max(0, sweeper.n_trials - ended)
    log.info("The study in %s has %d trials; %d to go", config.hydra.sweep.dir, ended, sweeper.n_trials)


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """The keys whose values are not the same in all runs."""
    given = [_values(run) for run in runs]
    keys = dict.fromkeys(key for values in given for key in values)
    return [key for key in keys if len({values.get(key) for values in given}) > 1]


def summary_table(runs: Sequence[Run], title: str) -> Any:
    """A table of the runs for rich to print; the best NDS is bold."""
    from rich.markup import escape
    from rich.table import Table

    keys = swept_keys(runs)
    table = Table(title=escape(title), title_justify="left")
    table.add_column("run", justify="right")
    for key in keys:
        table.add_column(escape(key), overflow="fold")
    for name in ("mAP", "NDS", "seconds"):
        table.add_column(name, justify="right")
    for name in ("status", "reason"):
        table.add_column(name, overflow="fold")
    best = max((run.metrics["NDS"] for run in runs if run.metrics), default=None)
    for run in runs:
        values = _values(run)
        numbers = [f"{run.metrics[name]:.4f}" if run.metrics else "-" for name in ("mAP", "NDS")]
        seconds = f"{run.seconds:.0f}" if run.seconds is not None else "-"
        table.add_row(
            run.name,
            *(escape(values.get(key, "")) for key in keys),
            *numbers,
            seconds,
            run.status,
            escape(run.error or ""),
            style="bold" if run.metrics and run.metrics["NDS"] == best else None,
        )
    return table


def write_summary(runs: Sequence[Run], path: Path) -> Path:
    """Write the table as CSV: a line for each run, with a column for each swept key.

    Returns:
        ``path``.
    """
    keys = swept_keys(runs)
    with written_at_once(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "status", "mAP", "NDS", "wall_time_s", "error", *keys, "overrides"])
        for run in runs:
            values = _values(run)
            numbers = [run.metrics.get("mAP"), run.metrics.get("NDS"), run.seconds]
            cells = [values.get(key) for key in keys]
            writer.writerow([run.name, run.status, *numbers, run.error, *cells, " ".join(run.overrides)])
    return path


def _values(run: Run) -> dict[str, str]:
    return dict(sorted(identity(run.overrides)))
