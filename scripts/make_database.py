"""Make the database of objects that training pastes into frames, before any training."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.runs.command import command


@command()
def main(config: DictConfig) -> None:
    """Check the configuration, make what is missing of the database, and say what it holds."""
    # Imported here: a mistake in the command is answered before PyTorch and Lightning are loaded.
    from cmt_aqr.runs.configuration import check_config
    from cmt_aqr.studies.training_frames import make_objects

    config.recipe.needs_weights = False
    check_config(config, list(HydraConfig.get().overrides.task))
    make_objects(config)


if __name__ == "__main__":
    main()
