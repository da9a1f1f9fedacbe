"""Time to a hypergradient of the network with 669,706 hyperparameters, against other libraries.

`XLA_FLAGS=--xla_cpu_multi_thread_eigen=false OMP_NUM_THREADS=1 python -m benchmarks.peers_network
[--quick] [--out DIR]` gives the same system, the same linear solver and the same number of products
to `ImplicitDifferentiation`, to jaxopt, optimistix, and to torch by hand, Betty and TorchOpt, those
of them that are installed (`pip install jaxopt optimistix torch torchopt betty-ml`; none is a
dependency). The flags give one thread to all. Columns:

- `time`: median of the ratios of our time to theirs, round by round, taken in turn; at most 0.5 is
  wanted for the torch libraries;
- `error`: of their hypergradient relative to ours. A row that is not small has computed something
  else, NaN among it, and its time means nothing.

Optimistix raises where its linear solver returns NaN.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import torch_peers
from benchmarks.measure import interleaved, options, ratio, report
from benchmarks.overhead import STEP, by_library
from benchmarks.peers import jaxopt_method, optimistix_method
from benchmarks.problems import Case, mlp
from hypergrad import CG
from hypergrad.linear import LinearSolver, Neumann

BOUNDS = {"time": 0.5}
METHODS: list[tuple[str, int, LinearSolver]] = [
    ("neumann", 5, Neumann(5, step=STEP)),
    ("neumann", 20, Neumann(20, step=STEP)),
    ("cg", 10, CG(tol=0.0, max_steps=10)),
]


def compiled(case: Case, solver: LinearSolver) -> Callable:
    """The hypergradient of this library, compiled."""
    function = by_library(case, solver)
    return jax.jit(lambda *args: function(*args)[1])


def jax_peers(case: Case, solver: str, products: int) -> dict[str, Callable[[], list]]:
    """The libraries on JAX, which have conjugate gradient only."""
    if solver != "cg":
        return {}
    makers = {
        "jaxopt": lambda: jaxopt_method(case, "solve_cg", products),
        "optimistix": lambda: optimistix_method(case, products),
    }
    args = (jnp.zeros(()), case.params, case.hparams, case.inner_batch, case.outer_batch)
    return {
        name: partial(jax.jit(make()), *args) for name, make in makers.items() if find_spec(name)
    }


def run(case: Case, repeats: int, clock: Callable[[], float]) -> list[dict]:
    """The rows."""
    args = (case.params, case.hparams, case.inner_batch, case.outer_batch)
    rows = []
    for name, products, solver in METHODS:
        functions = {
            "this library": partial(compiled(case, solver), *args),
            **jax_peers(case, name, products),
        }
        for peer, make in torch_peers.installed().items():
            functions[peer] = make(case, name, products, STEP)
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


def _attempt(function: Callable[[], list]) -> np.ndarray | None:
    """All entries of what the function returns; `None` where it raises while running."""
    try:
        leaves = jax.tree.leaves(function())
    except jax.errors.JaxRuntimeError:
        return None
    return np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])


def main() -> None:
    """Time all and print the table."""
    arguments = options(__doc__.splitlines()[0]).parse_args()
    rows = run(mlp(), 5 if arguments.quick else 20, arguments.clock)
    report("peers_network", rows, BOUNDS, arguments.out)


if __name__ == "__main__":
    main()
