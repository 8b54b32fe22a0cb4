"""On a GPU: a step equals that of a CPU, synchronisations per step, and whole commands in every precision."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmt_aqr.files import read_record
from cmt_aqr.ops.biased_attention import biased_attention
from cmt_aqr.training.module import DetectorModule
from tests.helpers.commands import finished, resuming, run_line, succeeded
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
    """The loss terms (term,) of a forward and backward pass, with denoising where there are targets."""
    terms = module.criterion(module.model(batch, None if targets is None else targets.queries), batch, targets)
    losses = torch.stack(list(terms.values()))
    losses.sum().backward()
    return losses.detach()


@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_that_of_a_cpu(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    batch = small_batch(3, 5)
    if form == "bias":
        batch = damaged(batch)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    losses, gradients = {}, {}
    for device in ("cpu", "cuda"):
        module = small_module(*FORMS[form], *STILL).to(device)
        losses[device] = step(module, batch.to(device)).cpu()  # without denoising: its noise depends on the device
        parameters = module.model.named_parameters()
        gradients[device] = {name: value.grad.cpu() for name, value in parameters if value.grad is not None}
    assert torch.allclose(losses["cpu"], losses["cuda"], rtol=1e-3, atol=1e-4)
    assert gradients["cpu"].keys() == gradients["cuda"].keys()
    errors = torch.tensor(
        [
            (gradients["cuda"][name] - value).norm() / value.norm()
            for name, value in gradients["cpu"].items()
            if value.norm() > 1e-7
        ]
    )
    print(f"{form}: median relative error of the gradients {errors.median():.1e}")
    assert errors.median() < 5e-3


@pytest.mark.parametrize("form", FORMS)
def test_a_step_synchronises_only_where_it_must(form: str) -> None:
    """Once to match, once for the voxels, twice per strided sparse convolution: its sites depend on the points."""
    module, batch = small_module(*FORMS[form], *STILL).to("cuda"), small_batch(3, 5).to("cuda")
    if form == "bias":
        batch = damaged(small_batch(3, 5)).to("cuda")
    head = module.model.head
    shape = len(head.reference_points), tuple(head.point_range)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)
    for warm in (True, False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("default" if warm else "warn")
            try:
                step(module, batch, module.denoising(batch, *shape))
                torch.nn.utils.clip_grad_norm_(module.parameters(), 35.0)
                optimizer.step()
                optimizer.zero_grad()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
    print(f"{form}: {len(places)} synchronisations: {', '.join(places)}")
    assert len(places) <= (1 if form == "camera" else 8), places


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 6])
def test_the_bias_equals_a_mask(dtype: torch.dtype, groups: int) -> None:
    random = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(2, 4, count, 32, generator=random, device="cuda", dtype=dtype, requires_grad=True)
        for count in (50, 330, 330)
    )
    beta = 4 * torch.randn(2, 50, groups, generator=random, device="cuda")
    members = (torch.arange(330, device="cuda")[:, None] // 50 == torch.arange(groups, device="cuda")).float()
    biased = biased_attention(query, key, value, beta.requires_grad_(), members)
    wide = [tensor.detach().double().requires_grad_() for tensor in (query, key, value, beta)]
    mask = (wide[3] @ members.mT.double())[:, None]
    exact = torch.nn.functional.scaled_dot_product_attention(*wide[:3], attn_mask=mask)
    weight = torch.randn(exact.shape, generator=random, device="cuda")
    (biased * weight).sum().backward()
    (exact * weight).sum().backward()
    limit = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    gradients = [(a.grad, b.grad) for a, b in zip((query, key, value, beta), wide, strict=True)]
    for ours, theirs in ((biased, exact), *gradients):
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
    """Train, resume for two more steps, evaluate, and render pictures."""
    run = f"gpu{ROWS.index(row)}"
    finished(run_folder, "train", *SHORT, *row, f"hydra.run.dir={run}")
    state = checkpoint_of(run_folder / run, "last")["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    last = run_folder / run / "checkpoints" / "last.ckpt"
    succeeded(run_line(run_folder, resuming(last, run_folder / f"{run}_resumed", "trainer.max_steps=6")))
    record = read_record(run_folder / f"{run}_resumed")
    assert (record["status"], record["steps"]) == ("complete", 6)
    assert record["peak_gpu_memory_bytes"] > 0
    finished(run_folder, "evaluate", f"ckpt_path={last}", row[0], f"hydra.run.dir={run}_eval")
    assert metrics_of(run_folder / f"{run}_eval")["frames"] == 3
    finished(run_folder, "visualize", f"ckpt_path={last}", f"out={run_folder / run}_pictures")


def test_all_tensors_of_a_batch_move() -> None:
    batch = damaged(small_batch(2)).to("cuda")
    values = [*vars(batch).values(), *vars(batch.damage).values()]
    assert all(value.device.type == "cuda" for value in values if isinstance(value, Tensor))
