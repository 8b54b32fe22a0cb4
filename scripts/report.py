"""Write a page and a CSV table of all runs below a folder, the best run first."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.command import command


@command()
def main(config: DictConfig) -> None:
    """Read the runs, write the report and print the best."""
    # Imported here, so that mistakes in the command are reported before pandas and plotly load.
    from cmt_aqr.studies.report import make_report

    if OmegaConf.is_missing(config, "sweep_dir") or config.sweep_dir is None:
        raise UserError("sweep_dir is missing: python scripts/report.py sweep_dir=outputs/sweeps/DATE/TIME_NAME")
    for key in ("metric", "x", "y"):
        if not isinstance(config[key], str) and (key == "metric" or config[key] is not None):
            raise UserError(
                f"{key}={config[key]}: must be the name of a {'metric' if key == 'metric' else 'setting'}"
            )
    out = None if config.out is None else Path(config.out)
    make_report(Path(config.sweep_dir), out, config.metric, config.x, config.y)


if __name__ == "__main__":
    main()
