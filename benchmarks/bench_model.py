"""Time a published-size model on one frame, by part: a forward pass in eval mode, and a training step.

    python benchmarks/bench_model.py --root ../nuscenes --model cmt_r50
    python benchmarks/bench_model.py --aqr both --train-repeats 8         # what AQR adds
    python benchmarks/bench_model.py --device cuda --precision bf16 --repeats 20

The frame is the first of the training data under --root (nuScenes format), without earlier sweeps, or of the
embedded data where there is no such folder. Times are medians of wall time after one call to warm up, with fresh
weights, which do not change the time. Freed memory is kept, as in training. A training step is the forward pass
with denoising queries, the losses, the backward pass, clipping and AdamW; activations that checkpointing computes
again count as backward pass. Beside a part's time stands what autograd keeps of it for the backward pass. With
--aqr both, the rival of the model with AQR is the one without; they take turns in one process, which has the
memory of both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from measuring import CONF, DTYPES, autocast, composed, detector, first_batch, peak_memory, synchronise
from rich.table import Table
from torch import nn

from cmt_aqr.model.cmt import CMT
from cmt_aqr.runs.console import console
from cmt_aqr.runs.memory import keep_freed_memory
from cmt_aqr.structures import Batch
from cmt_aqr.training.module import DetectorModule

PARTS = ("lidar", "image", "aqr", "decoder")
REST = "head"
"""The rest of a forward pass: position encodings, shared convolution, outputs."""


def main() -> None:
    """Measure and print."""
    options = arguments()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    keyframe = ["data=nuscenes", f"data.root={options.root}", "data.version=v1.0-mini"]
    keyframe += ["data.train_split=mini_train", "data.val_split=mini_train"]
    line = [f"model={options.model}", "data.sweeps=0", "data.batch_size=1", "data.num_workers=0"]
    line += keyframe if options.root.is_dir() else []
    line += ["model.network.image.checkpointing=true"] if options.checkpointing else []
    modules = {}
    for aqr in ("none", "default") if options.aqr == "both" else (options.aqr,):
        config = composed([*line, f"aqr={aqr}"])
        modules[f"aqr={aqr}"] = detector(config).to(options.device)
    batch = first_batch(config, options.device)
    machine = f"{options.device}, {options.threads} threads, torch {torch.__version__}"
    print(f"{options.model}, {options.precision}, {machine}")
    print(f"frame {batch.tokens[0][:8]}: {batch.point_counts[0]:,} points, {batch.box_counts[0]} boxes")
    clocks = {name: Clock(module.model, options.device) for name, module in modules.items()}
    for title, make, repeats in (
        ("Forward pass", forward, options.repeats),
        ("Training step", training_step, options.train_repeats),
    ):
        steps = {name: make(module, clocks[name], batch) for name, module in modules.items()}
        with autocast(options.device, options.precision):
            measure(title, steps, clocks, repeats)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    keyframe = CONF.parents[1] / "shared" / "nuscenes-keyframe"
    parser.add_argument("--root", type=Path, default=keyframe, help="nuScenes data root")
    parser.add_argument("--model", default="cmt_r50", help="an option of conf/model")
    parser.add_argument("--aqr", default="none", choices=["none", "default", "both"])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=5, help="forward passes in eval mode")
    parser.add_argument("--train-repeats", type=int, default=3, help="training steps; 0: none")
    parser.add_argument("--checkpointing", action="store_true", help="of the image backbone's activations")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


class Clock:
    """Adds up the wall time in the parts of a model, and the memory that autograd keeps of them."""

    def __init__(self, model: CMT, device: torch.device) -> None:
        self.device = device
        self.spent: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self._since = 0.0
        self._inside = [""]
        self._weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        for name in PARTS:
            part = getattr(model, name)
            if isinstance(part, nn.Module):
                part.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
                part.register_forward_hook(lambda *_: self._leave())

    def _enter(self, name: str) -> None:
        self._switch()
        self._inside.append(name)

    def _leave(self) -> None:
        self._switch()
        self._inside.pop()

    def _switch(self) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        self.spent[self._inside[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block as a part, without the parts within it."""
        self._enter(name)
        yield
        self._leave()

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Add up, by part, the bytes that autograd saves for the backward pass, without weights."""
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


def forward(module: DetectorModule, clock: Clock, batch: Batch) -> Callable[[], None]:
    """A forward pass in eval mode."""

    @torch.no_grad()
    def step() -> None:
        module.eval()
        with clock.part(REST):
            module.model(batch)

    return step


def training_step(module: DetectorModule, clock: Clock, batch: Batch) -> Callable[[], None]:
    """Forward pass with denoising queries, losses, backward pass, clipping and AdamW."""
    head, optimizer = module.model.head, torch.optim.AdamW(module.parameters(), lr=1e-6)
    shape = len(head.reference_points), tuple(head.point_range)

    def step() -> None:
        module.train()
        targets = module.denoising(batch, *shape)
        with clock.keeping():
            with clock.part(REST):
                predictions = module.model(batch, None if targets is None else targets.queries)
            with clock.part("criterion"):
                losses = module.criterion(predictions, batch, targets)
        with clock.part("backward"):
            torch.stack(list(losses.values())).sum().backward()
        with clock.part("optimizer"):
            nn.utils.clip_grad_norm_(module.parameters(), 35.0)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # here, so that the other model's step has the memory

    return step


def measure(title: str, steps: dict[str, Callable[[], None]], clocks: dict[str, Clock], repeats: int) -> None:
    """Call the steps in turns, once to warm up and then ``repeats`` times; print medians."""
    if repeats < 1:
        return
    runs: dict[str, list[Counter[str]]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            clocks[name].spent = Counter()
            step()
            runs[name].append(Counter({part: spent for part, spent in clocks[name].spent.items() if part}))
    totals = {}
    for name, (_, *counted) in runs.items():
        totals[name] = [run.total() for run in counted]
        table = Table("part", "s", "GB kept", title=f"{title}, {name}")
        for part in counted[0]:
            kept = clocks[name].kept[part]
            seconds = statistics.median(run[part] for run in counted)
            table.add_row(part, f"{seconds:.3f}", f"{kept / 1e9:.2f}" if kept else "")
        median, low, high = statistics.median(totals[name]), min(totals[name]), max(totals[name])
        table.add_row(f"in all, median of {repeats}", f"{median:.3f} ({low:.3f} to {high:.3f})", "")
        console().print(table)
    print(f"peak memory {peak_memory(next(iter(clocks.values())).device) / 1e3:.2f} GB")
    if len(totals) == 2:
        ratios = [ours / rival for rival, ours in zip(*totals.values(), strict=True)]
        print(f"with AQR {statistics.median(ratios):.3f} of the time ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
