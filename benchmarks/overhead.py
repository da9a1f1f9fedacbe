"""What the library costs over the same algorithm written out by hand in JAX.

`python -m benchmarks.overhead [--quick] [--out DIR]` times a jitted hypergradient of
`ImplicitDifferentiation` against a jitted function that does nothing but the arithmetic: gradient
of the outer loss, one linearisation, K Hessian-vector products of the Neumann series or of
conjugate gradient, one mixed product. Columns:

- `time`: median of the time ratios, round by round, taken in turn; at most 1.10 is wanted;
- `products`: time in units of `K + 2` Hessian-vector products; at most 1.15 is wanted for the
  network;
- `memory`: ratio of the programs' peak memory as XLA states it; at most 1.2 is wanted;
- `compile`: time to compile relative to one Hessian-vector product and one training step; at most
  2 is wanted for the network.

The error estimate is switched off: the hand-written code has none.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from benchmarks.measure import compile_seconds, interleaved, options, peak_bytes, ratio, report
from benchmarks.problems import Batch, Case, digits, mlp
from hypergrad import CG, ImplicitDifferentiation
from hypergrad.linear import LinearSolver, Neumann

STEP = 0.05
BOUNDS = {"time": 1.10, "products": 1.15, "memory": 1.2, "compile": 2.0}


def by_hand(case: Case, solve: Callable) -> Callable:
    """The hypergradient as one would write it for this problem alone."""

    def hypergradient(
        params: PyTree, hparams: PyTree, inner_batch: Batch, outer_batch: Batch
    ) -> tuple[Scalar, PyTree]:
        value, (g, direct) = jax.value_and_grad(case.problem.outer, argnums=(0, 1))(
            params, hparams, outer_batch
        )

        def gradient(w: PyTree) -> PyTree:
            return jax.grad(case.problem.inner)(w, hparams, inner_batch)

        _, product = jax.linearize(gradient, params)
        q = solve(product, g)

        def slope(h: PyTree) -> Scalar:
            def loss(w: PyTree) -> Scalar:
                return case.problem.inner(w, h, inner_batch)

            return jax.jvp(loss, (params,), (q,))[1]

        return value, jax.tree.map(jnp.subtract, direct, jax.grad(slope)(hparams))

    return hypergradient


def neumann_by_hand(products: int, product: Callable, g: PyTree) -> PyTree:
    """`step Σ (I − step H)ʲ g`, in a loop."""

    def body(_: int, carry: tuple) -> tuple:
        v, total = carry
        v = jax.tree.map(lambda a, b: a - STEP * b, v, product(v))
        return v, jax.tree.map(jnp.add, total, v)

    _, total = jax.lax.fori_loop(0, products, body, (g, g))
    return jax.tree.map(lambda a: STEP * a, total)


def cg_by_hand(products: int, product: Callable, g: PyTree) -> PyTree:
    """Textbook conjugate gradient, in a loop of fixed length."""

    def dot(x: PyTree, y: PyTree) -> Scalar:
        return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), x, y)))

    def body(_: int, carry: tuple) -> tuple:
        x, r, d, rr = carry
        hd = product(d)
        alpha = rr / dot(d, hd)
        x = jax.tree.map(lambda a, b: a + alpha * b, x, d)
        r = jax.tree.map(lambda a, b: a - alpha * b, r, hd)
        new = dot(r, r)
        d = jax.tree.map(lambda a, b: a + new / rr * b, r, d)
        return x, r, d, new

    start = (jax.tree.map(jnp.zeros_like, g), g, g, dot(g, g))
    return jax.lax.fori_loop(0, products, body, start)[0]


def by_library(case: Case, solver: LinearSolver) -> Callable:
    """The same hypergradient from `ImplicitDifferentiation`."""
    estimator = ImplicitDifferentiation(
        linear_solver=solver, warm_start=False, error_estimate=False
    )
    state = estimator.init(case.problem, case.params, case.hparams, case.inner_batch)

    def hypergradient(
        params: PyTree, hparams: PyTree, inner_batch: Batch, outer_batch: Batch
    ) -> tuple[Scalar, PyTree]:
        here = eqx.tree_at(lambda s: s.params, state, params)
        result = estimator.hypergradient(case.problem, here, hparams, inner_batch, outer_batch)
        return result.value, result.grad

    return hypergradient


def run(case: Case, repeats: int, clock: Callable[[], float]) -> list[dict]:
    """The rows of one problem."""

    def product(params: PyTree, hparams: PyTree, batch: Batch, v: PyTree) -> PyTree:
        def gradient(w: PyTree) -> PyTree:
            return jax.grad(case.problem.inner)(w, hparams, batch)

        return jax.jvp(gradient, (params,), (v,))[1]

    def train(params: PyTree, hparams: PyTree, batch: Batch) -> PyTree:
        g = jax.grad(case.problem.inner)(params, hparams, batch)
        return jax.tree.map(lambda a, b: a - STEP * b, params, g)

    here = (case.params, case.hparams, case.inner_batch)
    hvp_seconds, hvp = compile_seconds(product, *here, case.params, clock=clock)
    train_seconds, _ = compile_seconds(train, *here, clock=clock)
    methods = {
        "neumann 5": (5, partial(neumann_by_hand, 5), Neumann(5, step=STEP)),
        "neumann 20": (20, partial(neumann_by_hand, 20), Neumann(20, step=STEP)),
        "cg 10": (10, partial(cg_by_hand, 10), CG(tol=0.0, max_steps=10)),
    }
    rows = []
    args = (*here, case.outer_batch)
    for name, (count, solve, solver) in methods.items():
        by_hand_seconds, reference = compile_seconds(by_hand(case, solve), *args, clock=clock)
        seconds, library = compile_seconds(by_library(case, solver), *args, clock=clock)
        times = interleaved(
            {
                "hand": partial(reference, *args),
                "library": partial(library, *args),
                "product": partial(hvp, *here, case.params),
            },
            repeats=repeats,
            clock=clock,
        )
        expected, got = reference(*args)[1], library(*args)[1]
        gap = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), expected, got)
        size = jax.tree.map(lambda a: jnp.sum(a**2), expected)
        difference = (sum(jax.tree.leaves(gap)) / sum(jax.tree.leaves(size))) ** 0.5
        rows.append(
            {
                "problem": case.name,
                "method": name,
                "ms": 1e3 * median(times["library"]),
                "ms by hand": 1e3 * median(times["hand"]),
                "time": ratio(times, "library", "hand"),
                "products": ratio(times, "library", "product") / (count + 2),
                "products by hand": ratio(times, "hand", "product") / (count + 2),
                "memory": peak_bytes(library) / peak_bytes(reference),
                "compile": seconds / (hvp_seconds + train_seconds),
                "compile by hand": by_hand_seconds / (hvp_seconds + train_seconds),
                "difference": float(difference),
            }
        )
    return rows


def main() -> None:
    """Run both problems and print the table."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=["digits", "mlp"], help="which to time")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = []
    if "digits" in arguments.problems:
        rows += run(digits(), 20 if arguments.quick else 100, arguments.clock)
    if "mlp" in arguments.problems:
        rows += run(mlp(), 5 if arguments.quick else 30, arguments.clock)
    report("overhead", rows, BOUNDS, arguments.out)


if __name__ == "__main__":
    main()
