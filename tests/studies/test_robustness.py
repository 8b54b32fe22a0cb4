"""Scores against published ones, cached results, tables, and refused settings."""

import functools
import math
import signal
import subprocess
from pathlib import Path
from typing import Any

import hydra
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
from cmt_aqr.studies.robustness_scores import PUBLISHED, relative_resistance, resistance
from cmt_aqr.studies.robustness_tables import MARK, PAGE, Row, frame_of, screen_table, suite_table
from tests.helpers.composed import CONF, composed
from tests.helpers.ran import from_json

configured = functools.partial(composed, script="robustness")


def published(suite: str, model: str) -> pd.Series:
    return next(row.nds for row in PUBLISHED[suite] if row.model == model)


CMT_RA = [0.786, 0.925, 0.974, 0.937, 0.948, 0.841, 0.806, 0.833, 0.809, 0.788]
"""As published by MultiCorrupt, by condition in the order of published.yaml."""


def test_ra_of_published_nds_is_the_published_one() -> None:
    cmt, mome = published("multicorrupt", "CMT vov99"), published("multicorrupt", "MoME")
    means = {row.model: row.mean_ra for row in PUBLISHED["multicorrupt"]}
    assert resistance(cmt).mean(skipna=False) == pytest.approx(means["CMT vov99"], abs=0.0006)
    assert resistance(mome).mean(skipna=False) == pytest.approx(means["MoME"], abs=0.0006)
    assert resistance(cmt).tolist() == pytest.approx(CMT_RA, abs=0.001)
    # MoME's R in its own suite: 86.2 %.
    assert resistance(published("mome", "MoME")).mean(skipna=False) == pytest.approx(0.862, abs=0.0006)
    # Unknown values have no mean.
    assert math.isnan(resistance(published("mome", "CMT vov99")).reindex(["fov60"]).mean(skipna=False))
    against = relative_resistance(mome, cmt)
    assert against["beamsreducing"] == pytest.approx((68.47 + 57.52 + 40.78) / (68.26 + 58.73 + 44.97) - 1)
    # Against the same baseline, the two differ by 7.16 - 6.84 points, over about 1.07.
    assert 100 * against.mean(skipna=False) == pytest.approx(-0.3, abs=0.15)


def test_conditions_and_severities() -> None:
    names = [str(one) for one in conditions_of(configured("suite=mome", "conditions.mome.occlusion=null"))]
    mome = ("beams4_horizon", "lidar_drop", "fov60", "object_failure", "view_drop")
    assert names == ["clean", *(f"mome/{name}" for name in mome)]
    every = conditions_of(configured("suite=all"))
    assert len(every) == 1 + 6 + 30 + 12 + 50 and len({one.path for one in every}) == len(every)
    worst = conditions_of(configured("suite=multicorrupt", "severities.multicorrupt=[3]"))
    assert len(worst) == 11 and worst[1].fault["missingcamera"]["severity"] == 3


