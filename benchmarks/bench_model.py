"""Time a published-size model on one frame: forward in eval mode, a training step, peak memory, and by part.

    python benchmarks/bench_model.py --root ../nuscenes --model cmt_r50 --aqr none
    python benchmarks/bench_model.py --aqr both --train-repeats 8         # what AQR adds
    python benchmarks/bench_model.py --device cuda --precision bf16 --repeats 20

The frame is the first of the data under --root (nuScenes format, with its own sweep only), or a random one where
there is none. Times are medians, in seconds, after one call that does not count; batch 1. Weights are fresh: they
do not change what is computed. Freed memory is kept, as in training and evaluation. A training step is the forward
pass with denoising queries, the losses, the backward pass, clipping and AdamW; what is computed again in the
backward pass counts there. Beside a part's time stands what it keeps in memory for the backward pass. With
--aqr both a model without AQR and one with it take turns in one process, so that the speed of the machine, which
changes with its other work, is the same for both; peak memory is then of the two together.
"""

from __future__ import annotations

import argparse
import math
import platform
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from measuring import DTYPES, autocast, composed
from omegaconf import DictConfig
from torch import nn

from cmt_aqr.data.collate import collate
from cmt_aqr.lab.scenes import rig
from cmt_aqr.model.cmt import CMT
from cmt_aqr.runs.memory import keep_freed_memory
from cmt_aqr.structures import Batch
from cmt_aqr.training.denoising import Denoising
from cmt_aqr.training.losses import Criterion

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("lidar", "image", "aqr", "decoder")
REST = "head"
"""What the four parts leave of a forward pass: position encodings, shared convolution, outputs."""


