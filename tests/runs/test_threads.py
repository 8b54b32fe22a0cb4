"""Threads by model, cores and environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmt_aqr.runs.threads import SETTINGS, sleep_while_waiting, threads_for

SMALL, LARGE = (41, 128, 128), (41, 1024, 1024)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SETTINGS, "CMT_AQR_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("cores", "processes", "shape", "threads"),
    [
        (2, 1, SMALL, 2),
        (4, 1, SMALL, 2),
        (16, 1, SMALL, 8),
        (16, 4, LARGE, 4),
        (2, 8, LARGE, 1),
        (1, 1, SMALL, 1),
    ],
)
def test_threads_are_a_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, shape: tuple[int, ...], threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    sleep_while_waiting()
    assert int(os.environ["GOMP_SPINCOUNT"]) > 0
    assert threads_for(shape, processes) == threads


@pytest.mark.parametrize("name", SETTINGS)
def test_the_environment_takes_precedence(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "3")
    before = dict(os.environ)
    sleep_while_waiting()
    assert dict(os.environ) == before and threads_for(SMALL, 1) is None


def test_a_command_sets_the_environment_before_pytorch_is_loaded() -> None:
    """OpenMP reads the environment once, when it is loaded."""
    script = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
    code = (
        "import os, runpy, sys\n"
        "from cmt_aqr.runs import command\n"
        "assert 'torch' not in sys.modules, 'PyTorch is loaded with the command line'\n"
        "command.check_overrides = lambda *_: sys.exit(os.environ.get('GOMP_SPINCOUNT', 'not set'))\n"
        f"sys.argv = [{str(script)!r}]\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(script.parents[1] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert int(done.stderr) > 0
