"""A submission for nuScenes' test split, whose tables have no annotations."""

import json
import shutil
from pathlib import Path

import pytest
from nuscenes.eval.common.loaders import load_prediction
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.utils.splits import create_splits_scenes

from cmt_aqr.data.fields import OPTIONAL_TABLES
from tests.helpers.commands import PAIR, finished
from tests.helpers.ran import from_json

pytestmark = pytest.mark.system


def test_set(root: Path, copy: Path, empty: bool) -> Path:
    """Copy a data set as version v1.0-test, with its first scene in the official test split and no annotations.

    Args:
        root: data root to copy; sensor data are linked.
        copy: the new data root.
        empty: whether the tables of annotations are empty files, or missing.
    """
    tables = copy / "v1.0-test"
    shutil.copytree(root / "v1.0-mini", tables)
    for path in root.glob("s*s"):
        (copy / path.name).symlink_to(path)
    scenes = from_json(tables / "scene.json")
    scenes[0]["name"] = create_splits_scenes()["test"][0]
    (tables / "scene.json").write_text(json.dumps(scenes), encoding="utf-8")
    for name in ("instance", "sample_annotation") if empty else OPTIONAL_TABLES:
        (tables / f"{name}.json").write_text("[]", encoding="utf-8")
        if not empty:
            (tables / f"{name}.json").unlink()
    return copy


test_set.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("empty", [False, True], ids=["absent", "empty"])
def test_evaluating_writes_a_submission_and_no_metrics(
    trained: tuple[Path, str], small_root: Path, tmp_path: Path, empty: bool
) -> None:
    root = test_set(small_root, tmp_path / "data", empty)
    folder = tmp_path / "run"
    line = [f"ckpt_path={trained[0]}", f"data.root={root}", "data.version=v1.0-test", "data.eval_split=test"]
    done = finished(tmp_path, "evaluate", *line, *(PAIR if empty else ()), f"hydra.run.dir={folder}")
    results = folder / "results_nusc.json"
    assert str(results) in done.stdout and "no metrics" in done.stdout
    assert not (folder / "metrics.json").exists()
    boxes, meta = load_prediction(str(results), 500, DetectionBox)
    first = from_json(root / "v1.0-test" / "scene.json")[0]["token"]
    samples = from_json(root / "v1.0-test" / "sample.json")
    assert set(boxes.sample_tokens) == {sample["token"] for sample in samples if sample["scene_token"] == first}
    assert len(boxes.all) and meta["use_lidar"]
