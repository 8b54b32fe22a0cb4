"""A whole sweep: what there is to do before the first run, and what came out after the last."""

from __future__ import annotations

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
from cmt_aqr.runs.console import console
from cmt_aqr.runs.folder import COMPLETE, FAILED, NEW, STOPPED, Run
from cmt_aqr.runs.references import resolvable
from cmt_aqr.runs.sweep_runs import identity, key_values, runs_of

log = logging.getLogger(__name__)


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
        found = {identity(run.claimed): run for run in runs_of(self.folder)}
        if self.grid is None:
            return list(found.values())
        absent = self.folder / "-"
        return [found.get(identity(item), Run(absent, given=item)) for item in self.grid]


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
            if config.hydra.sweeper._target_.endswith(".OptunaSweeper"):
                _resume_study(config)
            if grid is not None:
                refused = _refused(config, grid) if self.check else {}
                _print_plan(_under_way, refused)
                if len(refused) == len(grid):
                    raise UserError(f"none of the {len(grid)} runs can work: {next(iter(refused.values()))}")
        except UserError as error:
            # Hydra turns other exceptions of callbacks into warnings.
            _under_way = None
            raise SystemExit(f"error: {error}") from error


class PlainCallback(Callback):
    """In place of :class:`SweepCallback` for a command whose ``-m`` shares out work: no sweep of trainings."""

    def __init__(self, check: bool = False) -> None:
        pass


def forget() -> None:
    """Print no summary, because no run was begun."""
    global _under_way
    _under_way = None


def finish() -> str | None:
    """Print the summary of the sweep that ended in this process, and write ``summary.csv``.

    What went wrong is returned in one sentence; ``None`` if all runs are complete or there was no sweep.
    """
    global _under_way
    sweep, _under_way = _under_way, None
    if sweep is None:
        return None
    runs = sweep.runs()
    console().print(summary_table(runs, f"Sweep {sweep.folder}"))
    path = sweep.folder / "summary.csv"
    write_table(path, summary_rows(runs))
    console().print(f"This table is in {path}", soft_wrap=True)
    failed = [run for run in runs if run.outcome == FAILED]
    unfinished = [run for run in runs if run.outcome in (STOPPED, NEW)]
    sentences = []
    if failed:
        names: dict[str, list[str]] = {}
        for run in failed:
            names.setdefault(str(run.error), []).append(run.name)
        reasons = "; ".join(f"{' and '.join(same)}: {reason}" for reason, same in names.items())
        sentences.append(f"{len(failed)} of {len(runs)} runs failed ({reasons})")
    if unfinished:
        sentences.append(f"{len(unfinished)} of {len(runs)} runs did not end")
    if not sentences:
        return None
    return f"{', and '.join(sentences)}; the same command with sweep_dir={sweep.folder} resumes these"


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """The keys whose values are not the same in all runs."""
    given = [key_values(run.claimed) for run in runs]
    keys = dict.fromkeys(key for values in given for key in values)
    return [key for key in keys if len({values.get(key) for values in given}) > 1]


def summary_table(runs: Sequence[Run], title: str) -> Table:
    """A table of the runs for rich to print; the best NDS is bold."""
    keys = swept_keys(runs)
    table = Table(title=escape(title), title_justify="left")
    table.add_column("run", justify="right")
    for key in keys:
        table.add_column(escape(key), overflow="fold")
    for name in ("mAP", "NDS", "seconds"):
        table.add_column(name, justify="right")
    for name in ("status", "reason"):
        table.add_column(name, overflow="fold")
    rows = summary_rows(runs)
    best = max((row["NDS"] for row in rows if row["NDS"] is not None), default=None)
    for row in rows:
        table.add_row(
            row["run"],
            *(escape(row[key] or "") for key in keys),
            *("-" if row[name] is None else f"{row[name]:.4f}" for name in ("mAP", "NDS")),
            "-" if row["wall_time_s"] is None else f"{row['wall_time_s']:.0f}",
            row["status"],
            escape(row["error"] or ""),
            style="bold" if row["NDS"] is not None and row["NDS"] == best else None,
        )
    return table


def summary_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each run, with what it reached if it is complete: results that another run left do not count."""
    keys, rows = swept_keys(runs), []
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


def _grid(config: DictConfig) -> list[list[str]] | None:
    """Overrides of each run of a grid, as Hydra's own sweeper makes them; ``None`` with another sweeper."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(".BasicSweeper"):
        return None
    of_sweep = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    given = list(config.hydra.overrides.task)
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    fixed = {one.get_key_element(): one for one in parser.parse_overrides(given) if not one.is_sweep_override()}
    twice = [fixed.get(one.get_key_element()) for one in parser.parse_overrides(of_sweep)]
    if twice and all(twice):
        lines = ", ".join(str(one.input_line) for one in twice if one is not None)
        raise UserError(f"{lines}: leaves nothing to sweep, because the sweep chooses it; drop one of them")
    overrides = parser.parse_overrides(of_sweep + given)
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{override.input_line}: only sweep=optuna takes intervals; list the values instead")
    (grid,) = BasicSweeper.split_arguments(overrides, None)
    return [list(item) for item in grid]


def _refused(config: DictConfig, grid: list[list[str]]) -> dict[int, str]:
    """Which runs cannot work, by their place in the grid, and why."""
    from cmt_aqr.runs.configuration import check_config

    refused = {}
    for number, overrides in enumerate(grid):
        job = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
        if job.ckpt_path not in (None, "auto"):
            continue  # the configuration stands in the checkpoint
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
    runs = sweep.runs()
    count = {status: sum(run.outcome == status for run in runs) for status in (COMPLETE, FAILED, STOPPED)}
    parts = [f"{count[COMPLETE]} complete and skipped"] if count[COMPLETE] else []
    again = count[FAILED] + count[STOPPED]
    parts += [f"{again} begun, and resumed from their checkpoints where they have one"] if again else []
    log.info("A sweep of %d runs in %s%s", len(runs), sweep.folder, "".join(f"; {part}" for part in parts))
    for number, reason in refused.items():
        log.warning("Run %d of the sweep cannot work: %s", number, reason)


def _resume_study(config: DictConfig) -> None:
    """Let Optuna resume the study in the sweep's folder.

    The trials that were under way are asked for again, with the same values, so that their runs are resumed; and
    ``n_trials`` counts those of the whole study.
    """
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # SQLAlchemy 1.4 on its successor
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
            # The same seed again would propose the same first values again.
            sweeper.sampler.seed += len(trials)
    log.info("The study in %s has %d trials; %d to go", config.hydra.sweep.dir, ended, sweeper.n_trials)
