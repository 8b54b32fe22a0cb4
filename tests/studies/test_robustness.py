"""Scores against published ones, what is kept and evaluated again, tables, and what is refused."""

import functools
import itertools
import math
import signal
import subprocess
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.data.errors import DataError
from cmt_aqr.errors import UserError
from cmt_aqr.runs.sweep_job import run_part
from cmt_aqr.studies import robustness as module
from cmt_aqr.studies.robustness import conditions_of, robustness
from cmt_aqr.studies.robustness_scores import PUBLISHED, mean_of_all, relative_resistance, resistance
from cmt_aqr.studies.robustness_tables import MARK, PAGE, Row, frame_of, suite_table
from tests.helpers.composed import CONF, composed
from tests.helpers.ran import from_json

configured = functools.partial(composed, script="robustness")


def published(suite: str, model: str) -> pd.Series:
    return next(row.nds for row in PUBLISHED[suite] if row.model == model)


CMT_RA = {
    "beamsreducing": 0.786,
    "pointsreducing": 0.925,
    "missingcamera": 0.974,
    "brightness": 0.937,
    "dark": 0.948,
    "motionblur": 0.841,
    "fog": 0.806,
    "snow": 0.833,
    "spatialmisalignment": 0.809,
    "temporalmisalignment": 0.788,
}
"""As MultiCorrupt publishes it."""


def test_ra_of_published_nds_is_the_published_one() -> None:
    for row in PUBLISHED["multicorrupt"]:
        if len(row.nds):
            assert mean_of_all(resistance(row.nds)) == pytest.approx(row.mean_ra, abs=0.0006)
    assert mean_of_all(resistance(published("multicorrupt", "CMT vov99"))) == pytest.approx(0.865, abs=0.0006)
    assert resistance(published("multicorrupt", "CMT vov99")).to_dict() == pytest.approx(CMT_RA, abs=0.001)
    # MoME's R of its own suite: 86.2 %.
    assert mean_of_all(resistance(published("mome", "MoME"))) == pytest.approx(0.862, abs=0.0006)
    # What is not known makes no mean.
    assert math.isnan(mean_of_all(resistance(published("mome", "CMT vov99")).reindex(["fov60"])))
    against = relative_resistance(published("multicorrupt", "MoME"), published("multicorrupt", "CMT vov99"))
    sums = (68.47 + 57.52 + 40.78) / (68.26 + 58.73 + 44.97) - 1
    assert against["beamsreducing"] == pytest.approx(sums)
    # Against one and the same baseline the two differ by 7.16 - 6.84 points, over about 1.07.
    assert 100 * mean_of_all(against) == pytest.approx(-0.3, abs=0.15)


