"""What a model is made of, on screen."""

from __future__ import annotations

import pytorch_lightning as pl
from rich.table import Table
from torch import nn

from cmt_aqr.runs.console import console
from cmt_aqr.training.module import DetectorModule
from cmt_aqr.training.optimization import MODULES, Multipliers, OptimizerSettings, module_of


def parameter_table(model: nn.Module, optimizer: OptimizerSettings, factors: Multipliers, samples: int) -> Table:
    """Parameters, learning rate and weight decay of every module."""
    lr = optimizer.scaled_lr(samples)
    table = Table(title=f"Parameters by module (learning rate {lr:g} for {samples} samples per step)")
    for heading in ("module", "parameters", "learning", "learning rate", "weight decay"):
        table.add_column(heading, justify="left" if heading == "module" else "right")
    totals = [0, 0]
    for module in MODULES:
        members = [p for name, p in model.named_parameters() if module_of(name) == module]
        if not members:
            continue
        count = sum(p.numel() for p in members)
        learning = sum(p.numel() for p in members if p.requires_grad)
        rate = lr * factors.lr.get(module, 1.0)
        decay = optimizer.weight_decay * factors.weight_decay.get(module, 1.0)
        table.add_row(module, f"{count:,}", f"{learning:,}", f"{rate:.2e}" if rate else "frozen", f"{decay:g}")
        totals = [totals[0] + count, totals[1] + learning]
    table.add_section()
    table.add_row("all", f"{totals[0]:,}", f"{totals[1]:,}", "", "")
    return table


class ParameterSummary(pl.Callback):
    """Prints the parameters by module when a fit starts."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table, on one process."""
        if trainer.is_global_zero and isinstance(pl_module, DetectorModule):
            settings, factors = pl_module.optimizer_settings, pl_module.multipliers
            console().print(parameter_table(pl_module.model, settings, factors, pl_module.samples_per_step))
