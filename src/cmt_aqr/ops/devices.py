"""What differs between devices, and between one process and several."""

import torch
import torch.distributed


def masks_are_free(device: torch.device) -> bool:
    """Whether picking out rows by a mask costs nothing but the rows, so that it pays to compute fewer of them.

    How many rows a mask picks must be known to go on. To learn that, the host would synchronise with a GPU, which
    costs more than the rows that are left out; on a CPU there is nothing to wait for.
    """
    return device.type == "cpu"


def processes() -> int:
    """How many compute together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1
