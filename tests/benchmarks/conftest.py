"""The real keyframe as the findings about the old maps see it."""

from pathlib import Path

import pytest

from benchmarks.old_aqr.findings import MapScene
from tests.helpers.aqr_scenes import GOLDEN_GRID
from tests.helpers.shared_data import KEYFRAME
from tests.helpers.small_data import datamodule


@pytest.fixture(scope="session")
def keyframe(tmp_path_factory: pytest.TempPathFactory) -> MapScene:
    """At 800 x 320 and with the published 0.1 m grid. A test that asks for it is marked ``needs_keyframe``."""
    cache: Path = tmp_path_factory.mktemp("keyframe")
    data = datamodule(KEYFRAME, cache, image_size=(320, 800), val_split="mini_train", lidar=False)
    data.prepare_data()
    data.setup("validate")
    return MapScene.of_frame(data.dataset("val")[0], GOLDEN_GRID)
