"""Commands in a locale without letters beyond the English ones."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cmt_aqr.files import read_record
from tests.helpers.commands import arguments, run_anew, succeeded
from tests.helpers.ran import from_json, metrics_of

pytestmark = pytest.mark.system


def test_a_run_in_the_c_locale(monkeypatch: pytest.MonkeyPatch, small_root: Path, tmp_path: Path) -> None:
    """``LC_ALL=C``, as in many containers and cron jobs, with a name, paths and tables in other letters."""
    for name in [name for name in os.environ if name.startswith(("LC_", "LANG"))]:
        monkeypatch.delenv(name)
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    root, folder = tmp_path / "Daten für später", tmp_path / "läuft"
    shutil.copytree(small_root, root)
    path = root / "v1.0-mini" / "scene.json"
    scenes = [{**scene, "description": "Fußgänger überquert 道路"} for scene in from_json(path)]
    path.write_text(json.dumps(scenes, ensure_ascii=False), encoding="utf-8")

    def run(script: str, *overrides: str) -> None:
        succeeded(run_anew(tmp_path, arguments(script, *overrides)))

    settings = ["trainer.max_steps=1", "data.num_workers=1", f"hydra.run.dir={folder}"]
    run("train", f"data.root={root}", "name=тест", *settings)
    record = read_record(folder)
    assert record["status"] == "complete" and "тест" in " ".join(record["overrides"])
    assert "name: тест" in (folder / "config.yaml").read_text(encoding="utf-8")
    run("evaluate", f"ckpt_path='{folder}'", f"hydra.run.dir='{folder}/noch einmal'", "write_results=true")
    assert metrics_of(folder)["frames"] == metrics_of(folder / "noch einmal")["frames"] == 3
    run("report", f"sweep_dir='{folder}'")
    assert "тест" in (folder / "report.html").read_text(encoding="utf-8")
