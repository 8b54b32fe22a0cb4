"""Convert a checkpoint between the official CMT's names and layouts and ours.

python scripts/convert_checkpoint.py source=epoch_20.pth target=cmt_r50.safetensors
python scripts/convert_checkpoint.py source=last.ckpt target=official.pth to=official
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from cmt_aqr.checks import require
from cmt_aqr.errors import UserError
from cmt_aqr.files import check_folder, writing
from cmt_aqr.runs.command import command
from cmt_aqr.runs.console import console

if TYPE_CHECKING:
    from torch import Tensor

# What needs PyTorch is imported in the functions: a mistake in the command is answered before it is loaded.


def convert_file(source: Path, target: Path, to: str | None) -> dict[str, Tensor]:
    """Read, convert and write; returns what was written."""
    require(to in (None, "official", "ours"), "to", to, "official, ours or null")
    written = target.suffix in (".safetensors", ".pth") and not target.is_dir()
    require(written, "target", target, "the name of a file that ends in .safetensors or .pth")
    if not source.exists():
        raise UserError(f"source={source}: there is no such file")
    check_folder("target", target.parent)
    from cmt_aqr.weights import WeightsError, convert, naming_of, read_state_dict, save_pickled, save_safetensors

    try:
        state = convert(read_state_dict(source), to)  # type: ignore[arg-type]
    except WeightsError as error:  # it calls the file what other commands do
        raise UserError(str(error).replace("weights=", "source=", 1)) from error
    with writing("target", target):
        if target.suffix == ".pth":
            save_pickled(state, target)
        else:
            save_safetensors(state, target, {"naming": naming_of(state), "source": source.name})
    return state


def summary(state: dict[str, Tensor]) -> Table:
    """Tensors and parameters by module."""
    from cmt_aqr.weights.load import module_of

    table = Table("module", "tensors", "numbers")
    tensors, numbers = Counter(map(module_of, state)), Counter[str]()
    for name, value in state.items():
        numbers[module_of(name)] += value.numel()
    for module, count in tensors.items():
        table.add_row(module, str(count), f"{numbers[module]:,}")
    return table


@command()
def main(config: DictConfig) -> None:
    """Run from the command line."""
    missing = OmegaConf.missing_keys(config) & {"source", "target"}
    if missing:
        raise UserError(f"{' and '.join(f'{key}=' for key in sorted(missing))} must be given; see --help")
    state = convert_file(Path(config.source), Path(config.target), config.to)
    from cmt_aqr.weights import naming_of

    console().print(summary(state))
    console().print(f"wrote {config.target} with {naming_of(state)} names")


if __name__ == "__main__":
    main()
