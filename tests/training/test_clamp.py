import pytest

from cmt_aqr.training.clamp import ClampSchedule

PROGRESSIVE = {0: 2.5, 6: 2.0, 16: 1.5}


@pytest.mark.parametrize(("epoch", "value"), [(0, 2.5), (5, 2.5), (6, 2.0), (15, 2.0), (16, 1.5), (24, 1.5)])
def test_progressive_by_epoch(epoch: int, value: float) -> None:
    assert ClampSchedule(PROGRESSIVE).value_at(epoch) == value


def test_linear_between_milestones() -> None:
    schedule = ClampSchedule(PROGRESSIVE, mode="linear")
    assert schedule.value_at(3) == pytest.approx(2.25)
    assert schedule.value_at(11) == pytest.approx(1.75)
    assert schedule.value_at(30) == 1.5


def test_no_milestones_leave_the_renderer_alone() -> None:
    assert ClampSchedule().value_at(3) is None


@pytest.mark.parametrize(
    ("milestones", "message"),
    [({1: 2.0}, "begin at 0"), ({0: 2.0, 6: 1.0, 3: 2.0}, "increase"), ({0: 2.0, 5: -1.0}, "above 0")],
)
def test_bad_milestones_are_refused(milestones: dict[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClampSchedule(milestones)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="step or linear"):
        ClampSchedule(PROGRESSIVE, mode="cubic")
