"""Two processes: in a sweep, killed, requeued and resumed, started by torchrun, equal to one process."""

import socket
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
from nuscenes import NuScenes

from cmt_aqr.files import null_to_nan, read_record
from cmt_aqr.scenes import make_dataset
from tests.evaluation.test_official import assert_equal_to
from tests.helpers.commands import PAIR, arguments, finished, resuming, run_line, start, succeeded, torchrun
from tests.helpers.forked import environment
from tests.helpers.made_evaluation import devkit_evaluation
from tests.helpers.ran import assert_same_end, checkpoint_of, logged, metrics_of, requeued, wait_for_step
from tests.helpers.small_data import SMALL_SCENES

pytestmark = pytest.mark.system

SEVEN = [
    "data.root=data7",
    "data.cache_dir=cache7",
    "data.eval_batch_size=1",
    "trainer.max_epochs=3",  # of three steps on two processes, with one frame left over
    "trainer.log_every_n_steps=1",
]
LONG = [
    *SEVEN,
    *PAIR,
    "trainer.precision=bf16-mixed",
    "trainer.check_val_every_n_epoch=2",
    "callbacks.checkpoint.every_n_steps=1",
    "data.limit_eval_frames=1",  # fewer than processes
]
STEPS = 9
EQUAL = [
    *SEVEN,
    "trainer.check_val_every_n_epoch=3",
    # Off: what depends on how frames are distributed, noise and batch norms that learn.
    "aqr.generator.dropout=0",
    "training.denoising.groups=0",
    "model.network.image.norm_eval=true",
    "lr_mult.pts_backbone=0",
    "lr_mult.embeddings=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where commands run; its ``data7`` has one scene of seven frames per split."""
    folder = tmp_path_factory.mktemp("ddp")
    make_dataset(folder / "data7", samples_per_scene=7, **SMALL_SCENES)
    return folder


def workers(folder: Path) -> list[psutil.Process]:
    """The running processes of runs that were started in a folder."""
    processes = psutil.process_iter(["cmdline", "cwd"], ad_value=())
    return [
        one for one in processes if "cmt_aqr.runs.worker" in one.info["cmdline"] and one.info["cwd"] == str(folder)
    ]


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Path:
    before = set(folder.iterdir())
    done = finished(folder, "train", "-m", *LONG, "seed=0,1", "hydra.sweep.dir=sweep")
    assert {path.name for path in set(folder.iterdir()) - before} == {"sweep", "cache7"}
    assert done.stdout.count("AQR's maps before the clamp, epoch 2") == 2, "only each run's first process prints"
    return folder / "sweep"


def test_a_sweep_has_one_folder_per_run_and_leaves_no_process(folder: Path, sweep: Path) -> None:
    assert workers(folder) == []
    assert {path.name for path in sweep.iterdir()} == {"0", "1", "multirun.yaml", "summary.csv"}
    for run in (sweep / "0", sweep / "1"):
        parts = {path.name for path in run.iterdir()}
        expected = {"config.yaml", "record.json", "metrics.json", "checkpoints", "csv", "tensorboard"}
        assert expected <= parts <= {*expected, ".hydra", "train.log", "metrics.csv", "map_statistics.json"}
        assert checkpoint_of(run)["global_step"] == STEPS
        assert "trainer.devices=2" in read_record(run)["overrides"]
        # Plain ddp: a parameter that the first step does not use would make the second fail.
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
    _, alive = psutil.wait_procs(running, timeout=10)
    assert alive == []
    stopped = checkpoint_of(killed)["global_step"]
    assert 4 <= stopped < STEPS

    resumed = folder / "resumed"
    succeeded(run_line(folder, resuming(killed / "checkpoints" / "last.ckpt", resumed)))
    curve = logged(sweep / "1", "train/loss")
    assert logged(resumed, "train/loss") == {step: value for step, value in curve.items() if step >= stopped}
    assert_same_end(resumed, sweep / "1")


def test_requeued_it_is_the_sweep_s_second_run(folder: Path, sweep: Path) -> None:
    line = [*LONG, "seed=1", "data.num_workers=1", "hydra.run.dir=requeued"]
    run = requeued(folder, line, folder / "requeued", STEPS)
    assert logged(run, "train/loss") == logged(sweep / "1", "train/loss")
    assert_same_end(run, sweep / "1")


@pytest.fixture(scope="module")
def single(folder: Path) -> Path:
    finished(folder, "train", *EQUAL, "data.batch_size=2", "hydra.run.dir=single")
    return folder / "single"


@pytest.fixture(scope="module")
def pair(folder: Path) -> Path:
    """A run of two processes that torchrun started, in the default folder."""
    options = ["--standalone", "--nproc-per-node=2"]
    succeeded(run_line(folder, torchrun(options, *EQUAL, *PAIR, "data.batch_size=1", "name=pair")))
    # One run folder, although each process has its own clock.
    (pair,) = (folder / "outputs").glob("*/*_pair")
    return pair


def test_two_machines_are_two_processes_of_one(folder: Path, pair: Path) -> None:
    """As in docs/distributed.md, with both torchrun agents on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
    machine = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "+trainer.num_nodes=2"]
    line = torchrun(options, *EQUAL, *machine, "data.batch_size=1", "name=machines")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(line, cwd=folder, env=environment(), encoding="utf-8", **pipes) as other:  # type: ignore[call-overload]
        done = run_line(folder, line)
        printed, _ = other.communicate(timeout=60)
    assert (done.returncode, other.returncode) == (0, 0), (done.stderr, printed)
    (machines,) = (folder / "outputs").glob("*/*_machines")
    assert len(logged(machines, "train/loss")) == STEPS
    assert logged(machines, "train/loss") == logged(pair, "train/loss")
    assert_same_end(machines, pair)


def test_two_processes_of_torchrun_are_one_with_twice_the_batch(pair: Path, single: Path) -> None:
    for key in ("train/loss", "train/loss_cls", "train/loss_bbox"):
        alone, together = logged(single, key), logged(pair, key)
        assert len(alone) == STEPS
        assert together == pytest.approx(alone, rel=1e-5), key
    # All weights as one vector: AdamW makes full steps of gradients that are rounding errors, as those of the
    # keys' biases are.
    weights = [
        torch.cat([value.double().flatten() for value in checkpoint_of(run)["state_dict"].values()])
        for run in (single, pair)
    ]
    assert (weights[1] - weights[0]).norm() <= 1e-3 * weights[0].norm()
    alone, together = metrics_of(single), metrics_of(pair)
    assert together["frames"] == alone["frames"] == 7
    assert together == pytest.approx(alone, abs=1e-3)


def test_seven_frames_on_two_processes_give_the_same_metrics(folder: Path, single: Path) -> None:
    line = ["ckpt_path=single", *PAIR, "data.num_workers=1", "write_results=true", "hydra.run.dir=evaluated"]
    done = finished(folder, "evaluate", *line)
    evaluated = folder / "evaluated"
    assert metrics_of(single)["frames"] == 7
    assert (evaluated / "metrics.json").read_bytes() == (single / "metrics.json").read_bytes()
    tables = NuScenes("v1.0-mini", str(folder / "data7"), verbose=False)
    devkit = devkit_evaluation(tables, evaluated / "results_nusc.json", folder / "devkit", "mini_val")
    assert_equal_to(devkit.evaluate()[0].serialize(), null_to_nan(metrics_of(evaluated)))
    assert "All boxes" in done.stdout
