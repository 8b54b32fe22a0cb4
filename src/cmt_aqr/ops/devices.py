"""Differences between devices, and between one process and several."""

import torch
import torch.distributed


def masks_are_free(device: torch.device) -> bool:
    """Whether Boolean indexing does not synchronise on this device, so that skipping rows saves time.

    The host must know how many rows a mask selects. On a GPU it would have to synchronise, which costs more than
    computing all rows.
    """
    return device.type == "cpu"


def processes() -> int:
    """Number of processes that train or evaluate together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1
