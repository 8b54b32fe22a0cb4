"""What the tests of whole commands share: tiny data, a tiny model, and one short run."""

from pathlib import Path

import pytest

from tests.helpers.commands import arguments, run_anew
from tests.helpers.small_data import small_root

__all__ = ["small_root"]


def folder_for_commands(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new folder in which ``data`` is the tiny data set."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "data").symlink_to(small_root)
    return folder


@pytest.fixture(scope="module")
def run_folder(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where commands run; one for each file of tests, so that the names of its runs are its own."""
    return folder_for_commands(small_root, tmp_path_factory)


@pytest.fixture(scope="session")
def trained(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of two steps, and what it printed."""
    commands = folder_for_commands(small_root, tmp_path_factory)
    folder = commands / "trained"
    done = run_anew(commands, arguments("train", f"hydra.run.dir={folder}", "trainer.max_steps=2"))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr
