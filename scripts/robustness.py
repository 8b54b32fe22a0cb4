"""Evaluate checkpoints under sensor failures: ``python scripts/robustness.py ckpt_path=[a,b] suite=mome``."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.runs.command import command


@command(path_lists=["ckpt_path"])
def main(config: DictConfig) -> None:
    """Evaluate the remaining conditions, print the tables and write the page."""
    # Imported here, so that mistakes in the command are reported before PyTorch and Lightning load.
    from cmt_aqr.studies.robustness import robustness

    robustness(config, list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    main()
