"""What tests of the data share."""

from pathlib import Path

import pytest

from tests.helpers.small_data import small_root

__all__ = ["small_root"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what the tests of a file make of the tiny data."""
    return tmp_path_factory.mktemp("cache")
