"""Time the index of nuScenes, made from the tables and taken from the cache, against the devkit's load.

    python benchmarks/bench_index.py ROOT [--version v1.0-trainval] [--splits train val]

ROOT is a data root; of it only the tables are read (and the maps, by the devkit). The rival is
``NuScenes(version, dataroot)``, which is what the index would otherwise be made from; it is only the first half of
that way. Each runs in a process of its own: CPU seconds, the most memory it took and what it still holds
afterwards, both beyond what there was after the imports. Objects of the devkit are then let go of, as the index
lets go of its tables.
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
    """Run each way once and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="the last one's ground truth, too")
    given = parser.parse_args()
    root = given.root.resolve()
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)

        def ours() -> None:
            for split in given.splits:
                load_index(root, given.version, split, cache)
            load_ground_truth(root, given.version, given.splits[-1], cache)
            close_tables()

        def theirs() -> None:
            NuScenes(given.version, str(root), verbose=False)

        rival = 0.0
        for title, way in (("devkit's load", theirs), ("index, cold", ours), ("index, from the cache", ours)):
            found = own_process(way)
            ratio = f"{rival / found.seconds:.1f} times as fast" if rival else "the rival"
            rival = rival or found.seconds
            memory = f"at most {found.peak:6.0f} MB, {found.left:6.0f} MB afterwards"
            print(f"{title:22} {found.seconds:8.3f} CPU s, {memory}: {ratio}")


if __name__ == "__main__":
    main()
