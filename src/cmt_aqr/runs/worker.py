"""One process of a run on several devices: ``python -m cmt_aqr.runs.worker <connection>``.

Started by :mod:`cmt_aqr.runs.processes`, not by hand.
"""

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from hydra.utils import get_method

from cmt_aqr.runs.command import hide_noise
from cmt_aqr.runs.processes import Job, Outcome, run_here


def main(connection: Connection) -> int:
    """Receive a job, run it and send its outcome; returns the exit status."""
    job: Job = connection.recv()
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    outcome = _outcome(job)
    connection.send(outcome)
    return 0 if outcome.error is None else 1


def _outcome(job: Job) -> Outcome:
    try:
        return Outcome(_run(job), None, time.time())
    except SystemExit as error:
        # Another process reports the stopped run; this one just exits.
        return Outcome(None, None if error.code in (0, None) else SystemExit(error.code), time.time())
    except BaseException as error:
        return Outcome(None, _sendable(error), time.time())


def _run(job: Job) -> dict[str, float]:
    sys.argv = list(job.arguments)
    if job.sigterm_saves:
        signal.signal(signal.SIGTERM, lambda *_: None)
    setup_globals()  # ${now:...} and ${hydra:...}
    if job.hydra is not None:
        HydraConfig.instance().cfg = job.hydra  # type: ignore[assignment]  # a DictConfig, declared as its schema
        if os.environ["RANK"] == "0":
            configure_log(job.hydra.hydra.job_logging, job.hydra.hydra.verbose)
    hide_noise()
    return run_here(get_method(job.task), job.config, Path(job.folder), job.overrides)


def _end_with_parent(connection: Connection) -> None:
    """Kill this process and its loader workers as soon as the command's process has ended."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _sendable(error: BaseException) -> BaseException:
    """The error with its traceback as a note; an error that cannot be pickled is replaced."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in process {os.environ['RANK']}:\n{text}")
    return error


if __name__ == "__main__":
    status = main(Connection(int(sys.argv[1])))
    sys.stdout.flush()
    sys.stderr.flush()
    # Without tearing down a process group whose other members may be gone.
    os._exit(status)