@pytest.mark.parametrize(
    ("suite", "override", "message"),
    [
        (
            "multicorrupt",
            "severities.multicorrupt=[4]",
            r"conditions\.multicorrupt\.missingcamera: .*severity=4: .* 1 to 3",
        ),
        ("multicorrupt", "severities.multicorrupt=3", r"^severities.multicorrupt=3: "),
        ("multicorrupt", "severities=3", r"^severities=3: "),
        ("multicorrupt", "conditions=null", r"^conditions=null: "),
        ("multicorrupt", "conditions.multicorrupt=null", r"^conditions.multicorrupt=null: "),
        ("multicorrupt", "+severities.mome=[1]", r"^severities.mome: .* multicorrupt"),
        ("mome", "+severities.mome=[1]", r"^severities.mome: mome/beams4_horizon has no severities"),
    ],
)
def test_invalid_conditions_and_severities(suite: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        conditions_of(configured(f"suite={suite}", override))


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Run folders of a fused and a LiDAR model."""
    for name, model in (("fused", []), ("lidar", ["model=tiny_lidar"])):
        config = OmegaConf.to_container(composed("aqr=none", *model))
        assert isinstance(config, dict)
        config |= {"callbacks": {}, "logger": {}, "data": {**config["data"], "root": str(tmp_path)}}
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        saved = {"state_dict": {}, "config": config, "global_step": 1}
        torch.save(saved, tmp_path / name / "checkpoints" / "last.ckpt")
    return [str(tmp_path / "fused"), str(tmp_path / "lidar")]


class Evaluations:
    """Replaces the evaluations: results by model and condition, a list of what was evaluated, and a failure."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fail_at: int | None = None
        self.fail_with: BaseException = KeyboardInterrupt()

    def __call__(self, task: Any, config: DictConfig, folder: Path, overrides: list[str]) -> dict[str, float]:
        if len(self.done) == self.fail_at:
            raise self.fail_with
        fused = config.data.cameras
        name = next((key for key in config.eval_fault if key not in ("_target_", "share", "severity")), "clean")
        self.done.append(f"{'fused' if fused else 'lidar'} {name}")
        nds = {"clean": 0.5 if fused else 0.4, "fov60": 0.1 if fused else 0.2}.get(name, 0.25)
        return {"NDS": nds, "mAP": nds / 2, "mAVE": math.nan}


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Evaluations:
    fake = Evaluations()
    monkeypatch.setattr(module, "run_task", fake)
    return fake


def run(two: list[str], out: Path, *overrides: str) -> list[Row]:
    config = configured("suite=mome", *overrides)  # composed once for all folders
    config.out = str(out)
    config.ckpt_path = two if config.ckpt_path is None else config.ckpt_path
    return robustness(config, [f"ckpt_path=[{','.join(two)}]", "suite=mome", f"out={out}", *overrides])


def test_conditions_are_evaluated_once_and_a_killed_one_again(
    two: list[str], tmp_path: Path, evaluations: Evaluations, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    evaluations.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(two, out)
    evaluations.fail_at = None
    rows = run(two, out)
    # Two conditions do not affect the LiDAR and are not evaluated for it.
    assert len(evaluations.done) == len(set(evaluations.done)) == 7 + 5
    as_clean = {row.condition for row in rows if row.model == "lidar" and row.metrics["NDS"] == 0.4}
    assert as_clean == {"clean", "view_drop", "occlusion"}
    assert "lidar reads no cameras: 2 of 6 conditions" in capsys.readouterr().out
    assert run(two, out) == rows and len(evaluations.done) == 12
    for overrides, count in (
        (["seed=1", "data.num_workers=3"], 24),
        (["seed=1"], 24),  # the number of workers changes no result
        (["seed=1", "refresh=true"], 36),
        (["seed=1", "data.sweeps=1"], 48),
    ):
        run(two, out, *overrides)
        assert len(evaluations.done) == count


def test_a_condition_that_the_data_cannot_have_is_named(
    two: list[str], tmp_path: Path, evaluations: Evaluations
) -> None:
    evaluations.fail_at, evaluations.fail_with = 2, DataError("its points have no ring")
    with pytest.raises(UserError, match=r"mome/lidar_drop: .* no ring; conditions\.mome\.lidar_drop=null"):
        run(two, tmp_path / "out")
    evaluations.fail_at = None
    run(two, tmp_path / "out", "conditions.mome.lidar_drop=null")
    assert len(evaluations.done) == 6 + 4 and "lidar_drop" not in " ".join(evaluations.done)
    evaluations.fail_at, evaluations.fail_with = 10, DataError("no such file")
    with pytest.raises(DataError, match=r"^no such file$"):
        run(two, tmp_path / "other")  # on clean frames, where no condition is to blame


def test_parts_share_the_work_and_the_last_writes_the_tables(
    two: list[str], tmp_path: Path, evaluations: Evaluations, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(two, out, "part=1/2")
    assert "part=1/2 is done" in capsys.readouterr().out and not (out / PAGE).exists()
    run(two, out, "part=2/2", "names=[a,b]", "baseline=b")
    assert len(evaluations.done) == len(set(evaluations.done)) == 12
    table = pd.read_csv(out / "mome.csv")
    assert len(table) == 14 and set(table.model) == {"a", "b"}
    fused = table[table.model == "a"].set_index("condition")
    assert set(fused.index[fused.below_floor]) == {"fov60", "view_drop", "occlusion"}
    assert fused.RA["fov60"] == pytest.approx(0.2) and fused.RRA["fov60"] == pytest.approx(-0.5)
    page = (out / PAGE).read_text(encoding="utf-8")
    assert page.count(' below"') == 3 and page.count(' spared"') == 6 and f"10.0 {MARK}" in page and "58.3" in page
    cached = [from_json(path) for path in (out / "results").rglob("*.json")]
    assert len(cached) == 12 and all(one["metrics"]["mAVE"] is None for one in cached)


FUSED = frozenset(("lidar", "camera"))


def test_unknown_values_are_empty_in_the_tables() -> None:
    rows = [Row("mine", FUSED, "clean", "clean", 0, {"NDS": 0.5, "mAP": 0.4})]
    for severity, nds in ((1, 0.4), (2, 0.3), (3, 0.2)):
        rows.append(Row("mine", FUSED, "multicorrupt", "fog", severity, {"NDS": nds, "mAP": 0.1}))
    table = suite_table(rows, "multicorrupt", None)
    assert table.headings == ["clean", "fog 1", "fog 2", "fog 3"]
    columns = {(column.model, column.name): [cell.text for cell in column.cells] for column in table.columns}
    assert columns["mine", "NDS"] == ["50.0", "40.0", "30.0", "20.0"]
    assert columns["mine", "mAP"] == ["40.0", "10.0", "10.0", "10.0"]
    assert columns["mine", "RA"] == ["", "0.600", "", ""]  # one for all severities
    headings = [column.header for column in screen_table(table).columns]
    assert headings[:5] == ["condition", "mine NDS", "mAP", "RA", "CMT vov99 NDS"]
    assert columns["CMT vov99", "NDS"][1:] == ["69.7", "65.3", "41.3"]
    # mRA of one condition, and not the published one of ten.
    ((name, means),) = table.means
    assert (name, [cell.text for cell in means]) == ("mRA", ["", "", "0.600", "0.806", "0.788"])
    assert not table.also
    results = frame_of(rows, "multicorrupt")
    assert not results.below_floor.any() and results.floor_NDS.isna().all()


@pytest.mark.parametrize(
    ("clean", "ra", "means"),
    [
        (0.0999, ["", "0.800"], {"mRA": ["", "0.800"]}),
        (0.1, ["0.500", "0.800"], {"mRA": ["0.500", "0.800"], "mRRA, %": ["0.0", "700.0"]}),
    ],
)
def test_a_model_with_a_low_clean_score_has_no_ra(clean: float, ra: list[str], means: dict) -> None:
    rows = [
        Row(model, FUSED, suite, condition, 0, {"NDS": nds, "mAP": 0.0})
        for model, scores in {"mine": (clean, 0.05), "good": (0.5, 0.4)}.items()
        for (suite, condition), nds in zip((("clean", "clean"), ("mome", "fov60")), scores, strict=True)
    ]
    table = suite_table(rows, "mome", "mine")
    assert [column.cells[1].text for column in table.columns if column.name == "RA"] == ra
    assert {name: [cells[2].text, cells[5].text] for name, cells in table.means} == means
    assert len(table.notes) == (clean < 0.1) and all("mine" in note and "10.0" in note for note in table.notes)


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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ckpt_path=[]", "ckpt_path is missing"),
        ("ckpt_path=nowhere/none.ckpt", "none.ckpt: there is no such file"),
        ("names=[a]", r"names=\['a'\]: must be one name for each of the 2 checkpoints"),
        ("baseline=other", "baseline=other: .* fused, lidar"),
        ("part=3/2", "part=3/2: must be a share"),
        ("eval_fault=fog", "^eval_fault: "),
        ("optimizer.lr=1", "optimizer.lr has no effect on an evaluation"),
        ("conditions.mome.occlusion.occlusion.masks=/absent", "masks=/absent: there is no such folder"),
    ],
)
def test_mistakes_are_found_before_the_first_evaluation(
    two: list[str], tmp_path: Path, evaluations: Evaluations, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(two, tmp_path / "out", override)
    assert not evaluations.done
    with pytest.raises(UserError, match="ckpt_path is missing"):
        robustness(configured("suite=mome"), [])
