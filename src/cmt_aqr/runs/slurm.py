"""Waiting for the Slurm jobs of a sweep."""

from __future__ import annotations

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
"""How long a job must have ended, or be missing: one that is queued again is for a moment neither."""

ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE"),
    *("FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"),
)
"""States of ``squeue`` after which a job does nothing more, unless it is queued again."""


class QueueWatcher:
    """What Slurm's queue says of jobs, in place of submitit's watcher, which asks for accounting (``sacct``).

    Not every cluster has accounting; every one has a queue.
    """

    def __init__(self) -> None:
        self.jobs: set[str] = set()
        self._states: dict[str, str] = {}
        self._ended_at: dict[str, float] = {}
        self._asked_at = float("-inf")
        self._silent = False

    def register_job(self, job_id: str) -> None:
        """Watch a job from now on."""
        self.jobs.add(job_id)

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """Slurm's word for how a job is; ``GONE``: it ended so long ago that Slurm forgot it."""
        self._ask(mode == "force")
        return self._states.get(job_id, "UNKNOWN")

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether a job ended for good."""
        self._ask(mode == "force")
        return time.monotonic() - self._ended_at.get(job_id, float("inf")) > GONE_SECONDS

    def wait_for_all(self) -> None:
        """Return when no job is left in the queue."""
        while not all(self.is_done(job) for job in self.jobs):
            time.sleep(POLL_SECONDS)

    def _ask(self, now: bool) -> None:
        if not now and time.monotonic() - self._asked_at < POLL_SECONDS:
            return
        self._asked_at = time.monotonic()
        command = ["squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")
        if done.returncode != 0:
            if not self._silent:
                log.warning("squeue does not answer (%s); still waiting for the jobs", done.stderr.strip())
            self._silent = True
            return
        self._silent = False
        listed = dict(line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line)
        for job in self.jobs:
            self._states[job] = listed.get(job, "GONE")
            if self._states[job] in (*ENDED, "GONE"):
                self._ended_at.setdefault(job, self._asked_at)
            else:
                self._ended_at.pop(job, None)


def patiently(launch: Callable[[], Result]) -> Result:
    """Launch Slurm jobs through submitit, and return when the last one has left the queue.

    Ends the command where Slurm refused the jobs, or one ended without a result; said on the way.
    """
    from submitit.core.utils import UncompletedJobError
    from submitit.slurm.slurm import SlurmJob

    if shutil.which("sbatch") is None:
        _refuse("there is no sbatch here; start the command where Slurm is, or try launcher=slurm_local")
    SlurmJob.watcher = watcher = QueueWatcher()  # type: ignore[assignment]  # asked for these four methods only
    try:
        return launch()
    except UncompletedJobError as error:
        if not watcher.jobs:
            told = [line for line in str(error).splitlines() if line.startswith("sbatch:")] or [str(error)]
            reason = " ".join(line.removeprefix("sbatch: error: ").strip() for line in told)
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
    """Clear up where submitit started this process as a job that Slurm queued again.

    A requeueing that was cut off left a file, which submitit would take for one that is under way.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        from submitit import JobEnvironment

        submitted = JobEnvironment().paths.submitted_pickle
        submitted.with_name(f"{submitted.name}.save_tmp").unlink(missing_ok=True)


def about_requeueing(error: Exception) -> UserError | None:
    """One sentence for submitit's refusal to queue a job again; ``None`` for another error.

    Raises:
        SystemExit: the job is in the queue again. Slurm then ends all that belongs to the job, now and then even
            the ``scontrol`` that asked for it, before it has said so.
    """
    if isinstance(error, subprocess.CalledProcessError) and error.cmd[:2] == ["scontrol", "requeue"]:
        if error.returncode == -signal.SIGTERM:
            raise SystemExit(-1) from error  # as submitit leaves a job that is queued again
        return None
    if type(error).__name__ != "UncompletedJobError":
        return None
    return UserError(
        f"{str(error).rstrip('.')}: raise hydra.launcher.max_num_timeout or timeout_min; the run resumes "
        "from its checkpoint with the same command and sweep_dir="
    )
