"""Run a command as a batch job: at SIGUSR2 it requeues itself as submitit does, with a file for Slurm's queue.

``python requeued_job.py FILE SCRIPT OVERRIDE...``
"""

import runpy
import signal
import sys
from pathlib import Path

REQUEUED = 75

if __name__ == "__main__":
    queue, script = Path(sys.argv[1]), sys.argv[2]

    def requeue(*_: object) -> None:
        with queue.open("a", encoding="utf-8") as file:
            file.write("requeued\n")
        sys.exit(REQUEUED)

    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGUSR2, requeue)
    sys.argv = sys.argv[2:]
    runpy.run_path(script, run_name="__main__")
