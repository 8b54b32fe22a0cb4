"""Train a detector and print its official nuScenes metrics."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.errors import UserError
from cmt_aqr.runs.command import command
from cmt_aqr.runs.sweep_job import in_sweep

FOLDERS = ("hydra.run.dir=", "hydra.sweep.dir=")


@command()
def main(config: DictConfig) -> float:
    """Check the configuration and train; returns NDS for sweepers."""
    # Imported here, so that mistakes in the command are reported before PyTorch and Lightning load.
    from cmt_aqr.runs.configuration import check_config
    from cmt_aqr.runs.processes import run_task
    from cmt_aqr.runs.records import record_refusal
    from cmt_aqr.runs.resuming import AUTO, checkpoint_path, configuration
    from cmt_aqr.training.run import train

    hydra = HydraConfig.get()
    overrides, folder = list(hydra.overrides.task), Path(hydra.runtime.output_dir)
    try:
        named = in_sweep() or any(item.lstrip("+").startswith(FOLDERS) for item in hydra.overrides.hydra)
        if in_sweep() and not config.ckpt_path:
            config.ckpt_path = AUTO
        config = configuration(config, overrides, checkpoint_path(config.ckpt_path, folder, named))
        check_config(config, overrides)
    except UserError as error:
        record_refusal(folder, config, overrides, error)
        raise
    return run_task(train, config, folder, overrides)["NDS"]


if __name__ == "__main__":
    main()
