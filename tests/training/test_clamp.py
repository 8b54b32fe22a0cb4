import math

import pytest

from cmt_aqr.training.clamp import ClampSchedule
from tests.helpers.composed import composed

PROGRESSIVE = {0: 2.5, 6: 2.0, 16: 1.5}


@pytest.mark.parametrize(
    ("milestones", "message"),
    [
        ({1: 2.0}, "begin at 0"),
        ({0: 2.0, 6: 1.0, 3: 2.0}, "increase"),
        ({0: 2.0, 1.5: 1.0}, r"milestones=\{0: 2.0, 1.5: 1.0\}: epochs must be whole numbers"),
        ({"0": 2.0, "one": 1.0}, "epochs must be whole numbers"),
        ({0: 2.0, 5: -1.0}, r"milestones\[5\]=-1.0: must be a number above 0"),
        ({0: 0.0}, "above 0"),
        ({0: None}, r"milestones\[0\]=null: must be a number above 0"),
        ({0: "high"}, r"milestones\[0\]=high: must be a number above 0"),
        ({0: math.nan}, "above 0"),
        ({0: math.inf}, "above 0"),
    ],
)
def test_bad_milestones_are_refused(milestones: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClampSchedule(milestones)


def test_a_mapping_on_the_command_line_replaces_all_milestones() -> None:
    """They are not merged with those of ``progressive``: a schedule is read off the command that gave it."""
    schedule = "clamp_schedule=progressive"
    assert composed(schedule).clamp_schedule.milestones == {0: 2.5, 6: 2.0, 16: 1.5}
    given = composed(schedule, "clamp_schedule.milestones={0:3.0,4:1.0}").clamp_schedule
    assert given.milestones == {0: 3.0, 4: 1.0} and given.mode == "step"
    linear = composed(schedule, "clamp_schedule.mode=linear").clamp_schedule
    assert linear.milestones == {0: 2.5, 6: 2.0, 16: 1.5} and linear.mode == "linear"
    added = composed(schedule, "+clamp_schedule.milestones.20=1.0").clamp_schedule
    with pytest.raises(ValueError, match=r"set all of them together, as in {0:2.5"):
        ClampSchedule(added.milestones)
