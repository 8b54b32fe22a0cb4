"""Sweeps as users start, stop and resume them."""

import csv
import subprocess
from pathlib import Path

import pytest

from cmt_aqr.runs.folder import Run
from cmt_aqr.runs.sweep_runs import runs_of
from tests.helpers.commands import arguments, finished, run_command
from tests.helpers.ran import checkpoint_of, killed, metrics_of

pytestmark = pytest.mark.system

TWO_CLAMPS = ["sweep=clamp_x_residual", "renderer.max_weight_clamp=-1.0,1.5", "modulator.residual_weight=0.5"]


def sweep(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run_command(folder, "train", "trainer.max_steps=1", *overrides)


def statuses(folder: Path) -> dict[str, str]:
    return {run.name: run.outcome for run in runs_of(folder)}


def test_a_failed_run_is_named_and_complete_ones_are_skipped(run_folder: Path) -> None:
    """The runs after it still take place."""
    folder = run_folder / "clamps"
    done = sweep(run_folder, *TWO_CLAMPS, f"sweep_dir={folder}")
    assert done.returncode == 1
    reason = "renderer.max_weight_clamp=-1.0: must be above 0, or null for no clamp"
    assert f"Run 0 of the sweep cannot work: {reason}" in done.stdout.split("Launching")[0]
    assert f"error: 1 of 2 runs failed (0: {reason}); the same command with sweep_dir={folder}" in done.stderr
    assert "Traceback" not in done.stderr
    assert statuses(folder) == {"0": "failed", "1": "complete"}
    with (folder / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    values = {run: (row["status"], row["renderer.max_weight_clamp"]) for run, row in rows.items()}
    assert values == {"1": ("complete", "1.5"), "0": ("failed", "-1.0")}
    assert float(rows["1"]["NDS"]) == metrics_of(folder / "1")["NDS"]
    assert rows["0"]["error"] == reason

    # The sweep again, with another run in place of the failed one: the complete run keeps its folder and result.
    before = (folder / "1" / "metrics.json").stat().st_mtime_ns
    line = ["-m", "modulator.residual_weight=0.5", "renderer.max_weight_clamp=1.5,2.5", "sweep_dir=clamps"]
    done = sweep(run_folder, *line)
    assert done.returncode == 0, done.stderr
    assert "1 is complete: skipped" in done.stdout
    assert (folder / "1" / "metrics.json").stat().st_mtime_ns == before
    assert statuses(folder) == {"0": "failed", "1": "complete", "2": "complete"}
    assert "renderer.max_weight_clamp=2.5" in Run(folder / "2").overrides


def test_a_killed_sweep_is_resumed(run_folder: Path) -> None:
    folder, steps = run_folder / "killed", 12
    line = ["-m", "seed=0,1", "trainer.max_epochs=-1", f"trainer.max_steps={steps}", f"sweep_dir={folder}"]
    line += ["callbacks.checkpoint.every_n_steps=1"]
    killed(run_folder, arguments("train", *line), folder / "1", 1, steps)
    assert statuses(folder) == {"0": "complete", "1": "stopped"}
    done = finished(run_folder, "train", *line)
    assert f"{folder}/0 is complete: skipped" in done.stdout
    assert f"Restored all states from the checkpoint at {folder}/1/checkpoints/" in done.stdout
    assert statuses(folder) == {"0": "complete", "1": "complete"}
    assert checkpoint_of(folder / "1")["global_step"] == steps


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (["-m", "weights=nowhere,neither"], "none of the 2 runs can work: weights=nowhere: there is no such file"),
        (["sweep=presets", "experiment=overfit"], "experiment=overfit: leaves nothing to sweep"),
        (["-m", "optimizer.lr=interval(0.1,0.2)"], "only sweep=optuna takes intervals"),
        (["-m", "renderer=base,foo"], "renderer=foo: there is no such option"),
    ],
)
def test_a_sweep_that_cannot_work_does_not_start(run_folder: Path, line: list[str], error: str) -> None:
    done = sweep(run_folder, *line, "sweep_dir=none")
    assert done.returncode == 1 and error in done.stderr
    assert runs_of(run_folder / "none") == []


def test_ray_runs_each_as_a_task(run_folder: Path) -> None:
    pytest.importorskip("ray", reason="launcher=ray is an extra of some 100 MB: docs/sweeps.md")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="pip install --no-deps hydra-ray-launcher")
    done = sweep(run_folder, "-m", "launcher=ray", "renderer.max_weight_clamp=1.5,-1.0", "sweep_dir=ray")
    assert done.returncode == 1 and "1 of 2 runs failed (1: renderer.max_weight_clamp=-1.0" in done.stderr
    assert statuses(run_folder / "ray") == {"0": "complete", "1": "failed"}


def test_an_optuna_study_is_resumed(run_folder: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="pip install -e '.[sweeps]'")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install -e '.[sweeps]'")
    folder = run_folder / "study"
    storage = f"sqlite:///{folder}/study.db"
    values = []
    for trials in (1, 2):
        done = sweep(run_folder, "sweep=optuna", f"hydra.sweeper.n_trials={trials}", "sweep_dir=study")
        assert done.returncode == 0, done.stderr
        study = optuna.load_study(study_name="nds", storage=storage)
        values.append([trial.value for trial in study.get_trials()])
        if trials == 1:
            # As if the command had been killed during a second run.
            study.ask({"renderer.max_weight_clamp": optuna.distributions.UniformDistribution(1.0, 3.0)})
    assert "NDS" in done.stdout and study.direction.name == "MAXIMIZE"
    states = [trial.state.name for trial in study.get_trials()]
    assert states == ["COMPLETE", "FAIL", "COMPLETE"]
    first, failed, last = study.get_trials()
    assert last.params["renderer.max_weight_clamp"] == failed.params["renderer.max_weight_clamp"]
    assert values == [[first.value], [first.value, None, last.value]]
    assert [first.value, last.value] == [metrics_of(folder / name)["NDS"] for name in ("0", "1")]
