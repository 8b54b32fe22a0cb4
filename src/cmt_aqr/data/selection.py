"""Frames chosen by a user."""

from collections.abc import Sequence

import numpy as np

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.errors import DataError


def frame_numbers(data: NuScenesDataModule, frames: Sequence[int | str] | None, few: int = 3) -> list[int]:
    """Positions of frames in ``data.val_split``, from positions or sample tokens.

    ``None`` chooses ``few`` frames, evenly spaced. The data must have been prepared.

    Raises:
        DataError: the split has no such frame.
    """
    index = data.index(data.val_split)
    last = len(index) - 1
    if frames is None:
        return np.linspace(0, last, min(few, len(index))).round().astype(int).tolist()
    position_of = {index.token(number): number for number in range(len(index))}
    where = f"split {data.val_split} of {data.root}"
    numbers = []
    for frame in frames:
        number = position_of.get(frame) if isinstance(frame, str) else frame
        if number is None:
            raise DataError(f"frame {frame}: {where} has none with this sample token; its numbers are 0 to {last}")
        if not 0 <= number <= last:
            raise DataError(f"frame {frame}: {where} has frames 0 to {last}")
        numbers.append(number)
    return numbers
