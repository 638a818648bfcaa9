"""Workers that train the runs of a study: processes on this machine or a Ray cluster."""

from shiftproof.studies.workers.processes import run_tasks
from shiftproof.studies.workers.ray import RayCluster, run_on_ray
from shiftproof.studies.workers.retries import NodeError

__all__ = ["NodeError", "RayCluster", "run_on_ray", "run_tasks"]
