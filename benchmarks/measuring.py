"""What benchmarks share: configurations, models and batches, and measuring time and memory."""

import gc
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig

from cmt_aqr.runs import records
from cmt_aqr.runs.configuration import build, build_data
from cmt_aqr.structures import Batch
from cmt_aqr.training.module import DetectorModule

CONF = Path(__file__).resolve().parents[1] / "conf"
RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
"""The published point range in metres, LiDAR frame."""


def composed(overrides: Sequence[str], script: str = "train") -> DictConfig:
    """The configuration of a command with overrides."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(script, list(overrides))


def detector(config: DictConfig) -> DetectorModule:
    """The module that a configuration trains, with fresh weights drawn with seed 0, in training mode."""
    denoising = build(config.training.denoising)
    torch.manual_seed(0)
    return DetectorModule(
        model=build(config.model.network),
        criterion=build(config.training.criterion, background_above=denoising.background_above),
        denoising=denoising,
        optimizer=build(config.optimizer),
        multipliers=build(config.lr_mult),
    ).train()


def first_batch(config: DictConfig, device: torch.device) -> Batch:
    """The first training batch of a configuration, on a device."""
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    return data.finish(next(iter(data.train_dataloader())).to(device))


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision as the trainer's ``16-mixed`` and ``bf16-mixed``."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


class Seconds(NamedTuple):
    """Processor time, which other work on the machine changes little, and wall time."""

    processor: float
    wall: float


def synchronise(device: torch.device) -> None:
    """Wait for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


CPU = torch.device("cpu")


def in_turns(
    ways: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device = CPU
) -> dict[str, Seconds]:
    """The minimum time of each way over ``repeats`` turns, after one to warm up; the device is synchronised."""
    times: dict[str, list[Seconds]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            synchronise(device)
            processor, wall = time.process_time(), time.perf_counter()
            way()
            synchronise(device)
            times[name].append(Seconds(time.process_time() - processor, time.perf_counter() - wall))
    return {name: Seconds(*map(min, zip(*turns[1:], strict=True))) for name, turns in times.items()}


def peak_memory(device: torch.device) -> float:
    """Peak memory in MB: allocated on the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return (records.peak_memory()["peak_memory_bytes"] or 0) / 1e6


class OwnProcess(NamedTuple):
    """The result of a function in its own process, its CPU seconds, and its memory in MB.

    Memory is the peak and the rest after the call, both beyond the memory before it.
    """

    result: Any
    seconds: float
    peak: float
    rest: float


def own_process(function: Callable[[], Any]) -> OwnProcess:
    """Measure a function in a fork of this process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
        start = time.process_time()
        result = function()
        seconds = time.process_time() - start
        gc.collect()
        sender.send(OwnProcess(result, seconds, _memory("VmHWM") - before, _memory("VmRSS") - before))

    process = context.Process(target=work)
    process.start()
    sender.close()
    answer: OwnProcess = receiver.recv()
    process.join()
    return answer


def _memory(field: str) -> float:
    """Memory of this process in MB, from a field of Linux' /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0]) / 1024
