"""Evaluate checkpoints under sensor failures: ``python scripts/robustness.py ckpt_path=[a,b] suite=mome``."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cmt_aqr.runs.command import command


@command(several=["ckpt_path"])
def main(config: DictConfig) -> None:
    """Evaluate what is not evaluated yet, print the tables and write the page."""
    # Imported here: a mistake in the command is answered before PyTorch and Lightning are loaded.
    from cmt_aqr.studies.robustness import robustness

    robustness(config, list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    main()
