"""Time to a hypergradient of the network with 669,706 hyperparameters, against other libraries.

`python -m benchmarks.peers_network [--quick] [--out DIR]` compares `ImplicitDifferentiation` with
jaxopt, optimistix, and torch by hand, Betty and TorchOpt, those of them that are installed (`pip
install jaxopt optimistix torch torchopt betty-ml`; none is a dependency). All take the threads they
find; one each with `OMP_NUM_THREADS=1` on one core (`taskset -c 0`). There are two tables:

- `equal products`: all have the same system, the same linear solver and the same number of
  products. `error` is that of their hypergradient relative to ours: a row that is not small has
  computed something else, NaN among it, and its time means nothing.
- `equal error`: each at its quickest that has a relative error of at most 1e-6. The
  libraries on JAX stop at the loosest tolerance that does; torch and those on it are told the
  fewest products that do, of Neumann's series or of conjugate gradient.

`time` is the median of the ratios of our time to theirs, round by round, taken in turn. At most 0.5
of the torch libraries' is wanted at equal error. Optimistix raises where its linear solver returns
NaN.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import torch_peers
from benchmarks.measure import interleaved, options, ratio, report
from benchmarks.overhead import by_library
from benchmarks.peers import jaxopt_method, optimistix_method
from benchmarks.problems import Case, mlp
from hypergrad import CG
from hypergrad.linear import LinearSolver, Neumann

BOUNDS = {"time": 0.5}
METHODS = (("neumann", 5), ("neumann", 20), ("cg", 10))
TARGET = 1e-6
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
PRODUCTS = (1, 2, 3, 4, 6, 8, 10, 20, 60, 150)


def compiled(case: Case, solver: LinearSolver) -> Callable:
    """The hypergradient of this library, compiled."""
    function = by_library(case, solver)
    return jax.jit(lambda *args: function(*args)[1])


def jax_peers(case: Case, tol: float, max_steps: int) -> dict[str, Callable[[], list]]:
    """The libraries on JAX, with conjugate gradient."""
    makers = {
        "jaxopt": lambda: jaxopt_method(case, "solve_cg", max_steps),
        "optimistix": lambda: optimistix_method(case, max_steps),
    }
    args = (jnp.asarray(tol), case.params, case.hparams, case.inner_batch, case.outer_batch)
    return {
        name: partial(jax.jit(make()), *args) for name, make in makers.items() if find_spec(name)
    }


def at_equal_products(case: Case, repeats: int, clock: Callable[[], float]) -> list[dict]:
    """The rows."""
    args = (case.params, case.hparams, case.inner_batch, case.outer_batch)
    rows = []
    for name, products in METHODS:
        solver: LinearSolver = (
            CG(tol=0.0, max_steps=products) if name == "cg" else Neumann(products, step=case.step)
        )
        functions = {
            "this library": partial(compiled(case, solver), *args),
            **(jax_peers(case, 0.0, products) if name == "cg" else {}),
        }
        for peer, make in torch_peers.installed().items():
            functions[peer] = make(case, name, products, case.step)
        found = {peer: _attempt(function) for peer, function in functions.items()}
        working = {peer: f for peer, f in functions.items() if found[peer] is not None}
        seconds = interleaved(working, repeats=repeats, clock=clock)
        ours = found["this library"]
        for peer, grad in found.items():
            row = {"method": f"{name} {products}", "library": peer}
            if grad is None:
                row["error"] = "raises"
            else:
                row["ms"] = 1e3 * median(seconds[peer])
                row["time"] = ratio(seconds, "this library", peer)
                row["error"] = float(np.linalg.norm(grad - ours) / np.linalg.norm(ours))
            rows.append(row)
    return rows


class Accurate(NamedTuple):
    """A way to a hypergradient that is accurate enough, and its relative error."""

    name: str
    function: Callable[[], list]
    error: float


def ladders(case: Case) -> dict[str, list[dict[str, Callable[[], Callable]]]]:
    """For each library its ways to a hypergradient by growing accuracy, not built yet."""
    args = (case.params, case.hparams, case.inner_batch, case.outer_batch)

    def ours(tol: float) -> Callable:
        return partial(compiled(case, CG(tol=tol)), *args)

    def jax_peer(peer: str, tol: float) -> Callable:
        return jax_peers(case, tol, 1000)[peer]

    ways = {"this library": [{f"cg to {tol:g}": partial(ours, tol) for tol in TOLERANCES}]}
    for peer in jax_peers(case, 0.0, 1):
        ways[peer] = [{f"cg to {tol:g}": partial(jax_peer, peer, tol) for tol in TOLERANCES}]
    for peer, make in torch_peers.installed().items():
        ways[peer] = [
            {f"{solver} {k}": partial(make, case, solver, k, case.step) for k in PRODUCTS}
            for solver in ("cg", "neumann")
        ]
    return ways


def at_equal_error(case: Case, repeats: int, clock: Callable[[], float]) -> list[dict]:
    """The rows: each library at its quickest."""
    args = (case.params, case.hparams, case.inner_batch, case.outer_batch)
    truth = _attempt(partial(compiled(case, CG(tol=1e-7, max_steps=100)), *args))

    def first(ladder: dict[str, Callable[[], Callable]]) -> Accurate | None:
        for name, make in ladder.items():
            function = make()
            found = _attempt(function)
            if found is None:
                continue
            error = float(np.linalg.norm(found - truth) / np.linalg.norm(truth))
            if error <= TARGET:  # NaN is not
                return Accurate(name, function, error)
        return None

    found = {peer: [first(ladder) for ladder in several] for peer, several in ladders(case).items()}
    accurate = {peer: [way for way in ways if way is not None] for peer, ways in found.items()}
    functions = {(peer, way.name): way.function for peer in accurate for way in accurate[peer]}
    seconds = interleaved(functions, repeats=repeats, clock=clock)
    rows = []
    for peer, ways in accurate.items():
        if not ways:
            rows.append({"library": peer, "method": "none is accurate"})
            continue
        best = min(ways, key=lambda way, peer=peer: median(seconds[peer, way.name]))
        key, ours = (peer, best.name), next(iter(functions))
        row = {"library": peer, "method": best.name, "ms": 1e3 * median(seconds[key])}
        rows.append(row | {"time": ratio(seconds, ours, key), "error": best.error})
    return rows


def _attempt(function: Callable[[], list]) -> np.ndarray | None:
    """All entries of what the function returns; `None` where it raises while running."""
    try:
        leaves = jax.tree.leaves(function())
    except jax.errors.JaxRuntimeError:
        return None
    return np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])


def main() -> None:
    """Time all and print the tables."""
    arguments = options(__doc__.splitlines()[0]).parse_args()
    case, repeats = mlp(), 5 if arguments.quick else 20
    tables = {
        "equal error": at_equal_error(case, repeats, arguments.clock),
        "equal products": at_equal_products(case, repeats, arguments.clock),
    }
    report("peers_network", tables, BOUNDS, arguments)


if __name__ == "__main__":
    main()
