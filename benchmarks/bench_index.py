"""Time the index of nuScenes, built from the tables and read from the cache, against loading with the devkit.

    python benchmarks/bench_index.py ROOT [--version v1.0-trainval] [--splits train val]

Only the tables of the data root are read (by the devkit also the maps). The rival is ``NuScenes(version,
dataroot)``, from which an index would still have to be built. Each runs in its own process; printed are CPU
seconds, peak memory and the memory afterwards, both beyond that after the imports. Both release their tables at
the end.
"""

import argparse
import tempfile
from pathlib import Path

from measuring import own_process
from nuscenes import NuScenes

from cmt_aqr.data.ground_truth import load_ground_truth
from cmt_aqr.data.index import load_index
from cmt_aqr.data.tables import close_tables


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument(
        "--splits", nargs="+", default=["train", "val"], help="of the last one also the ground truth"
    )
    options = parser.parse_args()
    root, version = options.root.resolve(), options.version
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)

        def ours() -> None:
            for split in options.splits:
                load_index(root, version, split, cache)
            load_ground_truth(root, version, options.splits[-1], cache)
            close_tables()

        def theirs() -> None:
            NuScenes(version, str(root), verbose=False)

        rival = 0.0
        for title, way in (("devkit", theirs), ("index, from the tables", ours), ("index, from the cache", ours)):
            measured = own_process(way)
            ratio = f"{rival / measured.seconds:.1f} times as fast" if rival else "the rival"
            rival = rival or measured.seconds
            memory = f"at most {measured.peak:6.0f} MB, {measured.rest:6.0f} MB afterwards"
            print(f"{title:22} {measured.seconds:8.3f} CPU s, {memory}: {ratio}")


if __name__ == "__main__":
    main()
