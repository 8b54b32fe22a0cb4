"""The five findings about the old maps, with their numbers: on the real keyframe, and on embedded data."""

from pathlib import Path

import pytest

from benchmarks.old_aqr.findings import FINDINGS, MapScene
from cmt_aqr.errors import UserError
from tests.helpers.aqr_scenes import GOLDEN_GRID
from tests.helpers.shared_data import needs_keyframe
from tests.helpers.small_data import datamodule, small_root

__all__ = ["small_root"]


@pytest.fixture(scope="module")
def embedded(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> MapScene:
    data = datamodule(small_root, tmp_path_factory.mktemp("cache"), image_size=(320, 800), lidar=False)
    data.prepare_data()
    data.setup("validate")
    return MapScene.of_frame(data.dataset("val")[0], GOLDEN_GRID)


def numbers(scene: MapScene, finding: str) -> list[tuple[float, float]]:
    """Old and ours, in the order of the table."""
    return [(row.old, row.ours) for row in FINDINGS[finding].measure(scene)]


MEASURED_ONCE = [
    # finding, part of the quantity, old, tolerance, ours, tolerance: beside those of test_pile_up.py
    ("offset", "along x (cells)", 6.6, 0.01, 0, 0),
    ("offset", "the same (m)", 5.3, 0.01, 0, 0),
    ("background", "multiplied with", 0.7, 1e-6, 1, 1e-6),
]


@needs_keyframe
@pytest.mark.parametrize(("finding", "part", "old", "close", "ours", "near"), MEASURED_ONCE)
def test_numbers_of_the_keyframe(
    keyframe: MapScene, finding: str, part: str, old: float, close: float, ours: float, near: float
) -> None:
    row = next(row for row in FINDINGS[finding].measure(keyframe) if part in row.quantity)
    assert row.old == pytest.approx(old, rel=close)
    assert row.ours == pytest.approx(ours, rel=near, abs=1e-6)


@pytest.mark.parametrize("name", [pytest.param("keyframe", marks=needs_keyframe), "embedded"])
def test_every_defect_shows_and_is_gone(name: str, request: pytest.FixtureRequest) -> None:
    scene: MapScene = request.getfixturevalue(name)
    pile_up = numbers(scene, "pile_up")
    assert pile_up[0][0] > 20 * pile_up[0][1]
    assert pile_up[4][1] == 0  # our padding draws nothing
    gradient = numbers(scene, "gradient")
    assert len(gradient) == 6
    assert all(old == 0 and ours > 0 for old, ours in gradient)
    training, test, telling, telling_at_test, difference = numbers(scene, "leak")
    assert training[0] > 3 * test[0] and training[1] == test[1] == test[0]
    assert telling[0] > 0.85 and telling[1] == telling_at_test[1] and abs(telling[1] - 0.5) < 0.1
    assert difference[0] > 0.5 and difference[1] == 0
    elsewhere = numbers(scene, "offset")[-1]
    assert elsewhere == (1.0, 0.0)
    _, gain, change, shrinking, clamped = numbers(scene, "background")
    assert gain == (pytest.approx(0.7), pytest.approx(1.0))
    assert shrinking[0] > 0.85 * change[0] and clamped[0] > 0.9 * change[0] and change[1] < 0.1


def test_a_frame_without_boxes_is_refused_in_one_sentence(small_root: Path, tmp_path: Path) -> None:
    data = datamodule(small_root, tmp_path, cameras=False)
    data.prepare_data()
    data.setup("validate")
    with pytest.raises(UserError, match="has no images or no boxes"):
        MapScene.of_frame(data.dataset("val")[0], GOLDEN_GRID)
