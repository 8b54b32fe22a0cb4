"""Train a detector and print its official nuScenes metrics."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.command import command
from cmt_aqr.configuration import check_config
from cmt_aqr.training.run import train

CONF = Path(__file__).resolve().parents[1] / "conf"


@command(CONF, "train")
def main(config: DictConfig) -> float:
    """Check the configuration and train; returns NDS for sweepers."""
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    check_config(config, overrides)
    return train(config, Path(hydra.runtime.output_dir), overrides)["NDS"]


if __name__ == "__main__":
    main()
