"""Time to a hypergradient of given accuracy, against other libraries.

`python -m benchmarks.peers [--quick] [--only METHOD ...] [--out DIR]` follows a search over the 640
weight decays of logistic regression on digits, by Adam with steps of 0.1 in log space. The inner
problem is solved to rounding at every outer step (untimed) and the step's hypergradient is computed
by every method, each at the loosest tolerance with which its largest relative error over all steps
is at most 1e-6.
`time` is that of the whole search, whatever the method builds on the way included, relative to
jaxopt's conjugate gradient. At most 0.5 is wanted of this library's best.

Rows of this library:

- `cg`: conjugate gradient from nothing, as the others;
- `cg, warm`: started at the last step's adjoint;
- `pcg, jacobi`: the diagonal estimated by ten probes at every step, warm start;
- `pcg, kept inverse`: a dense inverse from an earlier step as preconditioner, built anew when a
  solve needs more than twelve products, warm start;
- `pcg, kept sketch`: the same with a Nyström sketch of rank 60, scaled by the diagonal, built anew
  beyond thirty products;
- `recycling cg`: preconditioned by, and started from, the solves before; with `40` it remembers
  forty directions;
- `dense`: the matrix materialised and factorised at every step.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from benchmarks.measure import interleaved, options, report
from benchmarks.problems import Batch, Case, digits, solve_digits
from hypergrad import CG, ImplicitDifferentiation, RecyclingCG
from hypergrad.linear import (
    PCG,
    Dense,
    DensePreconditioner,
    Jacobi,
    NystromPreconditioner,
    Preconditioner,
    symmetric_operator,
)

TARGET = 1e-6
TOLERANCES = [10.0 ** (-k / 4) for k in range(12, 48)]
BOUNDS = {"time": 0.5}

# One step of a search: inner solution, hyperparameters, and the exact hypergradient.
Step = tuple[Array, Array, Array]


def search(case: Case, steps: int) -> list[Step]:
    """The points of a search by Adam with steps of 0.1, with true derivatives."""
    w, h = case.params, case.hparams
    inner, outer = case.problem.inner, case.problem.outer

    @jax.jit
    def exact(w: Array, h: Array) -> Array:
        hessian = jax.hessian(inner)(w, h, case.inner_batch).reshape(w.size, w.size)
        q = jnp.linalg.solve(hessian, jax.grad(outer)(w, h, case.outer_batch).ravel())
        _, pull = jax.vjp(lambda h: jax.grad(inner)(w, h, case.inner_batch), h)
        return -pull(q.reshape(w.shape))[0]

    adam = optax.adam(0.1)
    moments = adam.init(h)
    path = []
    for _ in range(steps):
        gradient = exact(w, h)
        path.append((w, h, gradient))
        update, moments = adam.update(gradient, moments)
        h = h + update
        w = solve_digits(w, h, case.inner_batch)
    return path


class Ours:
    """A search with `ImplicitDifferentiation`, its state carried from step to step."""

    def __init__(self, case: Case, solver: Callable[[Array], Any], warm: bool) -> None:
        self.case, self.solver, self.warm = case, solver, warm
        self.step = jax.jit(self._step)

    def _step(
        self, tol: Array, state: Any, w: Array, h: Array, inner_batch: Batch, outer_batch: Batch
    ) -> Any:
        case = self.case
        estimator = ImplicitDifferentiation(
            linear_solver=self.solver(tol), warm_start=self.warm, error_estimate=False
        )
        if state is None:
            state = estimator.init(case.problem, w, h, inner_batch)
        state = eqx.tree_at(lambda s: s.params, state, w)
        return estimator.hypergradient(case.problem, state, h, inner_batch, outer_batch)

    def run(self, tol: Array, path: list[Step]) -> tuple[list[Array], list[int]]:
        """The hypergradients along the path, and the products that each took."""
        state, grads, products = None, [], []
        for w, h, _ in path:
            result = self.step(tol, state, w, h, self.case.inner_batch, self.case.outer_batch)
            state = result.state
            grads.append(result.grad)
            products.append(result.info.iterations)
        return grads, [int(p) for p in products]


class Kept(Ours):
    """The same with a preconditioner that is kept until it has grown stale."""

    def __init__(self, case: Case, recipe: Preconditioner, stale: int) -> None:
        super().__init__(case, lambda tol: None, warm=True)
        self.recipe, self.stale = recipe, stale
        self.build = jax.jit(self._build)

    def _build(self, w: Array, h: Array, batch: Batch) -> Any:
        inner = self.case.problem.inner
        _, product = jax.linearize(lambda w: jax.grad(inner)(w, h, batch), w)
        return self.recipe.build(symmetric_operator(product), w)

    def _step(
        self, solver: Any, state: Any, w: Array, h: Array, inner_batch: Batch, outer_batch: Batch
    ) -> Any:
        self.solver = lambda _: solver
        return super()._step(jnp.zeros(()), state, w, h, inner_batch, outer_batch)

    def run(self, tol: Array, path: list[Step]) -> tuple[list[Array], list[int]]:
        """As in `Ours`; the products of the building are counted in."""
        state, kept, solving, grads, products = None, None, 0, [], []
        for w, h, _ in path:
            building = 0
            if kept is None or solving > self.stale:
                kept, building = self.build(w, h, self.case.inner_batch)
            result = self.step(
                PCG(kept, tol=tol), state, w, h, self.case.inner_batch, self.case.outer_batch
            )
            state = result.state
            grads.append(result.grad)
            solving = int(result.info.iterations)
            products.append(solving + int(building))
        return grads, products


class Theirs:
    """A search with a function of `(tol, w, h)` and the batches, without memory of a step."""

    def __init__(self, case: Case, function: Callable) -> None:
        self.batches = (case.inner_batch, case.outer_batch)
        self.function = jax.jit(function)

    def run(self, tol: Array, path: list[Step]) -> tuple[list[Array], list[int]]:
        """The hypergradients along the path; these libraries do not count their products."""
        return [self.function(tol, w, h, *self.batches) for w, h, _ in path], []


def jaxopt_method(case: Case, solver: str, max_steps: int = 5000) -> Callable:
    """Implicit differentiation by jaxopt with one of its linear solvers."""
    import jaxopt

    solve = getattr(jaxopt.linear_solve, solver)
    inner, outer = case.problem.inner, case.problem.outer

    def hypergradient(
        tol: Array, w: Array, h: Array, inner_batch: Batch, outer_batch: Batch
    ) -> Array:
        def optimality(w: Array, h: Array) -> Array:
            return jax.grad(inner)(w, h, inner_batch)

        g, direct = jax.grad(outer, argnums=(0, 1))(w, h, outer_batch)
        root_vjp = jaxopt.implicit_diff.root_vjp
        solve_to = partial(solve, tol=tol, maxiter=max_steps)
        indirect = root_vjp(optimality, w, (h,), g, solve=solve_to)[0]
        return jax.tree.map(jnp.add, direct, indirect)

    return hypergradient


def lineax_method(case: Case) -> Callable:
    """Implicit differentiation with lineax's CG."""
    import lineax

    inner, outer = case.problem.inner, case.problem.outer

    def hypergradient(
        tol: Array, w: Array, h: Array, inner_batch: Batch, outer_batch: Batch
    ) -> Array:
        g, direct = jax.grad(outer, argnums=(0, 1))(w, h, outer_batch)
        _, product = jax.linearize(lambda w: jax.grad(inner)(w, h, inner_batch), w)
        operator = lineax.FunctionLinearOperator(
            product, jax.eval_shape(lambda: w), lineax.positive_semidefinite_tag
        )
        solver = lineax.CG(rtol=tol, atol=0.0, max_steps=5000)
        q = lineax.linear_solve(operator, g, solver, throw=False).value
        _, pull = jax.vjp(lambda h: jax.grad(inner)(w, h, inner_batch), h)
        return direct - pull(q)[0]

    return hypergradient


def optimistix_method(case: Case, max_steps: int | None = None) -> Callable:
    """Optimistix's own implicit differentiation, at parameters that are solved already."""
    import lineax
    import optimistix

    def hypergradient(
        tol: Array, w: Array, h: Array, inner_batch: Batch, outer_batch: Batch
    ) -> Array:
        solver = lineax.CG(rtol=tol, atol=0.0, max_steps=max_steps)
        adjoint = optimistix.ImplicitAdjoint(solver)

        def outer(h: Array) -> Array:
            inputs = (w, h, inner_batch, case.problem.inner)
            tags = frozenset([lineax.positive_semidefinite_tag])
            solution, _ = adjoint.apply(_solved, _inner_gradient, inputs, tags)
            return case.problem.outer(solution, h, outer_batch)

        return jax.grad(outer)(h)

    return hypergradient


# Optimistix wants global functions.
def _solved(inputs: tuple) -> tuple[Array, None]:
    return inputs[0], None


def _inner_gradient(w: Array, _: None, inputs: tuple) -> Array:
    _, h, batch, inner, _ = inputs
    return jax.grad(inner)(w, h, batch)


def largest_error(grads: list[Array], path: list[Step]) -> float:
    """Largest relative error along the path."""
    errors = [
        float(jnp.linalg.norm(g - exact) / jnp.linalg.norm(exact))
        for g, (_, _, exact) in zip(grads, path, strict=True)
    ]
    return float(np.max(errors)) if np.all(np.isfinite(errors)) else float("inf")


def tuned(method: Any, path: list[Step]) -> tuple[float | None, float, list[int]]:
    """The loosest tolerance that is accurate enough (`None`: none is), its error and products."""
    error, products = float("inf"), []
    for tol in TOLERANCES:
        try:
            grads, products = method.run(jnp.asarray(tol), path)
        except jax.errors.JaxRuntimeError:  # optimistix raises where its solver fails
            continue
        error = largest_error(grads, path)
        if error <= TARGET:
            return tol, error, products
    return None, error, products


def run(
    log_decay: float, steps: int, repeats: int, clock: Callable[[], float], only: list[str]
) -> list[dict]:
    """The rows of one search, of all methods or of these beside jaxopt's CG."""
    case = digits(log_decay)
    methods = {
        "jaxopt cg": Theirs(case, jaxopt_method(case, "solve_cg")),
        "jaxopt normal cg (default)": Theirs(case, jaxopt_method(case, "solve_normal_cg")),
        "lineax cg": Theirs(case, lineax_method(case)),
        "cg": Ours(case, CG, warm=False),
        "cg, warm": Ours(case, CG, warm=True),
        "pcg, jacobi": Ours(case, lambda tol: PCG(Jacobi(), tol=tol), warm=True),
        "pcg, kept inverse": Kept(case, DensePreconditioner(), stale=12),
        "pcg, kept sketch": Kept(case, NystromPreconditioner(60, scaling=Jacobi()), stale=30),
        "recycling cg": Ours(case, RecyclingCG, warm=True),
        "recycling cg, 40": Ours(case, partial(RecyclingCG, memory=40), warm=True),
        "dense": Ours(case, lambda tol: Dense(), warm=False),
    }
    if find_spec("optimistix"):
        methods["optimistix"] = Theirs(case, optimistix_method(case))
    if unknown := set(only) - set(methods):
        raise SystemExit(f"--only: expected some of {', '.join(methods)}; got {unknown}")
    chosen = ["jaxopt cg", *only] if only else methods
    path = search(case, steps)
    found = {name: tuned(methods[name], path) for name in chosen}
    timed = {
        name: partial(lambda method, tol: method.run(tol, path)[0], methods[name], jnp.asarray(tol))
        for name, (tol, _, _) in found.items()
        if tol is not None
    }
    seconds = interleaved(timed, repeats=repeats, warmup=0, clock=clock)
    rows = []
    for name, (tol, error, products) in found.items():
        row = {"log decay": log_decay, "method": name, "tolerance": tol, "error": error}
        if tol is not None:
            pairs = zip(seconds[name], seconds["jaxopt cg"], strict=True)
            row["ms a step"] = 1e3 * median(seconds[name]) / steps
            row["time"] = median(a / b for a, b in pairs)
        if products:
            row["products a step"] = sum(products) / steps
        rows.append(row)
    return rows


def main() -> None:
    """Run the searches and print the table."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument(
        "--log-decay", type=float, nargs="+", default=[-4.0, -7.0], help="where the searches start"
    )
    parser.add_argument("--only", nargs="+", default=[], help="methods beside jaxopt's CG")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = []
    for log_decay in arguments.log_decay:
        quick = arguments.quick
        steps, repeats = (12, 3) if quick else (30, 7)
        rows += run(log_decay, steps, repeats, arguments.clock, arguments.only)
    report("peers", {"searches": rows}, BOUNDS, arguments)


if __name__ == "__main__":
    main()
