"""Pictures of a checkpoint, and the findings about the old maps, as commands."""

from pathlib import Path

import pytest

from benchmarks.old_aqr.findings import FINDINGS
from tests.helpers.commands import finished
from tests.system.test_refusals import sentence

pytestmark = pytest.mark.system


def test_a_checkpoint_s_frames_are_rendered(run_folder: Path, trained: tuple[Path, str]) -> None:
    out = run_folder / "pictures"
    done = finished(run_folder, "visualize", f"ckpt_path={trained[0]}", "frames=[2]", f"out={out}")
    names = ["mini_val_0002_bev.png", "mini_val_0002_cameras.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert all((out / name).stat().st_size > 20_000 for name in names)
    assert all(str(out / name) in done.stdout for name in names)


def test_an_unknown_frame_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, run_folder: Path, trained: tuple[Path, str]
) -> None:
    line = [f"ckpt_path={trained[0] / 'checkpoints' / 'last.ckpt'}", "frames=nowhere"]
    error = sentence(monkeypatch, run_folder, "visualize", *line)
    assert "frame nowhere: split mini_val of data has none" in error
    assert "ckpt_path is missing" in sentence(monkeypatch, run_folder, "visualize")


def test_the_findings_are_printed(run_folder: Path) -> None:
    done = finished(run_folder, "explain_maps", "data.root=data", "data.cache_dir=cache")
    for finding in FINDINGS.values():
        assert finding.title in done.stdout
    assert "70.51" in done.stdout and "…" not in done.stdout


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("finding=explosion", "finding=explosion: must be one of pile_up, gradient, leak, offset,"),
        ("data=nuscenes", "data.root has no default"),
        ("data.root=/nowhere", "/nowhere"),
        ("frame=3", "frame 3: split mini_train of data has frames 0 to 2"),
    ],
)
def test_a_mistake_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, run_folder: Path, override: str, part: str
) -> None:
    data = ["data=nuscenes"] if override == "data.root=/nowhere" else ["data.cache_dir=cache"]
    data += ["data.root=data"] if override.startswith("frame") else []
    assert part in sentence(monkeypatch, run_folder, "explain_maps", *data, override)
