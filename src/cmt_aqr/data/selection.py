"""Frames that a user names."""

from __future__ import annotations

from collections.abc import Sequence

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.errors import DataError


def frame_numbers(data: NuScenesDataModule, frames: Sequence[int | str] | None, few: int = 3) -> list[int]:
    """Numbers of frames in ``data.val_split``, which is prepared, that are named by number from 0 or sample token.

    ``None`` stands for a ``few`` frames over the whole split.

    Raises:
        DataError: the split has no such frame.
    """
    index = data.index(data.val_split)
    last = len(index) - 1
    if frames is None:
        few = min(few, len(index))
        return [round(i * last / max(few - 1, 1)) for i in range(few)]
    number_of = {index.token(number): number for number in range(len(index))}
    where = f"split {data.val_split} of {data.root}"
    numbers = []
    for frame in frames:
        number = number_of.get(frame) if isinstance(frame, str) else frame
        if number is None:
            raise DataError(f"frame {frame}: {where} has none with this sample token; its numbers are 0 to {last}")
        if not 0 <= number <= last:
            raise DataError(f"frame {frame}: {where} has frames 0 to {last}")
        numbers.append(number)
    return numbers
