"""Commands in a locale without letters beyond English ones."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cmt_aqr.files import read_record
from tests.helpers.commands import arguments, environment
from tests.helpers.ran import from_json, metrics_of

pytestmark = pytest.mark.system


def test_a_run_in_a_locale_without_letters(small_root: Path, tmp_path: Path) -> None:
    """``LC_ALL=C``, as in many containers and cron jobs, with names, a path and tables that are not English."""
    root, folder = tmp_path / "Daten für später", tmp_path / "läuft"
    shutil.copytree(small_root, root)
    path = root / "v1.0-mini" / "scene.json"
    scenes = from_json(path)
    for scene in scenes:
        scene["description"] = "Fußgänger überquert 道路"
    path.write_text(json.dumps(scenes, ensure_ascii=False), encoding="utf-8")
    plain = {name: value for name, value in environment().items() if not name.startswith(("LC_", "LANG"))}
    plain |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(script: str, *overrides: str) -> None:
        line = arguments(script, *overrides)
        done = subprocess.run(line, cwd=tmp_path, env=plain, capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr.decode("utf-8", errors="replace")

    line = ["trainer.max_steps=1", "data.num_workers=1", f"hydra.run.dir={folder}"]
    run("train", f"data.root={root}", "name=тест", *line)
    record = read_record(folder)
    assert record["status"] == "complete" and "тест" in " ".join(record["overrides"])
    assert "name: тест" in (folder / "config.yaml").read_text(encoding="utf-8")
    run("evaluate", f"ckpt_path='{folder}'", f"hydra.run.dir='{folder}/noch einmal'", "write_results=true")
    first, again = (metrics_of(place) for place in (folder, folder / "noch einmal"))
    assert first["frames"] == again["frames"] == 3
    run("report", f"sweep_dir='{folder}'")
    assert "тест" in (folder / "report.html").read_text(encoding="utf-8")
