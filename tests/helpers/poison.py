"""A transform that spoils one frame, for tests of what a run does about it."""

import dataclasses

from numpy.random import Generator

from cmt_aqr.structures import Frame


class Poison:
    """Makes a column of a frame's boxes NaN; the matching does not look at velocities (7, 8), the loss does.

    Args:
        token: of the frame.
        column: of its boxes.
    """

    def __init__(self, token: str, column: int) -> None:
        self.token = token
        self.column = column

    def __call__(self, frame: Frame, generator: Generator) -> Frame:
        if frame.token != self.token:
            return frame
        boxes = frame.boxes.clone()
        boxes[:, self.column] = float("nan")
        return dataclasses.replace(frame, boxes=boxes)


def poisoned(token: str, column: int) -> list[str]:
    """Overrides of train.py that spoil a frame."""
    key = "+data.train_transforms.poison"
    return [f"{key}._target_=tests.helpers.poison.Poison", f"{key}.token={token}", f"{key}.column={column}"]
