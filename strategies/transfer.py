"""From what was found on a small model to a configuration for a large one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import PyTree

from hypergrad.transfer import Parametrization, infer
from strategies.arguments import mapping
from strategies.laws import PowerLaw
from strategies.searched import Searched, searched
from strategies.space import SearchSpace

By = Literal["rule", "law", "not"]

#: Names of hyperparameters by what a parametrisation says of them, where none are given.
_RULED = {
    "learning_rate": ("lr", "learning_rate", "eta", "step_size"),
    "weight_decay": ("wd", "weight_decay"),
    "epsilon": ("eps", "epsilon"),
    "momentum": ("momentum", "b1", "b2", "beta1", "beta2"),
}
#: Kinds that no rule covers, and why.
_WHY_NOT = {
    "regularisation": "what a penalty does depends on the data and on the gap, not on shapes",
    "batch_size": "the best batch grows with the tokens, not with the width: fit a law",
    "steps": "the best length is a matter of compute: fit a law",
    "unknown": "no rule knows it; name its kind, or fit a law",
}
#: Observations within this share of the values' range from the best are as good.
_LEVEL = 0.05


@dataclass(frozen=True)
class Moved:
    """One hyperparameter, carried over.

    - `value`: for the large model; of what does not transfer, the one of the small model.
    - `low`, `high`: where the optimum lies: for a rule, the values on the small model that were
      about as good; for a law, its 95 % interval; `None` where nothing is known of it.
    - `by`: `"rule"`, `"law"` or `"not"`.
    - `why`: in words.
    """

    value: Any
    low: float | None
    high: float | None
    by: By
    why: str


@dataclass(frozen=True)
class Transferred:
    """A configuration for the large model.

    - `config`: values by paths. To be used with `parametrization`, which scales them by leaf.
    - `moved`: the same with intervals and reasons.
    - `parametrization`: of the large model; its `init`, `forward` and `optimizer` are to be used.
    """

    moved: dict[str, Moved]
    parametrization: Parametrization

    @property
    def config(self) -> dict[str, Any]:
        """The values alone."""
        return {path: moved.value for path, moved in self.moved.items()}


def transfer(
    found: Any,
    small: PyTree,
    large: PyTree,
    *,
    space: SearchSpace | Mapping[str, Any] | None = None,
    kinds: Mapping[str, str] | None = None,
    laws: Mapping[str, PowerLaw] | None = None,
    size: Mapping[str, float] | None = None,
    **rule: Any,
) -> Transferred:
    """The configuration for a large model, from what was found on a small one.

    **Arguments:**

    - `found`: any search (see `strategies.searched.searched`), or a mapping of paths to values,
      such as hyperparameters that an outer algorithm has ended with: then there is no interval.
    - `small`, `large`: arrays or shapes, as for `hypergrad.transfer.infer`.
    - `space`: of the search, if it does not bring its own.
    - `kinds`: what a hyperparameter is: `"learning_rate"`, `"weight_decay"`, `"epsilon"`,
      `"momentum"`, `"regularisation"`, `"batch_size"`, `"steps"`. Default: by its name.
    - `laws`: laws by path; they win over rules.
    - `size`: the large model's inputs for them.
    - `rule`: further arguments of `infer`.

    **Raises:** `ValueError` for an optimum at the edge of what was tried, for a hyperparameter that
    is not there, and for what `infer` refuses.
    """
    parametrization = infer(small, large, **rule)
    values, seen = _values(found, space)
    kinds = mapping("kinds", kinds, "kinds by path")
    laws = mapping("laws", laws, "laws by path")
    size = mapping("size", size, "numbers by name")
    for path, law in laws.items():
        if not isinstance(law, PowerLaw):
            raise ValueError(f"'laws': {path!r}: expected a PowerLaw, received {law!r:.80}")
    for path in (*kinds, *laws):
        if path not in values:
            raise ValueError(f"{path!r}: expected one of {', '.join(values)}")
    moved = {}
    for path, value in values.items():
        kind = kinds.get(path) or _kind(path)
        if kind not in _RULED and kind not in _WHY_NOT:
            known = ", ".join((*_RULED, *_WHY_NOT))
            raise ValueError(f"'kinds': {path!r}: expected one of {known}, received {kind!r}")
        if path in laws:
            there = laws[path].predict(size or {})
            why = f"law of {', '.join(laws[path].inputs)}, {there.reach:.1f} fitted ranges outside"
            moved[path] = Moved(there.value, there.low, there.high, "law", why)
        elif kind in _RULED and parametrization.kind != "standard":
            low, high = _interval(seen, path, value)
            why = f"{kind}: the parametrisation scales it leaf by leaf"
            moved[path] = Moved(value, low, high, "rule", why)
        elif kind in _RULED:
            why = "the standard parametrisation keeps no optimum"
            moved[path] = Moved(value, None, None, "not", why)
        else:
            moved[path] = Moved(value, None, None, "not", _WHY_NOT[kind])
    return Transferred(moved, parametrization)


def _values(
    found: Any, space: SearchSpace | Mapping[str, Any] | None
) -> tuple[dict[str, Any], Searched | None]:
    if isinstance(found, Mapping):
        return dict(found), None
    seen = searched(found, space)
    if seen.best is None or seen.best.point is None:
        raise ValueError("'found': expected a search with a complete trial, received none")
    return _flat(seen.best.config), seen


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        inside = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}/") if inside else {f"{prefix}{name}": value}
    return flat


def _kind(path: str) -> str:
    name = path.rpartition("/")[2]
    return next((kind for kind, names in _RULED.items() if name in names), "unknown")


def _interval(seen: Searched | None, path: str, value: Any) -> tuple[float | None, float | None]:
    """The values of a hyperparameter among the trials that were about as good as the best."""
    if seen is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None, None
    tried = np.array([_flat(item.config).get(path, np.nan) for item in seen.complete], float)
    known = np.isfinite(tried)
    tried, values = tried[known], seen.values[known]
    lowest, highest = float(tried.min()), float(tried.max())
    if lowest < highest and value in (lowest, highest):
        raise ValueError(
            f"{path!r}: expected an optimum inside what was tried ({lowest:g} to {highest:g}), "
            f"received {value:g} at its edge: search further out on the small model first"
        )
    # The median, as the worst trials of a search may be arbitrarily bad.
    best = values.min()
    good = tried[values <= best + _LEVEL * (np.median(values) - best)]
    # Never narrower than to the neighbours that are known to be worse.
    below, above = tried[tried < value], tried[tried > value]
    low = min(good.min(), below.max()) if below.size else good.min()
    high = max(good.max(), above.min()) if above.size else good.max()
    return float(low), float(high)


__all__ = ["Moved", "Transferred", "transfer"]
