"""A sweep as a whole: its plan before the first run, and its summary after the last."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.markup import escape
from rich.table import Table

from cmt_aqr.errors import UserError
from cmt_aqr.files import write_table
from cmt_aqr.runs.composition import resolvable
from cmt_aqr.runs.console import console
from cmt_aqr.runs.folder import COMPLETE, FAILED, NEW, STOPPED, Run
from cmt_aqr.runs.sweep_runs import identity, key_values, runs_of

log = logging.getLogger(__name__)


@dataclass
class Sweep:
    """A sweep in progress.

    Attributes:
        folder: of its runs.
        grid: overrides of each run; ``None`` if they are chosen during the sweep (Optuna).
    """

    folder: Path
    grid: list[list[str]] | None

    def runs(self) -> list[Run]:
        """The runs of this sweep, without others in its folder."""
        existing = {identity(run.claimed): run for run in runs_of(self.folder)}
        if self.grid is None:
            return list(existing.values())
        absent = self.folder / "-"
        return [existing.get(identity(item), Run(absent, overrides=item)) for item in self.grid]


_current: Sweep | None = None


class SweepCallback(Callback):
    """Checks and prints all runs of a sweep before the first one starts.

    Args:
        check: whether to check the configuration of each run; a sweep in which all are refused does not start.
    """

    def __init__(self, check: bool = True) -> None:
        self.check = check

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the plan of the sweep."""
        global _current
        try:
            grid = _grid(config)
            _current = Sweep(Path(config.hydra.sweep.dir), grid)
            _current.folder.mkdir(parents=True, exist_ok=True)
            if config.hydra.sweeper._target_.endswith(".OptunaSweeper"):
                _resume_study(config)
            if grid is not None:
                refused = _refused(config, grid) if self.check else {}
                _print_plan(_current, refused)
                if len(refused) == len(grid):
                    raise UserError(f"none of the {len(grid)} runs can work: {next(iter(refused.values()))}")
        except UserError as error:
            # Hydra turns other exceptions of callbacks into warnings.
            _current = None
            raise SystemExit(f"error: {error}") from error


class PlainCallback(Callback):
    """Replaces :class:`SweepCallback` for a command whose ``-m`` distributes work and sweeps no trainings."""

    def __init__(self, check: bool = False) -> None:
        pass


def forget() -> None:
    """Print no summary, because no run started."""
    global _current
    _current = None


def finish() -> str | None:
    """Print the summary of this process's sweep, and write ``summary.csv``.

    Returns:
        What went wrong, in one sentence; ``None`` if all runs are complete or there was no sweep.
    """
    global _current
    sweep, _current = _current, None
    if sweep is None:
        return None
    runs = sweep.runs()
    keys = swept_keys(runs)
    rows = summary_rows(runs, keys)
    console().print(summary_table(rows, keys, f"Sweep {sweep.folder}"))
    path = sweep.folder / "summary.csv"
    write_table(path, rows)
    console().print(f"This table is in {path}", soft_wrap=True)
    failed: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == FAILED:
            failed.setdefault(str(row["error"]), []).append(row["run"])
    unfinished = sum(row["status"] in (STOPPED, NEW) for row in rows)
    problems = []
    if failed:
        reasons = "; ".join(f"{' and '.join(names)}: {reason}" for reason, names in failed.items())
        problems.append(f"{sum(map(len, failed.values()))} of {len(rows)} runs failed ({reasons})")
    if unfinished:
        problems.append(f"{unfinished} of {len(rows)} runs did not end")
    if not problems:
        return None
    return f"{', and '.join(problems)}; the same command with sweep_dir={sweep.folder} resumes these"


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """The keys whose values differ between runs."""
    values = [key_values(run.claimed) for run in runs]
    keys = dict.fromkeys(key for mapping in values for key in mapping)
    return [key for key in keys if len({mapping.get(key) for mapping in values}) > 1]


def summary_rows(runs: Sequence[Run], keys: Sequence[str]) -> list[dict[str, Any]]:
    """One row per run, with the values of ``keys``.

    Only complete runs have metrics, because a folder may hold those of an earlier run.
    """
    rows = []
    for run in runs:
        metrics, values = run.metrics if run.outcome == COMPLETE else {}, key_values(run.claimed)
        rows.append(
            {
                "run": run.name,
                "status": run.outcome,
                "mAP": metrics.get("mAP"),
                "NDS": metrics.get("NDS"),
                "wall_time_s": run.record.get("wall_time_s"),
                "error": run.error if run.outcome == FAILED else None,
                **{key: values.get(key) for key in keys},
                "overrides": " ".join(run.claimed),
            }
        )
    return rows


