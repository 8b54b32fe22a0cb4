"""Convert a checkpoint between the official CMT's names and layouts and those of this project.

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

# PyTorch is imported in the functions, so that mistakes in the command are reported before it loads.


def convert_file(source: Path, target: Path, to: str | None) -> dict[str, Tensor]:
    """Convert a file, and return what was written."""
    require(to in (None, "official", "ours"), "to", to, "official, ours or null")
    valid = target.suffix in (".safetensors", ".pth") and not target.is_dir()
    require(valid, "target", target, "the name of a file that ends in .safetensors or .pth")
    if not source.exists():
        raise UserError(f"source={source}: there is no such file")
    check_folder("target", target.parent)
    from cmt_aqr.weights import WeightsError, convert, naming_of, read_state_dict, save_pickled, save_safetensors

    try:
        state = convert(read_state_dict(source), to)  # type: ignore[arg-type]
    except WeightsError as error:  # which names the key of other commands
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
    """Check the arguments, convert and print a summary."""
    missing = OmegaConf.missing_keys(config) & {"source", "target"}
    if missing:
        raise UserError(f"{' and '.join(f'{key}=' for key in sorted(missing))} must be given; see --help")
    state = convert_file(Path(config.source), Path(config.target), config.to)
    from cmt_aqr.weights import naming_of

    console().print(summary(state))
    console().print(f"wrote {config.target} with {naming_of(state)} names")


if __name__ == "__main__":
    main()
