"""Train a detector and print its official nuScenes metrics."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.command import command

CONF = Path(__file__).resolve().parents[1] / "conf"


@command(CONF, "train")
def main(config: DictConfig) -> float:
    """Check the configuration and train; returns NDS for sweepers."""
    # Imported here: a mistake in the command is answered before PyTorch and Lightning are loaded.
    from cmt_aqr.configuration import check_config, with_overrides
    from cmt_aqr.training.checkpoints import saved_config
    from cmt_aqr.training.processes import run_task
    from cmt_aqr.training.run import train

    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    if config.ckpt_path and not config.weights:
        config = with_overrides(saved_config(Path(config.ckpt_path)), config, overrides)
    check_config(config, overrides)
    return run_task(train, config, Path(hydra.runtime.output_dir), overrides)["NDS"]


if __name__ == "__main__":
    main()