def main() -> None:
    """Measure and print."""
    options = arguments()
    keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    contenders = {}
    for aqr in ("none", "default") if options.aqr == "both" else (options.aqr,):
        config = configured(options, aqr)
        model: CMT = hydra.utils.instantiate(config.model.network).to(device).train()
        if options.checkpointing and model.image is not None:
            model.image.backbone.set_grad_checkpointing(True)  # type: ignore[operator, union-attr]
        contenders[f"aqr={aqr}"] = Contender(model, Clock(model, device))
    batch, origin = read_frame(config, options.root)
    batch = batch.to(device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.threads} threads"
    print(
        f"{options.model}, aqr={options.aqr}, {options.precision}, torch {torch.__version__}, {platform.machine()}"
    )
    print(f"{where}; {origin}: {batch.point_counts[0]:,} points, {batch.box_counts[0]} boxes, batch 1")

    with autocast(device, options.precision):
        steps = {name: one.evaluation(batch) for name, one in contenders.items()}
        measure(steps, contenders, options.repeats, "Forward in eval mode")
        if options.train_repeats:
            steps = {name: one.training(batch) for name, one in contenders.items()}
            measure(steps, contenders, options.train_repeats, "Training step")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT.parent / "shared" / "nuscenes-keyframe")
    parser.add_argument("--model", default="cmt_r50", help="an option of conf/model")
    parser.add_argument("--aqr", default="none", choices=["none", "default", "both"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=5, help="forward passes in eval mode")
    parser.add_argument("--train-repeats", type=int, default=3, help="training steps; 0: none")
    parser.add_argument("--checkpointing", action="store_true", help="compute the image backbone again")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    return options


def configured(options: argparse.Namespace, aqr: str) -> DictConfig:
    """The configuration of a training run of this model on this data."""
    data = ["version=v1.0-mini", "val_split=mini_train", "train_split=mini_train", "sweeps=0"]
    chosen = [f"model={options.model}", f"aqr={aqr}", "data=nuscenes", f"data.root={options.root}"]
    return composed([*chosen, *(f"data.{setting}" for setting in data)])


def read_frame(config: DictConfig, root: Path) -> tuple[Batch, str]:
    """The first frame with test-time processing, or a random one; and a word on its origin."""
    if not root.is_dir():
        return random_frame(config), "a random frame"
    data = hydra.utils.instantiate(config.data)
    data.setup("validate")
    frame = data.dataset("val")[0]
    low, high = (frame.boxes.new_tensor(config.model.grid.point_range[i : i + 3]) for i in (0, 3))
    kept = ((frame.boxes[:, :3] > low) & (frame.boxes[:, :3] < high)).all(dim=1) & (frame.box_points > 0)
    frame = frame.replace(boxes=frame.boxes[kept], labels=frame.labels[kept], box_points=frame.box_points[kept])
    return data.finish(collate([frame])), f"frame {frame.token[:8]} of {root.name}"


def random_frame(config: DictConfig, points: int = 30_000, boxes: int = 40) -> Batch:
    """Points that thin out with distance, noise for pictures, six cameras around the car."""
    angle, distance = 2 * math.pi * torch.rand(points), 1 + 50 * torch.rand(points) ** 2
    height = -1.8 + 3 * torch.rand(points) ** 3
    cloud = torch.stack((distance * angle.cos(), distance * angle.sin(), height), dim=1)
    rows, columns = config.model.image_size
    sizes = torch.tensor([4.6, 1.9, 1.7, 0.0, 0.0, 0.0]).expand(boxes, 6)
    return Batch(
        tokens=("random",),
        points=torch.cat((cloud, 255 * torch.rand(points, 1), torch.zeros(points, 1)), dim=1)
        if config.data.lidar
        else torch.zeros(0, 5),
        point_counts=(points if config.data.lidar else 0,),
        images=torch.randn(1, 6, 3, rows, columns) if config.data.cameras else None,
        lidar2img=rig((rows, columns)).float()[None],
        boxes=torch.cat((40 * torch.rand(boxes, 2) - 20, -torch.ones(boxes, 1), sizes), dim=1),
        labels=torch.randint(10, (boxes,)),
        box_counts=(boxes,),
        lidar2global=torch.eye(4, dtype=torch.float64)[None],
    )


class Clock:
    """Reads the time, when the device is done, and adds up what passes in the parts of a model."""

    def __init__(self, model: CMT, device: torch.device) -> None:
        self.device = device
        self.spent: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self._inside = [""]
        self._weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        for name in PARTS:
            part = getattr(model, name)
            if isinstance(part, nn.Module):
                part.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
                part.register_forward_hook(lambda *_, name=name: self._leave(name))

    def now(self) -> float:
        """Seconds, all work handed to the device being done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _enter(self, name: str) -> None:
        now = self.now()
        self.spent[self._inside[-1]] += now
        self._inside.append(name)
        self.spent[name] -= now

    def _leave(self, name: str) -> None:
        now = self.now()
        self._inside.pop()
        self.spent[name] += now
        self.spent[self._inside[-1]] -= now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time anything; what its parts account for goes to them."""
        self._enter(name)
        yield
        self._leave(name)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Add up, by part, the bytes that autograd keeps for the backward pass; weights do not count."""
        seen = set(self._weights)
        self.kept = Counter()

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                self.kept[self._inside[-1]] += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            yield


def measure(
    steps: dict[str, Callable[[], None]], contenders: dict[str, Contender], repeats: int, title: str
) -> None:
    """Call the steps in turns, once for nothing and then ``repeats`` times; print medians and peak memory."""
    device = next(iter(contenders.values())).clock.device
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for run in range(repeats + 1):
        if run == 1 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for name, step in steps.items():
            clock = contenders[name].clock
            clock.spent = Counter()
            begin, cpu = clock.now(), time.process_time()
            step()
            total = clock.now() - begin
            parts = {part: seconds for part, seconds in clock.spent.items() if part}
            runs[name].append({"total": total, "cpu": time.process_time() - cpu, **parts})
    for name in steps:
        runs[name] = runs[name][1:]
        totals = sorted(run["total"] for run in runs[name])
        spread = f"median of {repeats} ({totals[0]:.3f} to {totals[-1]:.3f})"
        print(f"\n{title}, {name}: {statistics.median(totals):.3f} s, {spread}")
        for part in runs[name][0]:
            if part not in ("total", "cpu"):
                kept = contenders[name].clock.kept[part]
                memory = f"  {kept / 1e9:.2f} GB kept" if kept else ""
                print(f"  {part:<10} {statistics.median(run[part] for run in runs[name]):7.3f} s{memory}")
        cpu = statistics.median(run["cpu"] for run in runs[name])
        print(f"  all CPU threads together {cpu:.3f} s of computing")
    print(f"  peak memory {peak_memory(device):.2f} GB{'' if device.type == 'cuda' else ' (process)'}")
    if len(steps) == 2:
        plain, other = runs.values()
        shares = sorted(b["total"] / a["total"] - 1 for a, b in zip(plain, other, strict=True))
        print(
            f"  AQR adds {statistics.median(shares):+.1%} (median of {repeats} turns; "
            f"{shares[0]:+.1%} to {shares[-1]:+.1%})"
        )


def peak_memory(device: torch.device) -> float:
    """Gigabytes: allocated on a GPU since the last reset, or of the process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@dataclass
class Contender:
    """A model to time."""

    model: CMT
    clock: Clock

    def evaluation(self, batch: Batch) -> Callable[[], None]:
        """A forward pass in eval mode."""
        self.model.eval()

        @torch.no_grad()
        def step() -> None:
            with self.clock.part(REST):
                self.model(batch)

        return step

    def training(self, batch: Batch) -> Callable[[], None]:
        """Forward pass with denoising queries, losses, backward pass, clipping and AdamW."""
        model, clock = self.model.train(), self.clock
        criterion = Criterion()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        queries, point_range = len(model.head.reference_points), tuple(model.head.point_range)

        def step() -> None:
            targets = Denoising()(batch, queries, point_range)
            with clock.keeping():
                with clock.part(REST):
                    predictions = model(batch, None if targets is None else targets.queries)
                with clock.part("criterion"):
                    losses = criterion(predictions, batch, targets)
            with clock.part("backward"):
                torch.stack(list(losses.values())).sum().backward()
            with clock.part("optimizer"):
                nn.utils.clip_grad_norm_(model.parameters(), 35.0)
                optimizer.step()
            # Here and not before the next step, so that no other model's gradients stay in the memory.
            optimizer.zero_grad(set_to_none=True)

        return step


if __name__ == "__main__":
    main()