def test_severities_and_conditions_that_are_asked_for() -> None:
    names = [str(one) for one in conditions_of(configured("suite=mome", "conditions.mome.occlusion=null"))]
    assert names == [
        "clean",
        *(f"mome/{n}" for n in ("beams4_horizon", "lidar_drop", "fov60", "object_failure", "view_drop")),
    ]
    every = conditions_of(configured("suite=all"))
    assert len(every) == 1 + 6 + 30 + 12 + 50 and len({one.path for one in every}) == len(every)
    worst = conditions_of(configured("suite=multicorrupt", "severities.multicorrupt=[3]"))
    assert len(worst) == 11 and worst[1].fault["missingcamera"]["severity"] == 3
    for override, sentence in (
        (
            "severities.multicorrupt=[4]",
            r"conditions\.multicorrupt\.missingcamera: .*severity=4: .* 1 to 3",
        ),
        ("severities.multicorrupt=3", r"severities.multicorrupt=3: must be a list"),
        ("severities=3", r"^severities=3: must be values by name"),
        ("conditions=null", r"^conditions=null: must be values by name"),
        ("conditions.multicorrupt=null", r"^conditions.multicorrupt=null: must be values by name"),
        ("+severities.mome=[1]", "severities.mome: this suite is not chosen"),
    ):
        with pytest.raises(UserError, match=sentence):
            conditions_of(configured("suite=multicorrupt", override))
    with pytest.raises(UserError, match="mome/beams4_horizon has no severities"):
        conditions_of(configured("suite=mome", "+severities.mome=[1]"))


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Folders of runs of a fused model and of a LiDAR."""
    for name in ("fused", "lidar"):
        model = ["model=tiny_lidar"] if name == "lidar" else []
        config = OmegaConf.to_container(composed("aqr=none", f"data.root={tmp_path}", *model))
        assert isinstance(config, dict)
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        saved = {"state_dict": {}, "config": {**config, "callbacks": {}, "logger": {}}, "global_step": 1}
        torch.save(saved, tmp_path / name / "checkpoints" / "last.ckpt")
    return [str(tmp_path / "fused"), str(tmp_path / "lidar")]


class Evaluated:
    """In place of an evaluation: numbers by what is evaluated, and a count."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fail_at: int | None = None
        self.fail_with: BaseException = KeyboardInterrupt()

    def __call__(self, task: Any, config: DictConfig, folder: Path, overrides: list[str]) -> dict[str, float]:
        if len(self.asked) == self.fail_at:
            raise self.fail_with
        fused = config.data.cameras
        name = next((key for key in config.eval_fault if key not in ("_target_", "share", "severity")), "clean")
        self.asked.append(f"{'fused' if fused else 'lidar'} {name}")
        nds = {"clean": 0.5 if fused else 0.4, "fov60": 0.1 if fused else 0.2}.get(name, 0.25)
        return {"NDS": nds, "mAP": nds / 2, "mAVE": math.nan}


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    fake = Evaluated()
    monkeypatch.setattr(module, "run_task", fake)
    return fake


def run(two: list[str], out: Path, *overrides: str) -> list[Row]:
    given = [f"ckpt_path=[{','.join(two)}]", "suite=mome", f"out={out}", *overrides]
    return robustness(configured(*given), given)


