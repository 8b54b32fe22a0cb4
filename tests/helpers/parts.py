"""Parts of a run that only tests configure: a slow callback and a transform that breaks one frame."""

import dataclasses
import time
from typing import Any

from numpy.random import Generator
from pytorch_lightning import Callback

from cmt_aqr.structures import Frame


class Slow(Callback):
    """Sleeps for some seconds after each step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(self.seconds)


class Poison:
    """Makes a column of one frame's boxes NaN; velocities (7, 8) enter the loss, but not the matching cost.

    Args:
        token: sample token of the frame.
        column: index of the column of ``boxes``.
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
    """Overrides of train.py that add :class:`Poison`."""
    key = "+data.train_transforms.poison"
    return [f"{key}._target_=tests.helpers.parts.Poison", f"{key}.token={token}", f"{key}.column={column}"]
