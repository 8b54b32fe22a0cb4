"""Two processes, as one: in a sweep, killed and resumed, started by torchrun, and evaluating."""

import socket
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from cmt_aqr.files import null_to_nan, read_record
from cmt_aqr.scenes import make_dataset
from tests.evaluation.test_metric import assert_equal_to, evaluation_of
from tests.helpers.commands import (
    PAIR,
    arguments,
    environment,
    finished,
    resuming,
    run_line,
    start,
    torchrun,
    torchrun_on_one_of_two,
)
from tests.helpers.ran import assert_same_end, checkpoint_of, logged, metrics_of, wait_for_step

pytestmark = pytest.mark.system

SEVEN = ["data.root=data7", "data.cache_dir=cache7", "data.eval_batch_size=1"]
LONG = [
    *SEVEN,
    *PAIR,
    "trainer.max_epochs=3",  # of three steps on two processes, one frame left over
    "trainer.log_every_n_steps=1",
    "trainer.check_val_every_n_epoch=2",
    "callbacks.checkpoint.every_n_steps=1",
    "data.limit_eval_frames=1",  # fewer than processes
]
EQUAL = [
    *SEVEN,
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
    "trainer.check_val_every_n_epoch=3",
    # What depends on how frames are shared out: noise, and batch norms that learn.
    "aqr.generator.dropout=0",
    "training.denoising.groups=0",
    "model.network.image.norm_eval=true",
    "lr_mult.pts_backbone=0",
    "lr_mult.embeddings=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands run; ``data7`` in it has two scenes of seven frames, one a split."""
    folder = tmp_path_factory.mktemp("ddp")
    settings = {"azimuth_resolution": 2.0, "image_width": 160, "workers": 1, "progress": False}
    make_dataset(folder / "data7", scenes=2, samples_per_scene=7, **settings)  # type: ignore[arg-type]
    return folder


def workers(folder: Path) -> list[psutil.Process]:
    """Processes of runs in a folder that are there now."""
    found = []
    for process in psutil.process_iter():
        try:
            if "cmt_aqr.runs.worker" in process.cmdline() and process.cwd() == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Path:
    before = set(folder.iterdir())
    done = finished(folder, "train", "-m", *LONG, "seed=0,1", "hydra.sweep.dir=sweep")
    assert {path.name for path in set(folder.iterdir()) - before} == {"sweep", "cache7"}
    assert done.stdout.count("AQR's maps before the clamp, epoch 2") == 2, "each run's first process alone prints"
    return folder / "sweep"


def test_a_sweep_has_one_folder_a_run_and_leaves_no_process(folder: Path, sweep: Path) -> None:
    assert workers(folder) == []
    assert {path.name for path in sweep.iterdir()} == {"0", "1", "multirun.yaml", "summary.csv"}
    for run in (sweep / "0", sweep / "1"):
        parts = {path.name for path in run.iterdir()}
        expected = {"config.yaml", "record.json", "metrics.json", "checkpoints", "csv", "tensorboard"}
        assert expected <= parts <= {*expected, ".hydra", "train.log", "metrics.csv", "map_statistics.json"}
        assert checkpoint_of(run)["global_step"] == 9
        assert "trainer.devices=2" in read_record(run)["overrides"]
        # Plain ddp: a parameter without a part in the first step would end the second.
        assert "strategy: ddp\n" in (run / "config.yaml").read_text(encoding="utf-8")
    assert logged(sweep / "0", "train/loss") != logged(sweep / "1", "train/loss")


def test_killed_and_resumed_alone_it_is_the_sweep_s_second_run(folder: Path, sweep: Path) -> None:
    killed = folder / "killed"
    process = start(folder, arguments("train", *LONG, "seed=1", f"hydra.run.dir={killed}"))
    try:
        wait_for_step(killed, 4, process)
        running = workers(folder)
    finally:
        process.kill()
        process.wait()
    assert len(running) == 2
    _, left = psutil.wait_procs(running, timeout=10)
    assert left == []
    stopped = checkpoint_of(killed)["global_step"]
    assert 4 <= stopped < 9

    resumed = folder / "resumed"
    done = run_line(folder, resuming(killed / "checkpoints" / "last.ckpt", resumed))
    assert done.returncode == 0, done.stderr
    whole, rest = logged(sweep / "1", "train/loss"), logged(resumed, "train/loss")
    assert len(rest) == 9 - stopped
    assert rest == {step: value for step, value in whole.items() if step in rest}
    assert_same_end(resumed, sweep / "1")


@pytest.fixture(scope="module")
def single(folder: Path) -> Path:
    finished(folder, "train", *EQUAL, "data.batch_size=2", "hydra.run.dir=single")
    return folder / "single"


@pytest.fixture(scope="module")
def pair(folder: Path) -> Path:
    """A run of two processes that torchrun started, in the folder that it chose."""
    done = run_line(folder, torchrun(*EQUAL, *PAIR, "data.batch_size=1", "name=pair"))
    assert done.returncode == 0, done.stderr
    # One run folder, though each process has its own clock.
    (pair,) = (folder / "outputs").glob("*/*_pair")
    return pair


def test_two_machines_are_two_processes_of_one(folder: Path, pair: Path) -> None:
    """As docs/distributed.md has it, with both torchrun agents on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    one = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "+trainer.num_nodes=2"]
    line = torchrun_on_one_of_two(port, *EQUAL, *one, "data.batch_size=1", "name=machines")
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(line, cwd=folder, env=environment(), encoding="utf-8", **both) as other:  # type: ignore[call-overload]
        done = run_line(folder, line)
        printed, _ = other.communicate(timeout=60)
    assert (done.returncode, other.returncode) == (0, 0), (done.stderr, printed)
    (machines,) = (folder / "outputs").glob("*/*_machines")
    assert len(logged(machines, "train/loss")) == 9
    assert logged(machines, "train/loss") == logged(pair, "train/loss")
    assert_same_end(machines, pair)


def test_two_processes_of_torchrun_are_one_with_twice_the_batch(pair: Path, single: Path) -> None:
    for key in ("train/loss", "train/loss_cls", "train/loss_bbox"):
        alone, together = logged(single, key), logged(pair, key)
        assert len(alone) == 9
        assert together == pytest.approx(alone, rel=1e-5), key
    # All weights as one vector: AdamW makes whole steps of gradients that are 0 but for rounding, as those of
    # the keys' biases are.
    weights = [
        torch.cat([value.double().flatten() for value in checkpoint_of(run)["state_dict"].values()])
        for run in (single, pair)
    ]
    assert (weights[1] - weights[0]).norm() <= 1e-3 * weights[0].norm()
    alone, together = metrics_of(single), metrics_of(pair)
    assert together["frames"] == alone["frames"] == 7
    assert together == pytest.approx(alone, abs=1e-3)


def test_seven_frames_on_two_processes_give_the_same_metrics(folder: Path, single: Path) -> None:
    line = ["ckpt_path=single", *PAIR, "write_results=true", "hydra.run.dir=evaluated"]
    done = finished(folder, "evaluate", *line)
    evaluated = folder / "evaluated"
    assert metrics_of(single)["frames"] == 7
    assert (evaluated / "metrics.json").read_bytes() == (single / "metrics.json").read_bytes()
    devkit = evaluation_of(folder / "data7", "mini_val", evaluated / "results_nusc.json", folder / "devkit")
    assert_equal_to(devkit, null_to_nan(metrics_of(evaluated)))
    assert "All boxes" in done.stdout
