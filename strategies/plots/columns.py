"""A hyperparameter as an axis: where each configuration is on it, and its slope there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from scipy.special import expit

from strategies.arguments import several
from strategies.observation import Observation
from strategies.plots.style import readable, shortened, whole, wrapped
from strategies.space import Categorical, Domain, Float, Int, Logit, Ordinal, SearchSpace
from strategies.space.choices import Listed

#: Arrays with more entries are shown by the mean of their coordinates.
_ENTRIES = 4
#: Labels that fit beside an axis.
_LABELS = 12
#: Characters of all labels together that fit under one.
_WIDTH = 32


@dataclass(frozen=True)
class Column:
    """One axis.

    - `name`: its label.
    - `domain`: of the hyperparameter.
    - `coordinates`: the unit coordinates that are averaged, or those of the choices.
    - `path`: of the hyperparameter.
    """

    name: str
    path: str
    domain: Domain
    coordinates: np.ndarray

    @property
    def labels(self) -> list[str] | None:
        """The choices in words, in order; `None` for numbers."""
        if not isinstance(self.domain, Listed):
            return None
        return [wrapped(str(choice)) for choice in self.domain.options]

    @property
    def smooth(self) -> bool:
        """Whether the axis is that of a number which may have a slope."""
        return isinstance(self.domain, Float | Logit) and self.domain.differentiable

    @property
    def log(self) -> bool:
        """Whether equal factors are equal distances."""
        return isinstance(self.domain, Float | Int) and self.domain.log

    def places(self, units: np.ndarray) -> np.ndarray:
        """Positions in [0, 1], shape `(n,)`, of rows of unit coordinates."""
        part = units[:, self.coordinates]
        if isinstance(self.domain, Categorical):
            return np.argmax(part, axis=1) / max(part.shape[1] - 1, 1)
        if isinstance(self.domain, Ordinal):
            count = len(self.domain.values)
            return np.clip(np.floor(part[:, 0] * count), 0, count - 1) / max(count - 1, 1)
        return part.mean(1)

    def natural(self, places: np.ndarray) -> np.ndarray:
        """What the axis shows at positions: numbers, or the indices of choices."""
        if self.labels is not None:
            return places * (len(self.labels) - 1)
        if isinstance(self.domain, Float):
            low, high = self.domain.low, self.domain.high
            if self.domain.log:
                return low * (high / low) ** places
            return low + places * (high - low)
        if isinstance(self.domain, Logit):
            first, last = self.domain.ends
            return expit(first + places * (last - first))
        if isinstance(self.domain, Int):
            return np.array([self.domain.decode(np.array([place])) for place in places], float)
        return places

    def slopes(self, slopes: np.ndarray) -> np.ndarray:
        """Slopes along the axis, as its entries move together, by rows of unit slopes."""
        return slopes[:, self.coordinates].sum(1)

    def dress(self, axes: Axes, which: str = "x") -> None:
        """The label, the scale and the ticks of an axis."""
        axis: Axis = getattr(axes, f"{which}axis")
        axis.set_label_text(shortened(self.name, 30))
        if self.labels is not None:
            shown = range(0, len(self.labels), -(-len(self.labels) // _LABELS))
            axis.set_ticks(list(shown), [self.labels[i] for i in shown])
            if which == "x" and sum(len(self.labels[i]) for i in shown) > _WIDTH:
                for label in axis.get_ticklabels():
                    label.set(rotation=30, horizontalalignment="right")
            axis.set_view_interval(-0.5, len(self.labels) - 0.5, ignore=True)
            return
        if self.log:
            getattr(axes, f"set_{which}scale")("log")
            low, high = self.natural(np.array([0.0, 1.0]))
            room = (high / low) ** 0.03
            axis.set_view_interval(low / room, high * room, ignore=True)
        elif isinstance(self.domain, Logit):
            getattr(axes, f"set_{which}scale")("logit")
            low, high = self.natural(np.array([-0.03, 1.03]))
            axis.set_view_interval(low, high, ignore=True)
        elif isinstance(self.domain, Float | Int):
            low, high = self.natural(np.array([0.0, 1.0]))
            room = 0.03 * (high - low)
            axis.set_view_interval(low - room, high + room, ignore=True)
            if isinstance(self.domain, Int):
                whole(axis)
        readable(axis)


def columns(space: SearchSpace, names: Iterable[str] | None = None) -> list[Column]:
    """The axes of a space, or of the hyperparameters named, by path or by entry (`"l2[0]"`).

    An array of up to four entries has an axis for each, a longer one an axis for the mean of its
    unit coordinates: the geometric mean on a log domain. Shares and ordered arrays are shown by
    their unit coordinates.

    **Raises:** `ValueError` for a name that is not there.
    """
    if names is not None:
        names = several("names", names, "names of hyperparameters")
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"'names': expected names of hyperparameters, received {names!r:.80}")
    found: list[Column] = []
    for path, where in space.slices.items():
        domain = space.domains[path]
        coordinates = np.arange(where.start, where.stop)
        named = isinstance(domain, Categorical | Ordinal | Int) or domain.size == 1
        if not domain.size:
            continue
        if named and getattr(domain, "shape", ()) == ():
            found.append(Column(path, path, domain, coordinates))
            continue
        index = list(np.ndindex(getattr(domain, "shape", (domain.size,))))
        entries = [
            Column(path + "".join(f"[{i}]" for i in at), path, domain, coordinates[k : k + 1])
            for k, at in enumerate(index)
        ]
        if isinstance(domain, Float):
            whole_array = Column(f"{path} (mean of {domain.size})", path, domain, coordinates)
            wanted = names is not None and any(entry.name in names for entry in entries)
            found += entries if domain.size <= _ENTRIES or wanted else [whole_array]
        else:
            found += entries
    if names is None:
        return found
    chosen = []
    for name in names:
        fitting = [column for column in found if name in (column.name, column.path)]
        exact = [column for column in fitting if column.name == name]
        if not fitting:
            known = [column.name for column in found]
            raise ValueError(f"'names': expected some of {known}, received {name!r}")
        chosen += exact or fitting
    return chosen


def present(column: Column, items: Sequence[Observation]) -> np.ndarray:
    """Which configurations have the hyperparameter, a mask of shape `(n,)`."""
    found = [item.point is not None and column.path in item.point.flat for item in items]
    return np.array(found, bool)
