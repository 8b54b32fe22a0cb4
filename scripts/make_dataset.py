"""Write a synthetic data set: ``python scripts/make_dataset.py out=data/synthetic scenes=10``."""

import sys
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.data.synthetic import make_dataset


@hydra.main(version_base="1.3", config_path="../conf", config_name="make_dataset")
def main(config: DictConfig) -> None:
    """Make the data set that the configuration describes."""
    settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    try:
        make_dataset(**settings)
    except (ValueError, FileExistsError) as error:
        sys.exit(f"make_dataset: {error}")


if __name__ == "__main__":
    main()
