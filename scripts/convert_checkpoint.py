"""Convert a checkpoint between the official CMT's names and layouts and ours.

python scripts/convert_checkpoint.py source=epoch_20.pth target=cmt_r50.safetensors
python scripts/convert_checkpoint.py source=last.ckpt target=official.pth to=official
"""

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor

from cmt_aqr.command import command
from cmt_aqr.errors import UserError
from cmt_aqr.visual.console import console
from cmt_aqr.weights import WeightsError, convert, naming_of, read_state_dict, save_pickled, save_safetensors
from cmt_aqr.weights.load import module_of

CONF = Path(__file__).resolve().parents[1] / "conf"


def convert_file(source: Path, target: Path, to: str | None) -> dict[str, Tensor]:
    """Read, convert and write; returns what was written."""
    if to not in (None, "official", "ours"):
        raise WeightsError(f"to={to}: expected official, ours or null")
    if target.suffix not in (".safetensors", ".pth"):
        raise WeightsError(f"target={target}: expected a name that ends in .safetensors or .pth")
    state = convert(read_state_dict(source), to)  # type: ignore[arg-type]
    if target.suffix == ".pth":
        save_pickled(state, target)
    else:
        save_safetensors(state, target, {"naming": naming_of(state), "source": source.name})
    return state


def summary(state: dict[str, Tensor]) -> Table:
    """Tensors and parameters by module."""
    table = Table("module", "tensors", "numbers")
    tensors, numbers = Counter(map(module_of, state)), Counter[str]()
    for name, value in state.items():
        numbers[module_of(name)] += value.numel()
    for module, count in tensors.items():
        table.add_row(module, str(count), f"{numbers[module]:,}")
    return table


@command(CONF, "convert_checkpoint")
def main(config: DictConfig) -> None:
    """Run from the command line."""
    missing = OmegaConf.missing_keys(config) & {"source", "target"}
    if missing:
        raise UserError(f"{' and '.join(f'{key}=' for key in sorted(missing))} must be given; see --help")
    try:
        state = convert_file(Path(config.source), Path(config.target), config.to)
    except OSError as error:
        raise UserError(str(error)) from error
    console().print(summary(state))
    console().print(f"wrote {config.target} with {naming_of(state)} names")


if __name__ == "__main__":
    main()
