"""What the library costs over the same algorithm written out by hand in JAX.

`python -m benchmarks.overhead [--quick] [--problems NAME ...] [--out DIR]` times a jitted
hypergradient of `ImplicitDifferentiation` against a jitted function that does nothing but the
arithmetic: gradient of the outer loss, one linearisation, K Hessian-vector products of the Neumann
series or of conjugate gradient, one mixed product. Columns:

- `time`: median of the time ratios, round by round, taken in turn; at most 1.10 is wanted;
- `products`: time in units of `K + 2` Hessian-vector products; at most 1.15 is wanted for the
  network;
- `memory`: ratio of the programs' peak memory as XLA states it; at most 1.2 is wanted;
- `compile`: time to trace and compile relative to one Hessian-vector product and one training step,
  each with nothing left of what was traced before, medians of several rounds; at most 2 is wanted
  for the network;
- `difference`: relative distance of the two hypergradients.

The error estimate is switched off: the hand-written code has none.

The problem `transformer` (not run unless asked for; `--sequences` and `--length` make its batches
smaller) has 100 million parameters in bfloat16, and Gauss-Newton products. Here the hand-written
code, like the library, keeps the vectors of the solve in float32. `off float32` is the distance of
the library's hypergradient from the same with everything in float32, `off float32, plain` that of
hand-written code whose solve is in bfloat16 like the model.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from benchmarks.measure import compile_seconds, interleaved, options, peak_bytes, ratio, report
from benchmarks.problems import Case, digits, mlp
from benchmarks.transformer import SMALL, Size, transformer
from hypergrad import CG, GaussNewton, ImplicitDifferentiation
from hypergrad.linear import LinearSolver, Neumann
from hypergrad.linear.vector import widen

BOUNDS = {"time": 1.10, "products": 1.15, "memory": 1.2, "compile": 2.0}


def like(params: PyTree, v: PyTree) -> PyTree:
    """In the types of the parameters."""
    return jax.tree.map(lambda a, b: b.astype(a.dtype), params, v)


def linearized(case: Case, params: PyTree, hparams: PyTree, batch: PyTree) -> Callable:
    """The products of the case's curvature, from one linearisation."""
    curvature = case.curvature
    if not isinstance(curvature, GaussNewton):
        return jax.linearize(lambda w: jax.grad(case.problem.inner)(w, hparams, batch), params)[1]
    outputs, forward = jax.linearize(lambda w: curvature.outputs(w, hparams, batch), params)
    backward = jax.linear_transpose(forward, params)
    _, curve = jax.linearize(jax.grad(lambda o: curvature.loss(o, hparams, batch)), outputs)
    _, decay = jax.linearize(jax.grad(lambda w: curvature.penalty(w, hparams)), params)

    def product(v: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, backward(curve(forward(v)))[0], decay(v))

    return product


def by_hand(case: Case, solve: Callable, accumulated: Callable = widen) -> Callable:
    """The hypergradient as one would write it for this problem alone.

    `accumulated` says in which types the solve keeps its vectors.
    """

    def hypergradient(
        params: PyTree, hparams: PyTree, inner_batch: PyTree, outer_batch: PyTree
    ) -> tuple[Scalar, PyTree]:
        value, (g, direct) = jax.value_and_grad(case.problem.outer, argnums=(0, 1))(
            params, hparams, outer_batch
        )
        product = linearized(case, params, hparams, inner_batch)
        q = like(params, solve(lambda v: accumulated(product(like(params, v))), accumulated(g)))

        def slope(h: PyTree) -> Scalar:
            def loss(w: PyTree) -> Scalar:
                return case.problem.inner(w, h, inner_batch)

            return jax.jvp(loss, (params,), (q,))[1]

        return value, jax.tree.map(jnp.subtract, direct, jax.grad(slope)(hparams))

    return hypergradient


def neumann_by_hand(products: int, step: float, product: Callable, g: PyTree) -> PyTree:
    """`step Σ (I − step H)ʲ g`, in a loop."""

    def body(_: int, carry: tuple) -> tuple:
        v, total = carry
        v = jax.tree.map(lambda a, b: a - step * b, v, product(v))
        return v, jax.tree.map(jnp.add, total, v)

    _, total = jax.lax.fori_loop(0, products, body, (g, g))
    return jax.tree.map(lambda a: step * a, total)


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
        linear_solver=solver, curvature=case.curvature, warm_start=False, error_estimate=False
    )
    state = estimator.init(case.problem, case.params, case.hparams, case.inner_batch)

    def hypergradient(
        params: PyTree, hparams: PyTree, inner_batch: PyTree, outer_batch: PyTree
    ) -> tuple[Scalar, PyTree]:
        here = eqx.tree_at(lambda s: s.params, state, params)
        result = estimator.hypergradient(case.problem, here, hparams, inner_batch, outer_batch)
        return result.value, result.grad

    return hypergradient


