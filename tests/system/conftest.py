"""Fixtures for the tests of whole commands: a folder with small data, and one short run."""

from pathlib import Path

import pytest

from tests.helpers.commands import arguments, run_anew, succeeded
from tests.helpers.small_data import small_root

__all__ = ["small_root"]


def folder_for_commands(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new folder with a link ``data`` to the small data set."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "data").symlink_to(small_root)
    return folder


@pytest.fixture(scope="module")
def run_folder(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where commands run, one per file of tests."""
    return folder_for_commands(small_root, tmp_path_factory)


@pytest.fixture(scope="session")
def trained(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of two steps, and its output."""
    commands = folder_for_commands(small_root, tmp_path_factory)
    folder = commands / "trained"
    done = succeeded(run_anew(commands, arguments("train", f"hydra.run.dir={folder}", "trainer.max_steps=2")))
    return folder, done.stdout + done.stderr
