"""What the tests of whole commands share: tiny data, a tiny model, and one short run."""

from pathlib import Path

import pytest

from tests.small_data import small_root
from tests.system.commands import run_command

__all__ = ["small_root"]


@pytest.fixture(scope="session")
def run_folder(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where commands run; ``data`` in it is the tiny data set."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "data").symlink_to(small_root)
    return folder


@pytest.fixture(scope="session")
def trained(run_folder: Path) -> tuple[Path, str]:
    """The folder of a run of two steps, and what it printed."""
    folder = run_folder / "trained"
    done = run_command(run_folder, "train", f"hydra.run.dir={folder}", "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr
