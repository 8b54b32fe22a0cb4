"""A run's record, however the run ends."""

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.files import read_record
from cmt_aqr.runs.records import RunRecord, machine, record_refusal, recorded

CONFIG = OmegaConf.create({"seed": 7, "lr": 0.1})


def test_a_record_is_running_then_complete(tmp_path: Path) -> None:
    assert read_record(tmp_path) == {}
    with recorded(tmp_path / "run", CONFIG, ["lr=0.1"]):
        assert read_record(tmp_path / "run")["status"] == "running"
    record = read_record(tmp_path / "run")
    assert record["status"] == "complete" and record["error"] is None
    assert record["seed"] == 7 and record["overrides"] == ["lr=0.1"]
    assert record["wall_time_s"] > 0 and record["peak_memory_bytes"] > 10**7
    assert record["machine"]["cores"] >= 1 and record["machine"]["memory_bytes"] > 10**8
    assert set(machine()) == {"cpu", "cores", "memory_bytes", "gpus"}, "no host name"
    assert OmegaConf.load(tmp_path / "run" / "config.yaml") == CONFIG


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        (UserError("lr=-1: must be\n above 0"), "failed", "lr=-1: must be above 0"),
        (RuntimeError("out of memory"), "failed", "RuntimeError: out of memory"),
        (AssertionError(), "failed", "AssertionError: "),
        (KeyboardInterrupt(), "stopped", None),
        (SystemExit(143), "stopped", None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_end_is_recorded_and_raised(
    end: BaseException, status: str, error: str | None, tmp_path: Path
) -> None:
    with pytest.raises(type(end)), recorded(tmp_path, CONFIG, []):
        raise end
    assert (read_record(tmp_path)["status"], read_record(tmp_path)["error"]) == (status, error)


def test_a_refusal_is_recorded_but_replaces_no_earlier_record(tmp_path: Path) -> None:
    incomplete = DictConfig({"seed": 0, "root": "???"})
    record_refusal(tmp_path, incomplete, [], UserError("root has no default"))
    assert (read_record(tmp_path)["status"], read_record(tmp_path)["error"]) == ("failed", "root has no default")
    (tmp_path / "record.json").write_text(json.dumps({"status": "complete"}), encoding="utf-8")
    record_refusal(tmp_path, CONFIG, [], UserError("no"))
    assert read_record(tmp_path) == {"status": "complete"}


def test_only_process_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmt_aqr.runs.records.rank_zero_only.rank", 1)
    with recorded(tmp_path / "run", CONFIG, []):
        pass
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_continues_the_counts(tmp_path: Path) -> None:
    first, second = RunRecord(tmp_path, CONFIG, []), RunRecord(tmp_path, CONFIG, [])
    first.load_state_dict({"steps": 5, "epochs": 1, "frames": 10, "training_seconds": 4.0, "seconds": 100.0})
    second.load_state_dict(first.state_dict())
    second.write()
    record = read_record(tmp_path)
    assert record["steps"] == 5 and record["epochs"] == 1 and record["frames_per_second"] == 2.5
    assert 100 < record["wall_time_s"] < 160
    assert first.state_key == "RunMeter", "the key in old checkpoints"
