"""What a finished run leaves in the fitted search."""

from typing import Any

import numpy as np

from strategies.sklearn.objective import feature_names
from strategies.sklearn.run import Run
from strategies.sklearn.spaces import params_of


def attributes(run: Run, worker: Any) -> dict[str, Any]:
    """The attributes of this engine by name, beside those of `BaseSearchCV`, which `worker` has."""
    objective = run.objective
    return {
        "trials_": run.trials,
        "explanation_": run.explanation,
        "stopped_": run.stopped,
        "ledger_": run.ledger,
        "criterion_": None if objective is None else objective.criterion,
        "groups_": {
            group: [run.names[column] for column in columns]
            for group, columns in run.groups.items()
        },
        "penalties_": _penalties(run, worker),
    }


def _penalties(run: Run, worker: Any) -> dict[str, float]:
    """Those of the best row; none without a gradient, or where no row was chosen."""
    if run.objective is None or not hasattr(worker, "best_index_"):
        return {}
    results, best = worker.cv_results_, worker.best_index_
    row = results["hypergrad_stage"][best], results["hypergrad_trial"][best]
    config = next(each.config for each in run.trials if (each.stage, each.number) == row)
    value: Any = params_of(config, run.objects).get(run.objective.penalised or "")
    if run.groups:
        values = np.broadcast_to(np.asarray(value, float), (len(run.groups),))
        return dict(zip(run.groups, values.tolist(), strict=True))
    if np.ndim(value):
        # A kernel of a Gaussian process has a length scale per feature itself.
        names = feature_names(run.search.estimator, run.X, run.y)
        return dict(zip(names, np.ravel(value).tolist(), strict=True))
    return {} if value is None or isinstance(value, str) else {"all": float(value)}
