"""Time the official metrics and the results file against the nuScenes devkit's evaluation and `json.dumps`.

    python benchmarks/bench_metric.py [--frames 600] [--boxes 300] [--objects 30]

nuScenes' val has 6,019 frames; 600 random frames with 300 detections each take a minute, most of it the rival's.
The devkit reads the results file and builds its boxes, with the tables in memory; ours reads its cached ground
truth, with the detections in memory as after an evaluation. The metrics must agree to 1e-9 and the files to the
bit, or nothing is compared. Each runs in its own process; printed are CPU seconds, and memory beyond that before
the call.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import OwnProcess, own_process

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.ground_truth import ARRAYS, GroundTruth
from cmt_aqr.data.rows import ATTRIBUTE, ATTRIBUTES, LABEL, ROTATION, SCORE, SIZE, TRANSLATION, VELOCITY
from cmt_aqr.data.saved_arrays import load_arrays, save_arrays
from cmt_aqr.evaluation.metric import NuScenesMetric
from cmt_aqr.evaluation.official import evaluate_boxes
from cmt_aqr.evaluation.submission import GlobalDetections, write_submission
from tests.helpers.made_evaluation import Tables, devkit_evaluation, made_found, made_truth, named


def main() -> None:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--boxes", type=int, default=300, help="detections per frame")
    parser.add_argument("--objects", type=int, default=30, help="annotations per frame; nuScenes' val has 31")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    truth = made_truth(random, options.frames, options.objects)
    found = made_found(random, truth, options.boxes)
    print(f"{options.frames} frames, {options.boxes} detections and {options.objects} objects in each")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare_files(truth, found, folder)
        compare_metrics(truth, found, folder)


def compare_files(truth: GroundTruth, found: GlobalDetections, folder: Path) -> None:
    """Compare writing the results file with dictionaries and `json.dumps`."""
    ours, theirs = folder / "results.json", folder / "dumped.json"
    our_way = own_process(lambda: write_submission(ours, truth.tokens, found, True, True))
    their_way = own_process(lambda: dump(theirs, truth, found))
    read, expected = (json.loads(path.read_text(encoding="utf-8"))["results"] for path in (ours, theirs))
    report("results file", our_way, "json.dumps", their_way, read == expected)
    print(f"{'':14} files of {ours.stat().st_size / 1e6:.0f} MB, {theirs.stat().st_size / 1e6:.0f} MB")
    theirs.unlink()


def compare_metrics(truth: GroundTruth, found: GlobalDetections, folder: Path) -> None:
    """Compare the 67 numbers with the devkit's `DetectionEval`."""
    cache = folder / "ground-truth.npy"
    save_arrays(cache, "", truth.arrays())
    parts = torch.from_numpy(found.rows).split(found.counts.tolist())
    numbers = torch.from_numpy(np.column_stack((found.frames, found.counts))).split(1)

    def ours() -> dict[str, float]:
        arrays = load_arrays(cache, "", ARRAYS)
        assert arrays is not None
        saved = GroundTruth.of(truth.version, truth.split, arrays)
        metric = NuScenesMetric(saved)
        metric.frames, metric.rows = list(numbers), list(parts)
        return evaluate_boxes(saved, metric.detections())

    tables = Tables(truth)

    def theirs() -> tuple[dict[str, float], float]:
        evaluation = devkit_evaluation(tables, folder / "results.json", folder / "devkit")
        loaded = time.process_time()
        metrics = named(evaluation.evaluate()[0].serialize())
        return metrics, time.process_time() - loaded

    our_way, their_way = own_process(ours), own_process(theirs)
    metrics, (expected, evaluating) = our_way.result, their_way.result
    values = np.array([(metrics[name], value) for name, value in expected.items()])
    error = np.nanmax(np.abs(values[:, 0] - values[:, 1]))
    same = len(values) == 67 and np.allclose(*values.T, rtol=0, atol=1e-9, equal_nan=True)
    report("metric", our_way, "devkit", their_way, same)
    ratio = evaluating / our_way.seconds
    print(f"{'':14} the devkit's evaluate without its load {evaluating:.2f} s: {ratio:.1f} times")
    print(f"{'':14} mAP {metrics['mAP']:.4f}, NDS {metrics['NDS']:.4f}; largest difference {error:.1e}")


def report(name: str, ours: OwnProcess, rival_name: str, rival: OwnProcess, same: bool) -> None:
    """Print one comparison; exit if the results differ."""
    if not same:
        sys.exit(f"{name}: the results differ")
    print(
        f"{name:14} {ours.seconds:.2f} CPU s, {ours.peak:.0f} MB; {rival_name} {rival.seconds:.2f} CPU s, "
        f"{rival.peak:.0f} MB: {rival.seconds / ours.seconds:.1f} times as fast"
    )


def dump(path: Path, truth: GroundTruth, found: GlobalDetections) -> None:
    """Write a results file in the obvious way."""
    frames = np.split(found.rows, np.cumsum(found.counts)[:-1])
    results = {
        truth.tokens[frame]: [
            {
                "sample_token": truth.tokens[frame],
                "translation": row[TRANSLATION],
                "size": row[SIZE],
                "rotation": row[ROTATION],
                "velocity": row[VELOCITY],
                "detection_name": CLASSES[int(row[LABEL])],
                "detection_score": row[SCORE],
                "attribute_name": ATTRIBUTES[int(row[ATTRIBUTE])],
            }
            for row in rows.tolist()
        ]
        for frame, rows in zip(found.frames, frames, strict=True)
    }
    path.write_text(json.dumps({"meta": {}, "results": results}), encoding="utf-8")


if __name__ == "__main__":
    main()
