"""On a GPU: what the CPU computes, one wait for the device per step, and whole commands in every precision."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmt_aqr.files import read_record
from cmt_aqr.ops.biased_attention import biased_attention
from cmt_aqr.training.module import DetectorModule
from tests.helpers.commands import finished, resuming, run_line
from tests.helpers.ran import checkpoint_of, metrics_of
from tests.helpers.small_detector import damaged, small_batch, small_module

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

STILL = ("model.dropout=0", "model.attention_dropout=0")
NO_DROPOUT = ("aqr.generator.dropout=0",)
FORMS = {
    "gaussian": NO_DROPOUT,
    "kernel_mean": ("renderer.render_method=kernel_mean", *NO_DROPOUT),
    "plain": ("aqr=none",),
    "bias": ("aqr=attention_bias", "training.criterion.signal_weight=1", *NO_DROPOUT),
    "views": ("aqr=attention_bias", "aqr.groups=views", "aqr.health=true", *NO_DROPOUT),
    "lidar": ("aqr=none", "model.network.image=null", "model.network.head.cameras=false"),
    "camera": ("aqr=none", "model.network.lidar=null", "model.network.head.bev_channels=null"),
}


def step(module: DetectorModule, batch: Any, targets: Any = None) -> Tensor:
    """Forward and backward pass, nothing read by the host: loss terms; with denoising where there are targets."""
    found = module.criterion(module.model(batch, None if targets is None else targets.queries), batch, targets)
    losses = torch.stack(list(found.values()))
    losses.sum().backward()
    return losses.detach()


@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_that_of_a_cpu(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    batch = small_batch(3, 5)
    if form == "bias":
        batch = damaged(batch)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = []
    for device in ("cpu", "cuda"):
        module = small_module(*FORMS[form], *STILL).to(device)
        losses = step(module, batch.to(device)).cpu()  # denoising's noise would be another on every device
        parameters = module.model.named_parameters()
        found.append((losses, {name: value.grad.cpu() for name, value in parameters if value.grad is not None}))
    (losses, gradients), (others, of_gpu) = found
    assert torch.allclose(losses, others, rtol=1e-3, atol=1e-4)
    assert gradients.keys() == of_gpu.keys()
    reached = [name for name, value in gradients.items() if value.norm() > 1e-7]
    off = torch.tensor([((of_gpu[name] - gradients[name]).norm() / gradients[name].norm()) for name in reached])
    print(f"{form}: losses {(losses - others).abs().max():.1e}, gradients {off.median():.1e} off in the median")
    assert off.median() < 5e-3


@pytest.mark.parametrize("form", FORMS)
def test_a_step_waits_for_the_device_where_it_must(form: str) -> None:
    """Once to match, once for the voxels, twice for each strided convolution, whose sites only the points know."""
    module, batch = small_module(*FORMS[form], *STILL).to("cuda"), small_batch(3, 5).to("cuda")
    if form == "bias":
        batch = damaged(small_batch(3, 5)).to("cuda")
    head = module.model.head
    places = len(head.reference_points), tuple(head.point_range)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)
    for warm in (True, False):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("default" if warm else "warn")
            try:
                step(module, batch, module.denoising(batch, *places))
                torch.nn.utils.clip_grad_norm_(module.parameters(), 35.0)
                optimizer.step()
                optimizer.zero_grad()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    waits = [f"{Path(one.filename).name}:{one.lineno}" for one in seen if "synchroniz" in str(one.message)]
    print(f"{form}: {len(waits)} waits: {', '.join(waits)}")
    in_lidar = 0 if form == "camera" else 7
    assert len(waits) <= 1 + in_lidar, waits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 6])
def test_the_bias_is_that_of_a_mask(dtype: torch.dtype, groups: int) -> None:
    random = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(2, 4, count, 32, generator=random, device="cuda", dtype=dtype, requires_grad=True)
        for count in (50, 330, 330)
    )
    beta = 4 * torch.randn(2, 50, groups, generator=random, device="cuda")
    members = (torch.arange(330, device="cuda")[:, None] // 50 == torch.arange(groups, device="cuda")).float()
    got = biased_attention(query, key, value, beta.requires_grad_(), members)
    wide = [tensor.detach().double().requires_grad_() for tensor in (query, key, value, beta)]
    mask = (wide[3] @ members.mT.double())[:, None]
    exact = torch.nn.functional.scaled_dot_product_attention(*wide[:3], attn_mask=mask)
    weight = torch.randn(exact.shape, generator=random, device="cuda")
    (got * weight).sum().backward()
    (exact * weight).sum().backward()
    limit = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for ours, theirs in (
        (got, exact),
        *((a.grad, b.grad) for a, b in zip((query, key, value, beta), wide, strict=True)),
    ):
        assert (ours.double() - theirs).norm() / theirs.norm() < limit


SHORT = ("trainer.max_steps=4", "trainer.log_every_n_steps=1", "data.num_workers=2")
BIAS = ("aqr=attention_bias", "training.criterion.signal_weight=1", "fault=partial/any")
ROWS = [
    ("trainer=gpu",),
    ("trainer=gpu", "trainer.precision=16-mixed", *BIAS),
    ("trainer=gpu", "trainer.precision=32-true", "model=tiny_lidar"),
    ("trainer=gpu", "trainer.precision=16-mixed", "model=tiny_camera"),
    ("trainer=gpu", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=8", "clamp_schedule=progressive"),
    ("trainer=ddp", "trainer.devices=1", "trainer.precision=bf16-mixed"),
]


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_commands(run_folder: Path, row: tuple[str, ...]) -> None:
    """Trains, resumes for two steps more, evaluates and draws."""
    run = f"gpu{ROWS.index(row)}"
    finished(run_folder, "train", *SHORT, *row, f"hydra.run.dir={run}")
    state = checkpoint_of(run_folder / run, "last")["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    last = run_folder / run / "checkpoints" / "last.ckpt"
    done = run_line(run_folder, resuming(last, run_folder / f"{run}_on", "trainer.max_steps=6"))
    assert done.returncode == 0, done.stderr
    record = read_record(run_folder / f"{run}_on")
    assert (record["status"], record["steps"]) == ("complete", 6)
    assert record["peak_gpu_memory_bytes"] > 0
    finished(run_folder, "evaluate", f"ckpt_path={last}", row[0], f"hydra.run.dir={run}_eval")
    on_gpu = metrics_of(run_folder / f"{run}_eval")
    assert on_gpu["frames"] == 3
    finished(run_folder, "visualize", f"ckpt_path={last}", f"out={run_folder / run}_pictures")


def test_a_batch_moves_whole() -> None:
    batch = damaged(small_batch(2)).to("cuda")
    tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    assert all(value.device.type == "cuda" for value in tensors)
    assert batch.damage is not None
    assert all(
        getattr(batch.damage, field.name).device.type == "cuda" for field in dataclasses.fields(batch.damage)
    )
