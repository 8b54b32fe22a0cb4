"""Where Lightning's loops stand, in a checkpoint: changed where it would take a resumed run up elsewhere."""

from __future__ import annotations

from typing import Any


def expect_evaluation(fit_loop: dict[str, Any]) -> None:
    """Change the state of the fit loop in a checkpoint, so that resuming begins with an evaluation.

    Written at the end of a batch, it says that the batch is being completed; Lightning then takes an evaluation
    that was due for done. As it is changed here, the batch is complete and an evaluation has begun its first
    batch, so Lightning goes back and makes it from the start.
    """
    batches = fit_loop["epoch_loop.batch_progress"]
    for count in (batches["total"], batches["current"]):
        count["completed"] = count["processed"]
    evaluation = fit_loop["epoch_loop.val_loop.batch_progress"]
    evaluation["total"].update(ready=1, started=1, processed=0, completed=0)
    evaluation["current"].update(ready=0, started=0, processed=0, completed=0)
    evaluation["is_last_batch"] = False


def complete_epoch(fit_loop: dict[str, Any]) -> None:
    """Change the state of the fit loop in a checkpoint, so that resuming begins with the next epoch.

    Written where an epoch ends, it says that it is being completed. With ``trainer.max_steps`` Lightning then
    takes one more batch as the old epoch's, and counts all later epochs one too high.
    """
    for count in fit_loop["epoch_progress"].values():
        count["completed"] = count["processed"]
    batches = fit_loop["epoch_loop.batch_progress"]
    steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for part in (batches, fit_loop["epoch_loop.scheduler_progress"], steps["step"], steps["zero_grad"]):
        part["current"] = dict.fromkeys(part["current"], 0)
    batches["is_last_batch"] = False
