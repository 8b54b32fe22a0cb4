"""One small data set for all tests of how it is made."""

from pathlib import Path

import pytest
from nuscenes import NuScenes

from tests.scenes.made import VERSION, make


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    make(out)
    return out


@pytest.fixture(scope="session")
def nusc(root: Path) -> NuScenes:
    return NuScenes(VERSION, str(root), verbose=False)
