"""``launcher=slurm``: submitit's plugin for Hydra, which finds launchers in this package only."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ImportError:  # an extra; without it there is no hydra.launcher that names this class
    pass
else:

    class PatientSlurmLauncher(SlurmLauncher):
        """Waits until every job has left Slurm's queue; a refusal of sbatch is one sentence."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Submit the runs as one array, and wait for them."""
            from cmt_aqr.runs.console import console
            from cmt_aqr.runs.slurm import launch_jobs

            logs = Path(self.params["submitit_folder"]).parent
            plan = f"{len(job_overrides)} jobs for Slurm: squeue lists them, and they print into {logs}"
            console(stderr=True).print(plan, soft_wrap=True)
            return launch_jobs(lambda: super(PatientSlurmLauncher, self).launch(job_overrides, initial_job_idx))
