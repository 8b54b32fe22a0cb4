"""Making a data set: the same bytes from the same seed, nothing incomplete, nothing overwritten by accident."""

import filecmp
import math
from pathlib import Path

import pytest
from nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes

from cmt_aqr.constants import CLASSES
from cmt_aqr.errors import SettingError
from cmt_aqr.scenes import DESCRIPTION_FILE, Settings, build_scene, make_dataset, recorder
from cmt_aqr.scenes.tables import Tables
from tests.helpers.commands import finished
from tests.helpers.ran import from_json
from tests.scenes.made import VERSION, make

TINY = {"samples_per_scene": 2, "sweep_rate": 2, "azimuth_resolution": 4.0, "image_width": 160}


def files_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(root: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    make(again, workers=2)
    assert files_of(again) == files_of(root)
    assert filecmp.cmpfiles(root, again, files_of(root), shallow=False)[0] == files_of(root)


@pytest.mark.parametrize("scenes", [2, 3, 7, 10, 11, 50, 750])
def test_scene_names_come_from_the_devkits_splits(scenes: int) -> None:
    splits, settings = create_splits_scenes(), Settings(scenes=scenes)
    train, val = settings.split_names()
    names = settings.scene_names()
    held_out = [name for name in names if name in splits[val]]
    assert settings.version == ("v1.0-mini" if scenes <= 10 else "v1.0-trainval")
    assert (len(set(names)), len(held_out)) == (scenes, max(1, round(scenes / 5)))
    assert [name for name in names if name in splits[train]] == names[: -len(held_out)]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorder.Recorder.run

    def fail_on_the_second(self: recorder.Recorder) -> Tables:
        if self.index == 1:
            raise OSError("no space left")
        return run(self)

    monkeypatch.setattr(recorder.Recorder, "run", fail_on_the_second)
    with pytest.raises(OSError, match="no space left"):
        make(tmp_path / "set", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_set_is_replaced_only_on_demand(tmp_path: Path) -> None:
    out = tmp_path / "set"
    make(out, **TINY)
    with pytest.raises(SettingError, match="overwrite=true"):
        make(out, **TINY)
    before = from_json(out / VERSION / DESCRIPTION_FILE)
    make(out, **TINY, seed=6, overwrite=True)
    after = from_json(out / VERSION / DESCRIPTION_FILE)
    assert (before["settings"]["seed"], after["settings"]["seed"]) == (5, 6)
    assert after["splits"] == ["mini_train", "mini_val"] and after["generator_version"] >= 1
    assert build_scene(Settings(seed=5), 0).kinds != build_scene(Settings(seed=6), 0).kinds
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_of_other_files_is_never_replaced(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work", encoding="utf-8")
    with pytest.raises(SettingError, match="not a synthetic data set"):
        make(tmp_path, **TINY, overwrite=True)
    assert thesis.read_text(encoding="utf-8") == "years of work"


def annotated(root: Path) -> dict[str, float]:
    """Metres from the ego vehicle to the centre of every annotation, by token."""
    names = ("sample_annotation", "sample_data", "ego_pose")
    annotations, recordings, poses = (from_json(root / VERSION / f"{name}.json") for name in names)
    place = {row["token"]: row["translation"][:2] for row in poses}
    ego = {row["sample_token"]: place[row["ego_pose_token"]] for row in recordings if row["width"] == 0}
    return {row["token"]: math.dist(row["translation"][:2], ego[row["sample_token"]]) for row in annotations}


def test_objects_beyond_the_annotated_range_are_rendered_without_a_box(tmp_path: Path) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    make(far, **TINY)
    make(near, **TINY, annotated_range=20.0)
    assert annotated(near) == {token: metres for token, metres in annotated(far).items() if metres < 20}
    recorded = [file for file in files_of(far) if file.endswith((".jpg", ".bin"))]
    assert filecmp.cmpfiles(far, near, recorded, shallow=False)[0] == recorded


REFUSED = {
    "scenes": [1, 751, "many", 2.5],
    "seed": [-1],
    "samples_per_scene": [1],
    "sweep_rate": [5, 22],
    "azimuth_resolution": [0.0, "fine"],
    "image_width": [401],
    "jpeg_quality": [0],
    "beams": [1, 33],
    "annotated_range": [9, "far"],
    "workers": [0],
    "overwrite": ["maybe"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in REFUSED for value in REFUSED[name]])
def test_a_setting_out_of_range_is_named(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"{name}={value}: must be"):
        make_dataset(tmp_path / "set", **{name: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.system
def test_the_script_writes_the_set_and_nothing_else(tmp_path: Path) -> None:
    small = ("scenes=2", "samples_per_scene=2", "sweep_rate=2", "image_width=160", "workers=1")
    done = finished(tmp_path, "make_dataset", "out=made/here", *small)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert len(NuScenes(VERSION, str(tmp_path / "made" / "here"), verbose=False).sample) == 4
    assert all(name in done.stdout for name in (*CLASSES, "2 scenes, 4 keyframes"))
