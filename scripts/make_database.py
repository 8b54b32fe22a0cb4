"""Create the database of objects that training pastes into frames."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.runs.command import command


@command()
def main(config: DictConfig) -> None:
    """Check the configuration, create missing parts of the database, and print a summary."""
    # Imported here, so that mistakes in the command are reported before PyTorch and Lightning load.
    from cmt_aqr.runs.configuration import check_config
    from cmt_aqr.studies.training_frames import make_objects

    config.recipe.needs_weights = False
    check_config(config, list(HydraConfig.get().overrides.task))
    make_objects(config)


if __name__ == "__main__":
    main()
