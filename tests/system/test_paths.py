"""Paths on the command line: relative ones, ones that cannot be created, and values that are not paths."""

from pathlib import Path

import pytest

from tests.helpers.commands import SMALL, finished
from tests.system.test_refusals import sentence

pytestmark = pytest.mark.system


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_relative_paths_are_relative_to_the_command_s_folder_with_chdir_too(run_folder: Path) -> None:
    chdir = "hydra.job.chdir=true"
    finished(run_folder, "train", "trainer.max_steps=1", "hydra.run.dir=moved", chdir)
    assert names(run_folder) == {"data", "cache", "moved"}
    assert not names(run_folder / "moved") & {"data", "cache", ".cache", "outputs", "moved"}
    finished(run_folder, "evaluate", "ckpt_path=moved", "hydra.run.dir=again", chdir)
    first, again = ((run_folder / run / "metrics.json").read_bytes() for run in ("moved", "again"))
    assert first == again
    finished(run_folder, "report", "sweep_dir=moved", "out=отчёт", chdir)
    assert names(run_folder / "отчёт") == {"report.html", "report.csv"}


def test_a_mistyped_root_creates_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = sentence(monkeypatch, tmp_path, "train", *SMALL, "data.root=data/syntetic")
    assert error.startswith("error: data.root=data/syntetic: ") and "data.make." in error
    assert "data" not in names(tmp_path)


@pytest.mark.parametrize(
    ("script", "overrides", "part"),
    [
        ("report", ["sweep_dir=run", "out=run/file"], "out=run/file: cannot be written"),
        ("report", ["sweep_dir=run", "out=/proc/below"], "out=/proc/below: cannot be written"),
        ("report", ["sweep_dir=run", "metric=3"], "metric=3"),
        ("convert_checkpoint", ["source=run", "target=x.pth"], "source=run is a folder"),
        ("convert_checkpoint", ["source=run/file", "target=x.pth"], "source=run/file"),
        ("convert_checkpoint", ["source=run/file", "target=run/file/x.pth"], "target=run/file: cannot be written"),
        ("make_dataset", ["out=run/file/below"], "run/file/below: cannot be written"),
        ("make_dataset", ["out=/proc/below"], "out=/proc/below: cannot be written"),
        ("make_dataset", ["out=run"], "overwrite=true"),
        ("make_dataset", ["out=new", "scenes=abc"], "scenes=abc"),
        ("make_dataset", ["out=new", "sweep_rate=3"], "sweep_rate=3: must be a multiple of 2"),
        ("train", ["weights=[a]"], "weights=a: there is no such file"),
        ("train", ["weights=[]"], "weights=[]: must be a file"),
        ("evaluate", ["ckpt_path=~/nowhere"], f"ckpt_path={Path.home()}/nowhere"),
    ],
)
def test_what_is_not_a_path_or_cannot_be_created_is_named(
    script: str, overrides: list[str], part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text("{}", encoding="utf-8")
    (tmp_path / "run" / "file").touch()
    assert part in sentence(monkeypatch, tmp_path, script, *overrides)
    assert not names(tmp_path) & {"new", "x.pth"}
