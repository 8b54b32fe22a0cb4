"""Evaluate a checkpoint of a training run with nuScenes' official metrics."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.command import command
from cmt_aqr.configuration import check_config, with_overrides
from cmt_aqr.errors import UserError
from cmt_aqr.training.checkpoints import read_checkpoint
from cmt_aqr.training.run import evaluate

CONF = Path(__file__).resolve().parents[1] / "conf"


@command(CONF, "evaluate")
def main(config: DictConfig) -> float:
    """Take the checkpoint's configuration, apply this command's overrides, evaluate; returns NDS."""
    hydra = HydraConfig.get()
    if config.ckpt_path is None:
        raise UserError("ckpt_path is missing: python scripts/evaluate.py ckpt_path=outputs/.../last.ckpt")
    overrides = list(hydra.overrides.task)
    saved = read_checkpoint(Path(config.ckpt_path)).get("config")
    if not saved:
        raise UserError(f"ckpt_path={config.ckpt_path}: the checkpoint holds no configuration")
    merged = with_overrides(saved, config, overrides)
    check_config(merged)
    clamp_given = any(item.startswith(("renderer=", "renderer.max_weight_clamp=")) for item in overrides)
    return evaluate(merged, Path(hydra.runtime.output_dir), clamp_given)["NDS"]


if __name__ == "__main__":
    main()
