"""What either form of AQR adds to a training step of plain CMT, and the attention's bias against an explicit mask.

The claims: aqr=attention_bias costs at most a tenth of a step, and its attention less than a mask that learns. The
rivals are plain CMT (a step) and ``scaled_dot_product_attention`` with the bias as a (query, token) mask (one
attention, both ways). In turns, the least of several; on a CPU ratios are of processor time, which other work on
the machine changes less than the time that passes.

    python benchmarks/bench_attention_bias.py                        tiny, one frame per step
    python benchmarks/bench_attention_bias.py model=cmt_r50          the published size, minutes on a CPU
    python benchmarks/bench_attention_bias.py --device cuda --precision bf16 model=cmt_r50

On a GPU what counts is the time that passes until its work is done.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import hydra
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from cmt_aqr.ops.biased_attention import biased_attention
from cmt_aqr.runs.configuration import build, build_data
from cmt_aqr.runs.console import console
from cmt_aqr.runs.memory import keep_freed_memory
from cmt_aqr.training.module import DetectorModule

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CONF = Path(__file__).resolve().parents[1] / "conf"


def step(overrides: list[str], device: torch.device, precision: str) -> Callable[[], None]:
    """A training step of a configuration on one batch of the embedded data."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", [*overrides, "data.num_workers=0"])
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    batch = data.finish(next(iter(data.train_dataloader())).to(device))
    denoising = build(config.training.denoising)
    torch.manual_seed(0)
    module = (
        DetectorModule(
            model=build(config.model.network),
            criterion=build(config.training.criterion, background_above=denoising.background_above),
            denoising=denoising,
            optimizer=build(config.optimizer),
            multipliers=build(config.lr_mult),
        )
        .train()
        .to(device)
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32"):
            targets = denoising(
                batch, len(module.model.head.reference_points), tuple(module.model.head.point_range)
            )
            losses = module.criterion(module.model(batch, targets.queries), batch, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return run


def attentions(
    queries: int, tokens: int, device: torch.device, precision: str, heads: int = 8, channels: int = 32
) -> dict[str, Callable[[], None]]:
    """Attention without a bias, with one of 0, one that is not 0, and a mask; forward and backward."""
    q, k, v = (
        torch.randn(1, heads, count, channels, device=device, dtype=DTYPES[precision], requires_grad=True)
        for count in (queries, tokens, tokens)
    )
    zero = torch.zeros(1, queries, 1, device=device, requires_grad=True)
    beta = torch.randn(1, queries, 1, device=device, requires_grad=True)
    groups = (torch.arange(tokens, device=device) < tokens // 2).float()[:, None]

    def run(attend: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: attend().sum().backward()

    return {
        "plain attention": run(lambda: functional.scaled_dot_product_attention(q, k, v)),
        "beta = 0": run(lambda: biased_attention(q, k, v, zero, groups)),
        "beta": run(lambda: biased_attention(q, k, v, beta, groups)),
        "a mask": run(
            lambda: functional.scaled_dot_product_attention(
                q, k, v, attn_mask=(beta @ groups.mT)[:, None].to(q.dtype)
            )
        ),
    }


def seconds(
    runs: dict[str, Callable[[], None]], repeats: int, device: torch.device
) -> dict[str, tuple[float, float]]:
    """The least processor time and the least time that passed of each, in turns."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    found = {name: (float("inf"), float("inf")) for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            wait()
            processor, clock = time.process_time(), time.perf_counter()
            run()
            wait()
            taken = (time.process_time() - processor, time.perf_counter() - clock)
            if turn:  # the first one warms up
                found[name] = (min(found[name][0], taken[0]), min(found[name][1], taken[1]))
    return found


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="of each step (7)")
    parser.add_argument("--queries", type=int, default=900, help="of the single attention (900)")
    parser.add_argument("--tokens", type=int, default=22_384, help="of the single attention (22384)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("overrides", nargs="*", help="of train.py")
    given = parser.parse_args()
    keep_freed_memory()
    signal = ("training.criterion.signal_weight=1", "fault=mome/fov60")
    arms = {
        "plain CMT": ["aqr=none"],
        "aqr=attention_bias": ["aqr=attention_bias"],
        "with the signal": ["aqr=attention_bias", *signal],
        "aqr=default": ["aqr=default"],
    }
    on = given.device, given.precision
    steps = {name: step([*given.overrides, *own], *on) for name, own in arms.items()}
    single = attentions(given.queries, given.tokens, *on)
    table = Table("", "processor ms", "ms that passed", "ratio")
    counts = int(given.device.type == "cuda")
    for runs, repeats in ((steps, given.repeats), (single, max(2, given.repeats // 2))):
        found = seconds(runs, repeats, given.device)
        rival = next(iter(found.values()))[counts]
        for name, times in found.items():
            table.add_row(name, *(f"{1e3 * taken:.1f}" for taken in times), f"{times[counts] / rival:.2f}")
        table.add_section()
    console().print(table)


if __name__ == "__main__":
    main()