def summary_table(rows: Sequence[dict[str, Any]], keys: Sequence[str], title: str) -> Table:
    """The rows for a terminal, with a column for each swept key; the best NDS is bold."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("run", justify="right")
    for key in keys:
        table.add_column(escape(key), overflow="fold")
    for name in ("mAP", "NDS", "seconds"):
        table.add_column(name, justify="right")
    for name in ("status", "reason"):
        table.add_column(name, overflow="fold")
    best = max((row["NDS"] for row in rows if row["NDS"] is not None), default=None)
    for row in rows:
        numbers = ((row["mAP"], ".4f"), (row["NDS"], ".4f"), (row["wall_time_s"], ".0f"))
        table.add_row(
            row["run"],
            *(escape(row[key] or "") for key in keys),
            *("-" if value is None else f"{value:{digits}}" for value, digits in numbers),
            row["status"],
            escape(row["error"] or ""),
            style="bold" if row["NDS"] is not None and row["NDS"] == best else None,
        )
    return table


def _grid(config: DictConfig) -> list[list[str]] | None:
    """Overrides of each run of a grid, as Hydra's own sweeper combines them; ``None`` for another sweeper."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(".BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    typed = list(config.hydra.overrides.task)
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    single = {
        item.get_key_element(): item for item in parser.parse_overrides(typed) if not item.is_sweep_override()
    }
    swept = [item.get_key_element() for item in parser.parse_overrides(params)]
    if swept and all(key in single for key in swept):
        lines = ", ".join(str(single[key].input_line) for key in swept)
        raise UserError(f"{lines}: leaves nothing to sweep, because the sweep chooses it; drop one of them")
    overrides = parser.parse_overrides(params + typed)
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{override.input_line}: only sweep=optuna takes intervals; list the values instead")
    (grid,) = BasicSweeper.split_arguments(overrides, None)
    return [list(item) for item in grid]


def _refused(config: DictConfig, grid: list[list[str]]) -> dict[int, str]:
    """Reasons why runs cannot work, by their index in the grid."""
    from cmt_aqr.runs.configuration import check_config

    refused = {}
    for number, overrides in enumerate(grid):
        job = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
        if job.ckpt_path not in (None, "auto"):
            continue  # the checkpoint holds the configuration
        job.ckpt_path = None
        with read_write(job.hydra.runtime), open_dict(job.hydra.runtime):
            job.hydra.runtime.output_dir = str(job.hydra.sweep.dir)
        with resolvable(job):
            try:
                check_config(OmegaConf.masked_copy(job, [str(key) for key in job if key != "hydra"]), overrides)
            except UserError as error:
                refused[number] = str(error)
    return refused


def _print_plan(sweep: Sweep, refused: dict[int, str]) -> None:
    outcomes = [run.outcome for run in sweep.runs()]
    complete, resumed = outcomes.count(COMPLETE), outcomes.count(FAILED) + outcomes.count(STOPPED)
    plan = f"A sweep of {len(outcomes)} runs in {sweep.folder}"
    plan += f"; {complete} complete and skipped" if complete else ""
    plan += f"; {resumed} started before, and resumed from their checkpoints if they have one" if resumed else ""
    log.info(plan)
    for number, reason in refused.items():
        log.warning("Run %d of the sweep cannot work: %s", number, reason)


def _resume_study(config: DictConfig) -> None:
    """Make Optuna resume the study in the sweep's folder.

    Unfinished trials are enqueued again with the same values, so that their runs are resumed; ``n_trials`` counts
    the trials of the complete study.
    """
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # of SQLAlchemy 1.4 about 2.0
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import optuna
    from optuna.trial import TrialState

    sweeper = config.hydra.sweeper
    study = optuna.create_study(
        study_name=sweeper.study_name,
        storage=sweeper.storage,
        direction=sweeper.direction,
        load_if_exists=True,
    )
    ended = 0
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            study._storage.set_trial_user_attr(trial._trial_id, "asked_again", True)
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
        elif trial.state.is_finished() and "asked_again" not in trial.user_attrs:
            ended += 1
    with read_write(config), open_dict(config):
        sweeper.n_trials = max(0, sweeper.n_trials - ended)
        if OmegaConf.select(sweeper, "sampler.seed") is not None:
            # With the same seed, the sampler would propose the same first values again.
            sweeper.sampler.seed += len(trials)
    log.info("The study in %s has %d trials; %d to go", config.hydra.sweep.dir, ended, sweeper.n_trials)
