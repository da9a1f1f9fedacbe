"""What the golden values are taken from: fixed searches, schedules and hypergradients.

`python -m tests.golden.cases` writes the files anew. They were first written with version 0.1.0; a
change of one is a change of behaviour that a user sees, and belongs into the changelog.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad import (
    CG,
    GMRES,
    MINRES,
    PCG,
    BiCGStab,
    Dense,
    ForwardUnrolled,
    ImplicitDifferentiation,
    Neumann,
    Newton,
    NormalCG,
    Nystrom,
    OptaxSolver,
    RecyclingCG,
    TruncatedUnrolled,
    Unrolled,
    hypergradient,
)
from hypergrad.outer import F2SA, HOAG, MAID, SABA, SOBA, Alternating, run
from strategies import (
    BayesSearcher,
    Categorical,
    EvolutionSearcher,
    Float,
    GridSearcher,
    HypergradientSearcher,
    Int,
    ParetoSearcher,
    RandomSearcher,
    SearchSpace,
    SobolSearcher,
    report,
)
from strategies.local import minimize
from strategies.schedulers import ASHA, Hyperband, IterativeDeepeningHyperband
from strategies.schedulers import run as run_schedule
from tests.hypergrad.problems import logistic

HERE = Path(__file__).parent

SPACE = SearchSpace(
    {
        "rate": Float(1e-4, 1.0, log=True),
        "l2": Float(-2.0, 2.0, shape=(3,)),
        "depth": Int(1, 8),
        "kind": Categorical(["a", "b", "c"]),
    }
)
GRID = SearchSpace({"depth": Int(1, 8), "kind": Categorical(["a", "b", "c"])})

SEARCHERS = {
    "bayes": lambda: BayesSearcher(SPACE, seed=3),
    "evolution": lambda: EvolutionSearcher(SPACE, seed=3),
    "grid": lambda: GridSearcher(GRID, seed=3),
    "hypergradient": lambda: HypergradientSearcher(SPACE, seed=3),
    "pareto": lambda: ParetoSearcher(SPACE, seed=3),
    "random": lambda: RandomSearcher(SPACE, seed=3),
    "sobol": lambda: SobolSearcher(SPACE, seed=3),
}
TRIALS = 12

SCHEDULERS = {
    "asha": lambda: ASHA(RandomSearcher(SPACE, seed=5), max_resource=9, configurations=12),
    "hyperband": lambda: Hyperband(RandomSearcher(SPACE, seed=5), max_resource=9),
    "idhb": lambda: IterativeDeepeningHyperband(RandomSearcher(SPACE, seed=5), max_resource=9),
}


def objective(config: dict[str, Any]) -> Any:
    """A smooth bowl with a term for each kind; it fails where it is told to."""
    value = 0.3 * abs(config["depth"] - 5) + "cab".index(config["kind"]) * 0.2
    gradient = None
    if "rate" in config:
        l2 = np.asarray(config["l2"])
        away = math.log10(config["rate"]) + 2.0
        value += away**2 + float(np.sum((l2 - 0.5) ** 2)) + 0.1 * float(np.sum(np.sin(5 * l2)))
        slope = 2 * (l2 - 0.5) + 0.5 * np.cos(5 * l2)
        gradient = {"rate": 2 * away / (config["rate"] * math.log(10)), "l2": slope.tolist()}
        if config["depth"] == 2:
            value = float("nan")
    return report(value, gradient, cost=1.0 + config["depth"])


def search(name: str, state_path: Path | None = None) -> list[dict[str, Any]]:
    """The configurations that a searcher suggests, in order."""
    searcher = SEARCHERS[name]()
    found = minimize(
        objective, searcher.space, trials=TRIALS, searcher=searcher, state_path=state_path
    )
    return [dict(item.config) for item in found.history]


def schedule(name: str, state_path: Path | None = None) -> list[list[float]]:
    """The jobs of a scheduler: number, resource and value."""
    done: list[list[float]] = []

    def work(job: Any) -> float:
        value = objective(job.config | {"depth": max(job.config["depth"], 3)}).value
        return value + 1.0 / job.resource

    run_schedule(
        work,
        SCHEDULERS[name](),
        jobs=20,
        state_path=state_path,
        callbacks=[lambda job, given: done.append([job.number, float(job.resource), given.value])],
    )
    return done


def estimators() -> dict[str, Any]:
    """Every way to a hypergradient that needs no random numbers."""
    solvers = {
        "BiCGStab": BiCGStab(),
        "CG": CG(),
        "Dense": Dense(),
        "GMRES": GMRES(),
        "MINRES": MINRES(),
        "Neumann": Neumann(products=30),
        "NormalCG": NormalCG(tol=1e-10),
        "Nystrom": Nystrom(rank=10),
        "PCG": PCG(),
        "RecyclingCG": RecyclingCG(),
    }
    implicit = {
        name: ImplicitDifferentiation(Newton(), linear_solver=solver)
        for name, solver in solvers.items()
    }
    adam = optax.adam(0.05)
    return implicit | {
        "optax": ImplicitDifferentiation(OptaxSolver(adam, steps=200)),
        "Unrolled": Unrolled(adam, steps=30),
        "TruncatedUnrolled": TruncatedUnrolled(adam, steps=30, window=10),
        "ForwardUnrolled": ForwardUnrolled(adam, steps=30),
    }


def gradient(name: str) -> dict[str, Any]:
    """Value, hypergradient and error estimate on logistic regression with 24 penalties."""
    problem, w, lam, train, valid = logistic()
    found = hypergradient(problem, w, lam, train, valid, estimator=estimators()[name])
    return {
        "value": float(found.value),
        "grad": np.asarray(found.grad).ravel().tolist(),
        "error": float(found.info.error),
    }


ALGORITHMS = {
    "Alternating": lambda: Alternating(
        ImplicitDifferentiation(Newton(), warm_start=True), optax.adam(0.1)
    ),
    "HOAG": lambda: HOAG(
        ImplicitDifferentiation(OptaxSolver(optax.adam(0.05), steps=500), warm_start=True)
    ),
    "MAID": lambda: MAID(
        ImplicitDifferentiation(OptaxSolver(optax.sgd(0.5), steps=500), warm_start=True)
    ),
    "SOBA": lambda: SOBA(),
    "SABA": lambda: SABA(),
    "F2SA": lambda: F2SA(),
}


def outer(name: str) -> list[float]:
    """The hyperparameters after five outer steps."""
    problem, w, lam, train, valid = logistic()
    found = run(problem, ALGORITHMS[name](), w, lam, train, valid, steps=5, seed=1)
    return np.asarray(found.hparams).ravel().tolist()


def write() -> None:
    """Write the golden files beside this one."""
    (HERE / "searches.json").write_text(
        json.dumps(
            {name: search(name, HERE / f"state-{name}.json") for name in SEARCHERS}, indent=1
        )
    )
    (HERE / "schedules.json").write_text(
        json.dumps(
            {name: schedule(name, HERE / f"state-{name}.json") for name in SCHEDULERS}, indent=1
        )
    )
    (HERE / "hypergradients.json").write_text(
        json.dumps({name: gradient(name) for name in estimators()}, indent=1)
    )
    (HERE / "outer.json").write_text(
        json.dumps({name: outer(name) for name in ALGORITHMS}, indent=1)
    )
    for rest in [*HERE.glob("*.lock"), *HERE.glob("*.backup")]:
        rest.unlink()


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jnp.zeros(())
    write()
