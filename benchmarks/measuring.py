"""How benchmarks compose configurations and measure."""

import gc
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[1] / "conf"


def composed(overrides: Sequence[str], script: str = "train") -> DictConfig:
    """The configuration of a command."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(script, list(overrides))


class Seconds(NamedTuple):
    """Processor time, which other work on the machine changes little, and the time that passed."""

    processor: float
    passed: float


def in_turns(
    ways: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device | None = None
) -> dict[str, Seconds]:
    """The least seconds of each way in ``repeats`` turns, after one to warm up; a GPU's work is waited for."""
    wait = torch.cuda.synchronize if device is not None and device.type == "cuda" else lambda: None
    found: dict[str, list[Seconds]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            wait()
            processor, clock = time.process_time(), time.perf_counter()
            way()
            wait()
            found[name].append(Seconds(time.process_time() - processor, time.perf_counter() - clock))
    return {name: Seconds(*map(min, zip(*taken[1:], strict=True))) for name, taken in found.items()}


class OwnProcess(NamedTuple):
    """What a function returned in a process of its own, its CPU seconds, and its memory in MB.

    Memory is the most that it took and what it still holds, both beyond what there was before.
    """

    result: Any
    seconds: float
    peak: float
    left: float


def own_process(function: Callable[[], Any]) -> OwnProcess:
    """Measure a function in a process that is forked from this one."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from now on
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
    """Memory of this process in MB, by a field of Linux' /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0]) / 1024
