"""Compare runs on clean frames and under sensor faults: ``python scripts/fault_study.py folder=outputs/study``."""

from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.command import command


@command()
def main(config: DictConfig) -> None:
    """Evaluate the remaining conditions, print the tables and write them."""
    # Imported here, so that mistakes in the command are reported before PyTorch and Lightning load.
    from cmt_aqr.studies.fault_study import study

    if OmegaConf.is_missing(config, "folder"):
        raise UserError("folder is missing: python scripts/fault_study.py folder=outputs/study")
    study(config)


if __name__ == "__main__":
    main()
