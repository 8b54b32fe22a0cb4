"""Compare runs on clean frames and with bad sensors: ``python scripts/fault_study.py folder=outputs/study``."""

from omegaconf import DictConfig

from cmt_aqr.errors import UserError
from cmt_aqr.runs.command import command


@command()
def main(config: DictConfig) -> None:
    """Evaluate what is not evaluated yet, print the tables and write them."""
    # Imported here: a mistake in the command is answered before PyTorch and Lightning are loaded.
    from omegaconf import OmegaConf

    from cmt_aqr.studies.fault_study import study

    if OmegaConf.is_missing(config, "folder"):
        raise UserError("folder is missing: python scripts/fault_study.py folder=outputs/study")
    study(config)


if __name__ == "__main__":
    main()
