"""Render training frames with the objects that are pasted into them."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.runs.command import command


@command()
def main(config: DictConfig) -> None:
    """Check the configuration and render a contact sheet."""
    # Imported here, so that mistakes in the command are reported before PyTorch and Lightning load.
    from cmt_aqr.runs.configuration import check_config
    from cmt_aqr.studies.training_frames import show_frames

    hydra = HydraConfig.get()
    config.recipe.needs_weights = False
    check_config(config, list(hydra.overrides.task))
    show_frames(config, Path(hydra.runtime.output_dir))


if __name__ == "__main__":
    main()
