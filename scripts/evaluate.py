"""Evaluate a checkpoint of a training run with nuScenes' official metrics."""

import math
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.runs.command import command


@command()
def main(config: DictConfig) -> float:
    """Take the checkpoint's configuration, apply this command's overrides, evaluate; returns NDS, NaN without."""
    # Imported here, so that mistakes in the command are reported before PyTorch and Lightning load.
    from cmt_aqr.runs.processes import run_task
    from cmt_aqr.runs.resuming import configuration_to_evaluate
    from cmt_aqr.training.run import evaluate

    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    merged = configuration_to_evaluate(config, overrides, folder)
    return run_task(evaluate, merged, folder, overrides).get("NDS", math.nan)


if __name__ == "__main__":
    main()
