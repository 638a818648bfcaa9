"""A run in an MLflow tracking store."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from shiftproof.base.files import locked
from shiftproof.training.tracking.tracker import PROJECT, TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DATABASE = "mlflow.db"
RUN_TAG = "shiftproof.run"
"""The tag that holds the name of a run's spec, by which a continued run is found."""


class MLflowTracker:
    """Writes to the store that MLflow is set up for (``MLFLOW_TRACKING_URI``), else to an SQLite database.

    Args:
        run: the run to track.
    """

    def __init__(self, run: TrackedRun) -> None:
        import mlflow

        if mlflow.is_tracking_uri_set():  # type: ignore[no-untyped-call]
            self._client = mlflow.MlflowClient()
        else:
            waiting = f"another process opens {run.shared / DATABASE}; waiting for it"
            with locked(run.shared / f".{DATABASE}.lock", waiting):  # two workers creating one database would damage it
                self._client = mlflow.MlflowClient(f"sqlite:///{(run.shared / DATABASE).resolve()}")
        experiment = _experiment(self._client, os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        tracked = self._find(experiment, run)
        if tracked is None:
            tags = {RUN_TAG: run.spec.name, **run.labels}
            tracked = self._client.create_run(experiment, run_name=run.title, tags=tags)
        else:
            self._client.update_run(tracked.info.run_id, status="RUNNING")
        self._id = tracked.info.run_id
        self._logged = {
            (name, metric.step)
            for name in tracked.data.metrics
            for metric in self._client.get_metric_history(self._id, name)
        }
        if not tracked.data.params:
            params = [mlflow.entities.Param(name, str(value)) for name, value in run.parameters.items()]
            self._client.log_batch(self._id, params=params)

    def _find(self, experiment: str, run: TrackedRun) -> Run | None:
        found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run.spec.name}'", max_results=1)
        return found[0] if found else None

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Write the numbers that are not there yet, in one call."""
        from mlflow.entities import Metric

        milliseconds = time.time_ns() // 1_000_000
        metrics = [
            Metric(name, value, milliseconds, step)
            for name, value in scalars.items()
            if (name, step) not in self._logged
        ]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics)

    def end(self, status: str) -> None:
        """Set MLflow's status of the run."""
        self._client.set_terminated(self._id, "FINISHED" if status == "finished" else "FAILED")

    def close(self) -> None:
        """Do nothing, because no call leaves anything open."""


def _experiment(client: MlflowClient, name: str) -> str:
    """Return the id of an experiment, creating it if need be."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another worker may have been faster; else raise below
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)
