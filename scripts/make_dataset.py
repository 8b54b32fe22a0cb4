"""Write a synthetic data set: ``python scripts/make_dataset.py out=data/synthetic scenes=10``."""

import sys
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from cmt_aqr.files import writing
from cmt_aqr.runs.command import command


@command()
def main(config: DictConfig) -> None:
    """Create the data set that the configuration describes."""
    # Imported here, so that mistakes in the command are reported first.
    from cmt_aqr.scenes import make_dataset

    settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    try:
        with writing("out", settings["out"]):
            make_dataset(**settings)
    except KeyboardInterrupt:
        print("interrupted, nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
