"""Private attributes of Lightning and PyTorch that the code uses, and that a new version may change.

``pyproject.toml`` bounds pytorch-lightning below the next minor release because of these.
"""

import importlib.util
import operator
import re
from pathlib import Path

import lightning_fabric.utilities.types
import pytorch_lightning as pl
import torch
from packaging.requirements import Requirement
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.strategies import launchers

ROOT = Path(__file__).resolve().parents[2]
USED = {
    "_combined_loader": "fit_loop",
    "_data_fetcher": "fit_loop",
    "_should_accumulate": "fit_loop.epoch_loop",
    "_should_check_val_fx": "fit_loop.epoch_loop",
    "_signal_connector": "",
}
"""Private attributes of a Trainer's parts, and the part."""


def test_private_names_exist() -> None:
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    for name, part in USED.items():
        assert hasattr(operator.attrgetter(part)(trainer) if part else trainer, name), f"{part}.{name}"
    assert trainer._signal_connector.received_sigterm is False
    assert hasattr(launchers, "_SubprocessScriptLauncher")
    assert hasattr(ExperimentWriter, "_check_log_dir_exists")
    assert hasattr(lightning_fabric.utilities.types, "_PATH")
    # Lightning recognises optimisers that unscale gradients themselves by this attribute.
    assert torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)._step_supports_amp_scaling
    amp = importlib.util.find_spec("pytorch_lightning.plugins.precision.amp")
    assert amp is not None and amp.origin is not None
    assert "_optimizer_handles_unscaling" in Path(amp.origin).read_text(encoding="utf-8")


def test_no_other_is_used() -> None:
    """In src/, on objects that are Lightning's by name."""
    pattern = re.compile(r"(?:trainer|_loop|\bloop|fetcher)(?:\.\w+)*?\.(_[a-z]\w+)")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    assert {name for source in sources for name in pattern.findall(source)} == set(USED)


def test_the_dependency_is_bounded() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    (requirement,) = re.findall(r'"([^"]+)"', next(line for line in lines if '"pytorch-lightning' in line))
    assert pl.__version__ in Requirement(requirement).specifier
    assert "<" in requirement
