"""Render AQR's maps, ground truth and detections of single frames, or a frame under every sensor failure."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.runs.command import command


@command()
def main(config: DictConfig) -> None:
    """Take the checkpoint's configuration, apply this command's overrides, render."""
    # Imported here, so that mistakes in the command are reported before PyTorch and Lightning load.
    from cmt_aqr.runs.resuming import configuration_to_evaluate
    from cmt_aqr.studies.contact_sheet import contact_sheets
    from cmt_aqr.studies.visualize import PictureSettings, visualize

    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    settings = PictureSettings.from_config(config, folder)
    if "conditions" in config:
        contact_sheets(config, settings, overrides)
        return
    visualize(configuration_to_evaluate(config, overrides, folder), settings, overrides)


if __name__ == "__main__":
    main()
