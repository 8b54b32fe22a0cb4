"""Draw AQR's maps, ground truth and detections of single frames."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.command import command
from cmt_aqr.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"


@command(CONF, "visualize")
def main(config: DictConfig) -> None:
    """Take the checkpoint's configuration, apply this command's overrides, draw."""
    # Imported here: a mistake in the command is answered before PyTorch and Lightning are loaded.
    from cmt_aqr.configuration import check_config, with_overrides
    from cmt_aqr.training.checkpoints import saved_config
    from cmt_aqr.visual.visualize import PictureSettings, visualize

    if config.ckpt_path is None:
        raise UserError("ckpt_path is missing: python scripts/visualize.py ckpt_path=outputs/.../last.ckpt")
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    settings = PictureSettings.from_config(config, Path(hydra.runtime.output_dir))
    merged = with_overrides(saved_config(Path(config.ckpt_path)), config, overrides)
    check_config(merged)
    visualize(merged, settings, overrides)


if __name__ == "__main__":
    main()
