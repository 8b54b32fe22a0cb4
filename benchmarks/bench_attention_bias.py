"""Time both forms of AQR against plain CMT in a training step, and the attention's bias against a mask.

The claims: aqr=attention_bias adds at most a tenth to a step, and its attention costs less than one with a learned
mask. The rivals are a step of plain CMT, and ``scaled_dot_product_attention`` with the bias as a (query, token)
mask, forward and backward. All take turns; each time is the minimum of several. Ratios are of processor time,
which other work on the machine changes little, and on a GPU of wall time.

    python benchmarks/bench_attention_bias.py                        tiny, one frame per step
    python benchmarks/bench_attention_bias.py model=cmt_r50          the published size: minutes on a CPU
    python benchmarks/bench_attention_bias.py --device cuda --precision bf16 model=cmt_r50
"""

import argparse
from collections.abc import Callable

import torch
from measuring import DTYPES, autocast, composed, detector, first_batch, in_turns
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from cmt_aqr.ops.biased_attention import biased_attention
from cmt_aqr.runs.console import console
from cmt_aqr.runs.memory import keep_freed_memory


def step(overrides: list[str], device: torch.device, precision: str) -> Callable[[], None]:
    """A training step of a configuration on its first batch."""
    config = composed([*overrides, "data.num_workers=0"])
    batch, module = first_batch(config, device), detector(config).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)
    head = module.model.head
    shape = len(head.reference_points), tuple(head.point_range)

    def run() -> None:
        optimizer.zero_grad()
        with autocast(device, precision):
            targets = module.denoising(batch, *shape)
            losses = module.criterion(module.model(batch, targets.queries), batch, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return run


def attentions(
    queries: int, tokens: int, device: torch.device, precision: str, heads: int = 8, channels: int = 32
) -> dict[str, Callable[[], None]]:
    """Attention without a bias, with a bias of 0, a random bias, and a mask: forward and backward passes."""
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


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="repeats of each step (7)")
    parser.add_argument("--queries", type=int, default=900, help="queries of the single attention (900)")
    parser.add_argument("--tokens", type=int, default=22_384, help="tokens of the single attention (22384)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("overrides", nargs="*", help="overrides of train.py")
    options = parser.parse_args()
    keep_freed_memory()
    signal = ("training.criterion.signal_weight=1", "fault=mome/fov60")
    arms = {
        "plain CMT": ["aqr=none"],
        "aqr=attention_bias": ["aqr=attention_bias"],
        "with the signal": ["aqr=attention_bias", *signal],
        "aqr=default": ["aqr=default"],
    }
    device = options.device, options.precision
    steps = {name: step([*options.overrides, *overrides], *device) for name, overrides in arms.items()}
    compared = "wall" if options.device.type == "cuda" else "processor"
    table = Table("", "processor ms", "wall ms", "ratio")
    for ways, repeats in (
        (steps, options.repeats),
        (attentions(options.queries, options.tokens, *device), options.repeats // 2),
    ):
        times = in_turns(ways, max(2, repeats), options.device)
        rival = getattr(next(iter(times.values())), compared)
        for name, seconds in times.items():
            ratio = getattr(seconds, compared) / rival
            table.add_row(name, f"{1e3 * seconds.processor:.1f}", f"{1e3 * seconds.wall:.1f}", f"{ratio:.2f}")
        table.add_section()
    console().print(table)


if __name__ == "__main__":
    main()
