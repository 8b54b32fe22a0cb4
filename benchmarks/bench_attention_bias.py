"""What aqr=attention_bias adds to a training step of plain CMT, and extra channels against an explicit mask.

The claims: at most a tenth of a step; less than a mask that learns. The rivals are plain CMT (a step) and
``scaled_dot_product_attention`` with the bias as a (query, token) mask (one attention, both ways). In turns,
the least of several.

    python benchmarks/bench_attention_bias.py                        tiny, one frame per step
    python benchmarks/bench_attention_bias.py model=cmt_r50          the published size, minutes on a CPU
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
from cmt_aqr.training.module import DetectorModule

CONF = Path(__file__).resolve().parents[1] / "conf"


def step(overrides: list[str]) -> Callable[[], None]:
    """A training step of a configuration on one batch of the embedded data."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", [*overrides, "data.num_workers=0"])
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    batch = data.finish(next(iter(data.train_dataloader())))
    denoising = build(config.training.denoising)
    torch.manual_seed(0)
    module = DetectorModule(
        model=build(config.model.network),
        criterion=build(config.training.criterion, background_above=denoising.background_above),
        denoising=denoising,
        optimizer=build(config.optimizer),
        multipliers=build(config.lr_mult),
    ).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        targets = denoising(batch, len(module.model.head.reference_points), tuple(module.model.head.point_range))
        losses = module.criterion(module.model(batch, targets.queries), batch, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return run


def attentions(queries: int, tokens: int, heads: int = 8, channels: int = 32) -> dict[str, Callable[[], None]]:
    """Attention without a bias, with one in extra channels, and with one as a mask; forward and backward."""
    q, k, v = (torch.randn(1, heads, count, channels, requires_grad=True) for count in (queries, tokens, tokens))
    beta = torch.zeros(1, queries, 1, requires_grad=True)
    groups = (torch.arange(tokens) < tokens // 2).float()[:, None]

    def run(attend: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: attend().sum().backward()

    return {
        "plain": run(lambda: functional.scaled_dot_product_attention(q, k, v)),
        "extra channels": run(lambda: biased_attention(q, k, v, beta, groups)),
        "a mask": run(
            lambda: functional.scaled_dot_product_attention(q, k, v, attn_mask=(beta @ groups.mT)[:, None])
        ),
    }


def seconds(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The least time of each, in turns."""
    found = dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn:  # the first one warms up
                found[name] = min(found[name], time.perf_counter() - begin)
    return found


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="of each (7)")
    parser.add_argument("--queries", type=int, default=900, help="of the single attention (900)")
    parser.add_argument("--tokens", type=int, default=22_384, help="of the single attention (22384)")
    parser.add_argument("overrides", nargs="*", help="of train.py")
    given = parser.parse_args()
    steps = seconds(
        {
            "plain CMT": step([*given.overrides, "aqr=none"]),
            "aqr=attention_bias": step([*given.overrides, "aqr=attention_bias"]),
            "with the signal": step(
                [*given.overrides, "aqr=attention_bias", "training.criterion.signal_weight=1", "fault=mome/fov60"]
            ),
        },
        given.repeats,
    )
    single = seconds(attentions(given.queries, given.tokens), max(2, given.repeats // 2))
    table = Table("", "ms", "ratio")
    for runs in (steps, single):
        rival = next(iter(runs.values()))
        for name, value in runs.items():
            table.add_row(name, f"{1e3 * value:.1f}", f"{value / rival:.2f}")
        table.add_section()
    console().print(table)


if __name__ == "__main__":
    main()
