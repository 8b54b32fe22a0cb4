"""Submits and awaits the Slurm jobs of a sweep."""

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from cmt_aqr.errors import UserError
from cmt_aqr.runs.sweep import forget

log = logging.getLogger(__name__)

Result = TypeVar("Result")

POLL_SECONDS = 5.0
GONE_SECONDS = 20.0
"""How long a job must have ended or be missing: a requeued job is neither for a moment."""

ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE"),
    *("FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"),
)
"""States of ``squeue`` that are final unless the job is requeued."""


class QueueWatcher:
    """The states of jobs in Slurm's queue; replaces submitit's watcher, which needs accounting (``sacct``).

    Not every cluster has accounting; every one has a queue.
    """

    def __init__(self) -> None:
        self.jobs: set[str] = set()
        self._states: dict[str, str] = {}
        self._ended_at: dict[str, float] = {}
        self._polled_at = float("-inf")
        self._warned = False

    def register_job(self, job_id: str) -> None:
        """Watch a job from now on."""
        self.jobs.add(job_id)

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """Slurm's state of a job; ``GONE`` if it ended so long ago that the queue dropped it."""
        self._poll(mode == "force")
        return self._states.get(job_id, "UNKNOWN")

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether a job ended and was not requeued."""
        self._poll(mode == "force")
        return time.monotonic() - self._ended_at.get(job_id, float("inf")) > GONE_SECONDS

    def wait_for_all(self) -> None:
        """Return when no job is left in the queue."""
        while not all(self.is_done(job) for job in self.jobs):
            time.sleep(POLL_SECONDS)

    def _poll(self, now: bool) -> None:
        if not now and time.monotonic() - self._polled_at < POLL_SECONDS:
            return
        self._polled_at = time.monotonic()
        command = ["squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")
        if done.returncode != 0:
            if not self._warned:
                log.warning("squeue does not answer (%s); still waiting for the jobs", done.stderr.strip())
            self._warned = True
            return
        self._warned = False
        queue = dict(line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line)
        for job in self.jobs:
            self._states[job] = queue.get(job, "GONE")
            if self._states[job] in (*ENDED, "GONE"):
                self._ended_at.setdefault(job, self._polled_at)
            else:
                self._ended_at.pop(job, None)


def launch_jobs(launch: Callable[[], Result]) -> Result:
    """Launch Slurm jobs through submitit, and return when the last one has left the queue.

    Raises:
        SystemExit: Slurm refused the jobs, or one ended without a result.
    """
    from submitit.core.utils import UncompletedJobError
    from submitit.slurm.slurm import SlurmJob

    if shutil.which("sbatch") is None:
        _refuse("there is no sbatch here; start the command where Slurm is, or try launcher=slurm_local")
    SlurmJob.watcher = watcher = QueueWatcher()  # type: ignore[assignment]  # only these four methods are called
    try:
        return launch()
    except UncompletedJobError as error:
        if not watcher.jobs:
            lines = [line for line in str(error).splitlines() if line.startswith("sbatch:")] or [str(error)]
            reason = " ".join(line.removeprefix("sbatch: error: ").strip() for line in lines)
            _refuse(
                f"sbatch refused the jobs ({reason}): see `sinfo`, and change hydra.launcher.partition, account, "
                "gpus_per_node, cpus_per_task, mem_gb or timeout_min"
            )
        log.error("A job ended without a result: %s", " ".join(str(error).splitlines()[:2]))
        watcher.wait_for_all()
        raise SystemExit(1) from error


def _refuse(reason: str) -> NoReturn:
    forget()
    raise SystemExit(f"error: launcher=slurm: {reason}")


def begin_job() -> None:
    """Clean up after an interrupted requeueing, in a job that submitit started.

    It leaves a file that submitit would take for a requeueing in progress.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        from submitit import JobEnvironment

        submitted = JobEnvironment().paths.submitted_pickle
        submitted.with_name(f"{submitted.name}.save_tmp").unlink(missing_ok=True)


def requeue_refusal(error: Exception) -> UserError | None:
    """One sentence for submitit's refusal to requeue a job; ``None`` for another error.

    Raises:
        SystemExit: the job is requeued, although ``scontrol`` failed: Slurm then ends all processes of the job, at
            times including ``scontrol`` before it reports success.
    """
    if isinstance(error, subprocess.CalledProcessError) and error.cmd[:2] == ["scontrol", "requeue"]:
        if error.returncode == -signal.SIGTERM:
            raise SystemExit(-1) from error  # submitit's exit status for a requeued job
        return None
    if type(error).__name__ != "UncompletedJobError":
        return None
    return UserError(
        f"{str(error).rstrip('.')}: raise hydra.launcher.max_num_timeout or timeout_min; the run resumes "
        "from its checkpoint with the same command and sweep_dir="
    )
