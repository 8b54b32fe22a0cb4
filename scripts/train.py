"""Train a detector and print its official nuScenes metrics."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.command import command
from cmt_aqr.errors import UserError
from cmt_aqr.sweeps import checkpoint_to_go_on_from

CONF = Path(__file__).resolve().parents[1] / "conf"


@command(CONF, "train")
def main(config: DictConfig) -> float:
    """Check the configuration and train; returns NDS for sweepers."""
    # Imported here: a mistake in the command is answered before PyTorch and Lightning are loaded.
    from cmt_aqr.configuration import check_config, with_overrides
    from cmt_aqr.training.checkpoints import saved_config
    from cmt_aqr.training.records import record_refusal
    from cmt_aqr.training.run import train

    hydra = HydraConfig.get()
    overrides, folder = list(hydra.overrides.task), Path(hydra.runtime.output_dir)
    try:
        if unfinished := checkpoint_to_go_on_from(folder):
            config.ckpt_path, config.weights = str(unfinished), None  # a run of a sweep, with the same overrides
        elif config.ckpt_path and not config.weights:
            config = with_overrides(saved_config(Path(config.ckpt_path)), config, overrides)
        check_config(config, overrides)
    except UserError as error:
        record_refusal(folder, config, overrides, error)
        raise
    return train(config, folder, overrides)["NDS"]


if __name__ == "__main__":
    main()
