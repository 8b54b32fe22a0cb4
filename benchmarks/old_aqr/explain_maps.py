"""Print why the maps of the old AQR exploded: each finding's numbers, old and ours.

python benchmarks/old_aqr/explain_maps.py finding=pile_up
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from cmt_aqr.errors import UserError
from cmt_aqr.runs.command import command

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


@command()
def main(config: DictConfig) -> None:
    """Measure the findings on one frame and print a table for each."""
    # Imported here, so that a mistake in the command is reported before PyTorch is imported.
    from benchmarks.old_aqr.findings import FINDINGS, MapScene, finding_table
    from cmt_aqr.data.selection import frame_numbers
    from cmt_aqr.runs.configuration import build, check_complete
    from cmt_aqr.runs.console import console

    if config.finding != "all" and config.finding not in FINDINGS:
        raise UserError(f"finding={config.finding}: must be one of {', '.join(FINDINGS)}, or all")
    check_complete(config)
    data = build(config.data)
    data.prepare_data()
    number = frame_numbers(data, [config.frame])[0]
    data.setup("validate")
    scene = MapScene.of_frame(data.dataset("val")[number], build(config.model.grid))
    screen = console()
    screen.print(f"Frame {number} of {config.data.val_split} in {data.root}", highlight=False)
    for name in FINDINGS if config.finding == "all" else [config.finding]:
        screen.print(finding_table(FINDINGS[name], FINDINGS[name].measure(scene)))


if __name__ == "__main__":
    main()
