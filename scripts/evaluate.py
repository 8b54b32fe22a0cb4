"""Evaluate a checkpoint of a training run with nuScenes' official metrics."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.command import command
from cmt_aqr.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"


@command(CONF, "evaluate")
def main(config: DictConfig) -> float:
    """Take the checkpoint's configuration, apply this command's overrides, evaluate; returns NDS."""
    # Imported here: a mistake in the command is answered before PyTorch and Lightning are loaded.
    from cmt_aqr.configuration import check_config, with_overrides
    from cmt_aqr.training.checkpoints import saved_config
    from cmt_aqr.training.processes import run_task
    from cmt_aqr.training.run import evaluate

    if config.ckpt_path is None:
        raise UserError("ckpt_path is missing: python scripts/evaluate.py ckpt_path=outputs/.../last.ckpt")
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    merged = with_overrides(saved_config(Path(config.ckpt_path)), config, overrides)
    check_config(merged)
    return run_task(evaluate, merged, Path(hydra.runtime.output_dir), overrides)["NDS"]


if __name__ == "__main__":
    main()