def run(case: Case, repeats: int, compilations: int, clock: Callable[[], float]) -> list[dict]:
    """The rows of one problem."""

    def product(params: PyTree, hparams: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        return linearized(case, params, hparams, batch)(v)

    def train(params: PyTree, hparams: PyTree, batch: PyTree) -> PyTree:
        g = jax.grad(case.problem.inner)(params, hparams, batch)
        return jax.tree.map(lambda a, b: a - case.step * b, params, g)

    here = (case.params, case.hparams, case.inner_batch)
    args = (*here, case.outer_batch)
    methods = {
        "neumann 5": (5, partial(neumann_by_hand, 5, case.step), Neumann(5, step=case.step)),
        "neumann 20": (20, partial(neumann_by_hand, 20, case.step), Neumann(20, step=case.step)),
        "cg 10": (10, partial(cg_by_hand, 10), CG(tol=0.0, max_steps=10)),
    }
    programs: dict[str, tuple] = {
        "product": (product, *here, case.params),
        "train": (train, *here),
    }
    for name, (_, solve, solver) in methods.items():
        programs |= {
            f"{name}, hand": (by_hand(case, solve), *args),
            f"{name}, library": (by_library(case, solver), *args),
        }
    seconds, compiled = compile_afresh(programs, compilations, clock)
    unit = seconds["product"] + seconds["train"]
    rows = []
    for name, (count, solve, _) in methods.items():
        reference, library = compiled[f"{name}, hand"], compiled[f"{name}, library"]
        times = interleaved(
            {
                "hand": partial(reference, *args),
                "library": partial(library, *args),
                "product": partial(compiled["product"], *here, case.params),
            },
            repeats=repeats,
            clock=clock,
        )
        got = library(*args)
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
                "compile": seconds[f"{name}, library"] / unit,
                "compile by hand": seconds[f"{name}, hand"] / unit,
                "difference": distance(got, reference(*args)),
                **precision(case, solve, got),
            }
        )
    return rows


def compile_afresh(
    programs: dict[str, tuple], rounds: int, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, Callable]]:
    """Compile each `(function, *args)`, in turn, with nothing left of what was traced before.

    **Returns:** the median seconds over the rounds, and the compiled programs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    compiled = {}
    for _ in range(rounds):
        for name, program in programs.items():
            jax.clear_caches()
            taken, compiled[name] = compile_seconds(*program, clock=clock)
            seconds[name].append(taken)
    return {name: median(taken) for name, taken in seconds.items()}, compiled


def distance(got: tuple[Scalar, PyTree], expected: tuple[Scalar, PyTree]) -> float:
    """Relative Euclidean distance of two hypergradients."""
    gap = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), got[1], expected[1])
    size = jax.tree.map(lambda a: jnp.sum(a**2), expected[1])
    return float((sum(jax.tree.leaves(gap)) / sum(jax.tree.leaves(size))) ** 0.5)


def precision(case: Case, solve: Callable, got: tuple[Scalar, PyTree]) -> dict[str, float]:
    """How far from a solution in float32 the library is, and a solve in bfloat16."""
    args = (case.params, case.hparams, case.inner_batch, case.outer_batch)
    if all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(case.params)):
        return {}
    truth = jax.jit(by_hand(case, solve))(widen(case.params), *args[1:])
    plain = jax.jit(by_hand(case, solve, lambda v: v))(*args)
    return {"off float32": distance(got, truth), "off float32, plain": distance(plain, truth)}


def main() -> None:
    """Run the problems and print the table."""
    parser = options(__doc__.splitlines()[0])
    problems = ("digits", "mlp", "transformer")
    parser.add_argument(
        "--problems", nargs="+", choices=problems, default=problems[:2], help="which to time"
    )
    parser.add_argument("--sequences", type=int, default=8, help="in a batch of the transformer")
    parser.add_argument("--length", type=int, default=256, help="of its sequences, in tokens")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    quick, clock = arguments.quick, arguments.clock
    rows = []
    if "digits" in arguments.problems:
        rows += run(digits(), 20 if quick else 100, 3 if quick else 7, clock)
    if "mlp" in arguments.problems:
        rows += run(mlp(), 5 if quick else 30, 3 if quick else 7, clock)
    if "transformer" in arguments.problems:
        size = SMALL if quick else Size(sequences=arguments.sequences, length=arguments.length)
        rows += run(transformer(size), 3, 1, clock)
    report("overhead", {"overhead": rows}, BOUNDS, arguments)


if __name__ == "__main__":
    main()
