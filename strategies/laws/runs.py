"""From runs to optima, and from laws back to runs."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np

from strategies.laws.power import PowerLaw
from strategies.searched import searched
from strategies.space import SearchSpace

Row = Mapping[str, float]


def rows(
    source: Any, space: SearchSpace | Mapping[str, Any] | None = None, **size: float
) -> list[dict[str, float]]:
    """A search as a table: numeric hyperparameters by their paths, and `"value"`.

    **Arguments:**

    - `source`, `space`: as in `strategies.searched.searched`: any search, a ledger, a study.
    - `size`: what the search was at, `N=1e6`; it is added to every row.
    """
    for name, number in size.items():
        if not _number(number):
            raise ValueError(f"{name!r}: expected a number, received {number!r:.80}")
    found = []
    for item in searched(source, space).complete:
        row = {path: value for path, value in _flat(item.config) if _number(value)}
        found.append({**row, "value": float(item.value or 0.0), **size})
    return found


def optima(
    table: Iterable[Row],
    inputs: Sequence[str],
    targets: Sequence[str],
    *,
    value: str = "value",
    edge: Literal["raise", "keep", "drop"] = "raise",
) -> list[dict[str, float]]:
    """The row with the smallest value at each size.

    **Arguments:**

    - `table`: rows, several to a size.
    - `inputs`: names that make up the size.
    - `targets`: names of the hyperparameters whose best value is wanted.
    - `value`: name of what is minimised.
    - `edge`: what to do with a best value at the end of what was tried: it has not been bracketed,
      the optimum may lie beyond. `"raise"`, `"keep"` or `"drop"` the size.

    **Raises:** `ValueError` for an optimum at the edge, naming hyperparameter and size.
    """
    inputs, targets = _names("inputs", inputs), _names("targets", targets)
    if edge not in ("raise", "keep", "drop"):
        raise ValueError(f"'edge': expected 'raise', 'keep' or 'drop', received {edge!r:.80}")
    found = []
    for size, group in _groups(table, inputs, (*targets, value)).items():
        best = min(group, key=lambda row: row[value])
        at_edge = [
            name for name in targets if best[name] in (min(g := [r[name] for r in group]), max(g))
        ]
        if at_edge and edge == "raise":
            name = at_edge[0]
            tried = sorted({row[name] for row in group})
            raise ValueError(
                f"{name!r}: expected an optimum inside what was tried ({tried[0]:g} to "
                f"{tried[-1]:g}), received {best[name]:g} at its edge for "
                f"{dict(zip(inputs, size, strict=True))}: try further out"
            )
        if not at_edge or edge == "keep":
            names = (*inputs, *targets, value)
            found.append({name: float(best[name]) for name in names})
    return found


def excess(
    table: Iterable[Row], laws: Sequence[PowerLaw], *, value: str = "value"
) -> dict[tuple[float, ...], float]:
    """By what share the run nearest to the laws' predictions is worse than the best of its size.

    Nearest in logarithms of all targets together. Keys are the sizes, in the order in which the
    laws name their inputs.

    **Arguments:** `table`: rows, several to a size; `laws`: one for each hyperparameter; `value`:
    name of what is minimised, positive.
    """
    if not isinstance(laws, Sequence) or not all(isinstance(law, PowerLaw) for law in laws):
        raise ValueError(f"'laws': expected PowerLaws, received {laws!r:.80}")
    if not laws:
        raise ValueError("'laws': expected at least one, received none")
    names = list(dict.fromkeys(name for law in laws for name in law.inputs))
    found = {}
    others = (*(law.target for law in laws), value)
    for size, group in _groups(table, names, others).items():
        point = dict(zip(names, size, strict=True))
        wanted = np.log([law.predict(point).value for law in laws])
        tried = np.log([[row[law.target] for law in laws] for row in group])
        nearest = group[int(np.argmin(((tried - wanted) ** 2).sum(1)))]
        found[size] = nearest[value] / min(row[value] for row in group) - 1.0
    return found


def _groups(
    table: Iterable[Row], names: Sequence[str], others: Sequence[Any]
) -> dict[tuple[float, ...], list[Row]]:
    """The rows of each size; `others` are the names that each row has to have, too."""
    for name in others:
        if not isinstance(name, str):
            raise ValueError(f"'value': expected a name, received {name!r:.80}")
    if not isinstance(table, Iterable) or isinstance(table, str | bytes | Mapping | type):
        raise ValueError(f"'table': expected rows, received {table!r:.80}")
    found: dict[tuple[float, ...], list[Row]] = {}
    for row in table:
        if not isinstance(row, Mapping):
            raise ValueError(f"'table': expected dicts, received {row!r:.80}")
        missing = [name for name in (*names, *others) if name not in row]
        if missing:
            given = sorted(row, key=repr)
            raise ValueError(f"{missing[0]!r}: expected in each row, received {given!r:.200}")
        for name in (*names, *others):
            if not isinstance(row[name], Real) or isinstance(row[name], bool):
                raise ValueError(f"{name!r}: expected a number, received {row[name]!r:.80}")
        found.setdefault(tuple(float(row[name]) for name in names), []).append(row)
    return found


def _names(name: str, value: Any) -> tuple[str, ...]:
    plain = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not plain or not value or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{name!r}: expected names, received {value!r:.80}")
    return tuple(value)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