def test_conditions_are_evaluated_once_and_a_killed_one_again(
    two: list[str], tmp_path: Path, evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    evaluated.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(two, out)
    evaluated.fail_at = None
    rows = run(two, out)
    # The LiDAR sees no difference under two conditions, which are not evaluated for it.
    assert len(evaluated.asked) == len(set(evaluated.asked)) == 7 + 5
    assert {row.condition for row in rows if row.model == "lidar" and row.metrics["NDS"] == 0.4} == {
        "clean",
        "view_drop",
        "occlusion",
    }
    shown = capsys.readouterr().out
    assert "lidar reads no cameras: 2 of 6 conditions" in shown
    assert run(two, out) == rows and len(evaluated.asked) == 12
    run(two, out, "seed=1")
    assert len(evaluated.asked) == 24
    run(two, out, "seed=1", "refresh=true")
    assert len(evaluated.asked) == 36
    run(two, out, "seed=1", "data.num_workers=3")  # changes no number
    assert len(evaluated.asked) == 36
    run(two, out, "seed=1", "data.sweeps=1")
    assert len(evaluated.asked) == 48


def test_data_that_a_condition_cannot_strike_are_told_with_its_key(
    two: list[str], tmp_path: Path, evaluated: Evaluated
) -> None:
    evaluated.fail_at, evaluated.fail_with = 2, DataError("its points have no ring")
    with pytest.raises(UserError, match=r"mome/lidar_drop: .* no ring; conditions\.mome\.lidar_drop=null"):
        run(two, tmp_path / "out")
    evaluated.fail_at = None
    run(two, tmp_path / "out", "conditions.mome.lidar_drop=null")
    assert len(evaluated.asked) == 6 + 4 and "lidar_drop" not in " ".join(evaluated.asked)
    evaluated.fail_at, evaluated.fail_with = 10, DataError("no such file")
    with pytest.raises(DataError, match=r"^no such file$"):
        run(two, tmp_path / "other")  # the clean frames: no condition is to blame


def test_parts_share_the_work_and_the_last_makes_the_tables(
    two: list[str], tmp_path: Path, evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(two, out, "part=1/2")
    assert "part=1/2 is done" in capsys.readouterr().out and not (out / PAGE).exists()
    run(two, out, "part=2/2", "names=[a,b]", "baseline=b")
    assert len(evaluated.asked) == len(set(evaluated.asked)) == 12
    table = pd.read_csv(out / "mome.csv")
    assert len(table) == 14 and set(table.model) == {"a", "b"}
    fused = table[table.model == "a"].set_index("condition")
    assert fused.below_floor.to_dict() == {
        "clean": False,
        "beams4_horizon": False,
        "lidar_drop": False,
        "fov60": True,
        "object_failure": False,
        "view_drop": True,
        "occlusion": True,
    }
    assert fused.RA["fov60"] == pytest.approx(0.2) and fused.RRA["fov60"] == pytest.approx(-0.5)
    page = (out / PAGE).read_text(encoding="utf-8")
    assert page.count(' below"') == 3 and page.count(' spared"') == 6 and f"10.0 {MARK}" in page and "58.3" in page
    kept = [from_json(path) for path in (out / "results").rglob("*.json")]
    assert len(kept) == 12 and all(one["metrics"]["mAVE"] is None for one in kept)


def test_tables_leave_empty_what_nobody_knows() -> None:
    every = frozenset(("lidar", "camera"))
    rows = [Row("mine", every, "clean", "clean", 0, {"NDS": 0.5, "mAP": 0.4})]
    rows += [
        Row("mine", every, "multicorrupt", "fog", severity, {"NDS": nds, "mAP": 0.1})
        for severity, nds in ((1, 0.4), (2, 0.3), (3, 0.2))
    ]
    table = suite_table(rows, "multicorrupt", None)
    assert [name for name, _ in table.rows] == ["clean", "fog 1", "fog 2", "fog 3"]
    assert [column.heading for column in table.columns] == ["mine NDS", "mAP", "RA", "CMT vov99 NDS", "MoME NDS"]
    assert [cell.text for cell in table.rows[1][1]] == ["40.0", "10.0", "0.600", "69.7", "69.6"]
    # RA is one for all severities.
    assert [cell.text for cell in table.rows[3][1]] == ["20.0", "10.0", "", "41.3", "40.2"]
    # mRA of one condition is not the published one of ten.
    assert [cell.text for cell in dict(table.means)["mRA"]] == ["", "", "0.600", "0.806", "0.788"]
    assert not table.also
    assert (
        not frame_of(rows, "multicorrupt").below_floor.any()
        and np.isnan(frame_of(rows, "multicorrupt").floor_NDS).all()
    )


def test_nothing_is_said_of_the_robustness_of_a_model_that_hardly_sees() -> None:
    def table(clean: float) -> tuple[list[str], list[str], list[str]]:
        values = {"mine": (clean, 0.05), "good": (0.5, 0.4)}
        rows = [
            Row(model, frozenset(("lidar", "camera")), suite, condition, 0, {"NDS": nds, "mAP": 0.0})
            for model, results in values.items()
            for (suite, condition), nds in zip((("clean", "clean"), ("mome", "fov60")), results, strict=True)
        ]
        found = suite_table(rows, "mome", "mine")
        ratios = [
            [cell.text for cell in cells[2:6:3]]
            for cells in (dict(found.rows)["fov60"], dict(found.means)["mRA"], dict(found.means)["mRRA, %"])
        ]
        return list(itertools.chain(*ratios)), found.notes, [cell.mark for cell in dict(found.rows)["fov60"]]

    ratios, notes, _ = table(0.0999)
    assert ratios == ["", "0.800", "", "0.800", "", ""]
    assert len(notes) == 1 and "mine" in notes[0] and "10.0" in notes[0]
    ratios, notes, _ = table(0.1)
    assert ratios == ["0.500", "0.800", "0.500", "0.800", "0.0", "700.0"] and not notes


@pytest.fixture
def sweeper() -> BasicSweeper:
    """The one of the command's ``-m``, for jobs on Slurm."""
    slurm = ["part=1/2,2/2", "out=here", "launcher=slurm"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("robustness", slurm[1:], return_hydra_config=True)
    parts = hydra.utils.get_class(config.hydra.sweeper._target_)(max_batch_size=None)
    parts.config = config
    return parts


def ended(result: object) -> JobReturn:
    """A job that came to its end."""
    job = JobReturn(status=JobStatus.COMPLETED)
    job.return_value = result
    return job


def test_mistakes_in_parts_are_one_sentence_each(
    sweeper: BasicSweeper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [ended(DataError("no ring")), ended([]), ended(DataError("no ring")), ended(UserError("no masks"))]
    base = type(sweeper).__base__  # Hydra may have loaded its plugins twice
    monkeypatch.setattr(base, "sweep", lambda *_: [jobs])
    with pytest.raises(SystemExit, match=r"^error: no ring\nerror: no masks$"):
        sweeper.sweep([])
    monkeypatch.setattr(base, "sweep", lambda *_: [[ended([]), ended([])]])
    sweeper.sweep([])
    assert "2 parts are done" in (told := capsys.readouterr().out) and "here/jobs/.submitit" in told

    def lost(*_: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(base, "sweep", lost)
    with pytest.raises(SystemExit):
        sweeper.sweep([])
    assert "the same command resumes it" in capsys.readouterr().err


def test_a_part_hands_a_mistake_back_and_raises_a_bug(caplog: pytest.LogCaptureFixture) -> None:
    def part(config: DictConfig) -> str:
        if config.error:
            raise UserError("no ring") if config.error == "mistake" else KeyError("bug")
        return "done"

    assert run_part(part, OmegaConf.create({"error": ""})) == "done"
    returned = run_part(part, OmegaConf.create({"error": "mistake"}))
    assert isinstance(returned, UserError) and "no ring" in str(returned) and "no ring" in caplog.text
    with pytest.raises(KeyError):
        run_part(part, OmegaConf.create({"error": "bug"}))


def test_a_part_that_is_queued_again_has_no_result() -> None:
    """Slurm may end the command that queues a job again before that says so."""

    def part(status: int) -> None:
        raise subprocess.CalledProcessError(status, ["scontrol", "requeue", "9_1"])

    with pytest.raises(SystemExit):
        run_part(lambda _: part(-signal.SIGTERM), OmegaConf.create())
    with pytest.raises(subprocess.CalledProcessError):
        run_part(lambda _: part(1), OmegaConf.create())


def test_mistakes_are_told_before_anything_is_evaluated(
    two: list[str], tmp_path: Path, evaluated: Evaluated
) -> None:
    out = tmp_path / "out"
    for overrides, sentence in (
        (["ckpt_path=null"], "ckpt_path is missing"),
        ([f"ckpt_path={tmp_path}/none.ckpt"], "none.ckpt: there is no such file"),
        (["names=[a]"], r"names=\['a'\]: must be one name for each of the 2 checkpoints"),
        (["baseline=other"], "baseline=other: must be one of the checkpoints' names, fused, lidar"),
        (["part=3/2"], "part=3/2: must be a share"),
        (["eval_fault=fog"], "eval_fault: the conditions of a suite"),
        (["optimizer.lr=1"], "optimizer.lr has no effect on an evaluation"),
        (["conditions.mome.occlusion.occlusion.masks=/absent"], "masks=/absent: there is no such folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            run(two, out, *overrides)
    assert not evaluated.asked
