"""How a trial of Ray Tune hands over its hypergradient."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ray import tune

from strategies.arguments import integer, mapping, several
from strategies.observation import report as _report

#: The key under which `report` puts everything that is not a metric.
RESERVED = "hypergrad"

#: Each would have less than a thousandth of the device's memory, which is the unit of XLA's option.
_MOST_TRIALS = 900

MAX_NUMBERS = 10_000
"""The most numbers that one report may carry.

Ray keeps every report in memory and in several log files; larger arrays belong into a checkpoint.
"""


def result(
    value: Any = None,
    gradient: Any = None,
    *,
    metric: str | Sequence[str] = "value",
    metrics: Mapping[str, Any] | None = None,
    **details: Any,
) -> dict[str, Any]:
    """The result dict that carries a hypergradient: what a class trainable's `step` returns.

    Takes the arguments of `report`, without the checkpoint.
    """
    given = _report(value, gradient, **details)
    extra = {
        name: entry
        for name, entry in given.__dict__.items()
        if name not in ("value", "values") and entry is not None and entry != {}
    }
    size = _count(extra)
    if size > MAX_NUMBERS:
        raise ValueError(
            f"expected at most {MAX_NUMBERS} numbers in a report, received {size}; "
            "write large arrays into a checkpoint"
        )
    row = mapping("metrics", metrics, "metrics by name")
    names = [metric] if isinstance(metric, str) else several("metric", metric, "names of metrics")
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"'metric': expected names of metrics, received {metric!r:.80}")
    values = [given.value] if given.values is None else list(given.values)
    if len(names) != len(values):
        raise ValueError(f"'metric': expected {len(values)} names, received {metric!r:.80}")
    row |= {n: math.nan if v is None else v for n, v in zip(names, values, strict=True)}
    if "gradients" in extra:
        # Ray flattens what has names, so lists have their positions.
        extra["gradients"] = {str(i): g for i, g in enumerate(extra["gradients"]) if g is not None}
    if extra:
        row[RESERVED] = extra
    return row


def report(
    value: Any = None, gradient: Any = None, *, checkpoint: Any = None, **details: Any
) -> None:
    """Report from inside a trainable: `tune.report` with a hypergradient.

    Everything is turned into plain Python numbers and lists first: the driver never has to unpickle
    a JAX array, and the log files hold numbers.

    **Arguments:**

    - `value`: the objective, a scalar; or a `hypergrad.Hypergradient`, which brings its gradient
      and its residuals along; or a `strategies.Report`.
    - `gradient`: derivative of `value` with respect to the trial's `config`, keyed like it, nested
      or flat, partial. Without one the trial still counts.
    - `checkpoint`: a `tune.Checkpoint`, passed on to `tune.report`.
    - `metric`: the name under which `value` is reported, that of `TuneConfig(metric=...)`. Default
      `"value"`. Of several objectives, a name each, those of `HypergradSearch(metric=[...])`.
    - `metrics`: further metrics to report beside it.
    - `gradient_error`, `config`, `cost`, `resource`, `info`, `values`, `gradients`, `constraints`,
      `constraint_gradients`: as in `strategies.report`. The
      searcher takes Ray's `time_total_s` and `training_iteration` for cost and resource when they
      are not given.

    The gradient and the rest travel under the reserved key `hypergrad`, together at most
    `MAX_NUMBERS` numbers.

    **Raises:** `ValueError` if the value is not a scalar, the gradient not a mapping, or the report
    too large.
    """
    tune.report(result(value, gradient, **details), checkpoint=checkpoint)


def trainable(
    objective: Callable[[dict[str, Any]], Any], *, metric: str | Sequence[str] = "value"
) -> Callable[[dict[str, Any]], None]:
    """A function trainable from an objective of the embedded engine.

    **Arguments:**

    - `objective`: takes a configuration and returns what `strategies.report` takes first: a number,
      a `hypergrad.Hypergradient` or a `strategies.Report`; for instance a
      `strategies.lamarckian.LamarckianTrial`. Its configurations are those of a `SearchSpace`, so
      give that space to `HypergradSearch`, or a `param_space` that is nested alike.
    - `metric`: the name under which the value is reported, or a name for each of several.

    **Returns:** What `tune.Tuner` takes. Everything else that the objective reports reaches the
    searcher as with `report`.
    """

    def train(config: dict[str, Any]) -> None:
        report(objective(config), metric=metric)

    # Ray names experiments after it.
    train.__name__ = getattr(objective, "__name__", type(objective).__name__)
    return train


def worker_environment(
    trials_per_device: int = 1, *, compilation_cache: str | None = None
) -> dict[str, Any]:
    """The `runtime_env` under which JAX trials share devices and compiled programs.

    Every trial is a process of its own: without this each takes three quarters of a GPU's memory,
    and compiles again what the trial before has compiled. Use as `ray.init(runtime_env=...)`; with
    `TuneConfig(reuse_actors=True)` the processes themselves are kept from trial to trial.

    **Arguments:**

    - `trials_per_device`: how many trials run on one GPU at a time (`resources` of 1 / that).
    - `compilation_cache`: folder of JAX's persistent compilation cache, on a file system that all
      nodes see. Default: no cache.
    """
    trials_per_device = integer("trials_per_device", trials_per_device, 1)
    if trials_per_device > _MOST_TRIALS:
        raise ValueError(
            f"'trials_per_device': expected at most {_MOST_TRIALS}, received {trials_per_device}"
        )
    variables = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / trials_per_device:.3f}"}
    if trials_per_device > 1:
        variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if compilation_cache is not None:
        variables["JAX_COMPILATION_CACHE_DIR"] = compilation_cache
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return {"env_vars": variables}


def _count(tree: Any) -> int:
    if isinstance(tree, Mapping):
        return sum(_count(item) for item in tree.values())
    if isinstance(tree, list):
        return sum(_count(item) for item in tree)
    return 1


def as_number(value: Any) -> float | None:
    """A float from whatever a trial reported; `None` if it is no number."""
    if isinstance(value, bool | str) or value is None:
        return None
    try:
        array = np.asarray(value)
        return float(array.reshape(())) if array.size == 1 else None
    except (TypeError, ValueError, OverflowError):
        return None
