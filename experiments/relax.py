"""Learning to relax: solver settings chosen by bandits along sequences of linear systems.

Three sequences. Successive over-relaxation on Laplacians with random shifts, of high and of low
variance: the bandits see the iterations that their `ω` took and, if contextual, the shift. The
heat equation, stepped by Crank and Nicolson with a coefficient that changes in time, its systems
solved by conjugate gradients with an SSOR preconditioner. A bandit without a context can approach
the best fixed `ω`; with a context the one that is best for each system. Means are over the last
fifth of a sequence.

Then the same inside this engine: `Tuned` chooses among linear solvers along the outer steps of
runs of `hoag`, `maid` and `hyper_cleaning`, and its products are compared with those of the best of
its arms alone, in hindsight. As in the paper all of them solve one sequence of systems: that of a
run which goes by the answers of the first arm. In runs of their own a step that is kept in one and
not in another, by a rounding, soon makes other systems.

Khodak, Chow, Balcan and Talwalkar, "Learning to relax: setting solver parameters across a sequence
of linear system instances" (ICLR 2024).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree, Scalar

from experiments import hoag, hyper_cleaning, maid
from experiments.data import fashion_mnist
from experiments.data.relaxation import Systems, best_relaxation, heat, iterations, poisson
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import ImplicitDifferentiation, Newton
from hypergrad.linear import (
    CG,
    PCG,
    IterativeSolver,
    Jacobi,
    LinearOperator,
    LinearSolution,
    LinearSolver,
    NystromPreconditioner,
    RecyclingCG,
    Tuned,
)
from hypergrad.linear.system import System
from hypergrad.outer import HOAG, Alternating, OuterAlgorithm, run
from strategies import Ordinal, SearchSpace
from strategies.bandits import Bandit, BinnedTsallisINF, ChebCB, TsallisINF

#: Grid of the Laplacians, and of the heat equation; seconds that are simulated.
SIDE, CELLS, SECONDS = 10, 25, 5.0
SHIFTS = (-0.15, 0.65)


def bandits(omegas: np.ndarray, contexts: tuple[float, float]) -> dict[str, Bandit]:
    """Those of the paper."""
    space = SearchSpace({"omega": Ordinal([float(omega) for omega in omegas])})
    return {
        "Tsallis-INF": TsallisINF(space),
        "Tsallis-INF, 5 bins": BinnedTsallisINF(space, contexts),
        "ChebCB": ChebCB(space, contexts),
    }


def play(bandit: Bandit, table: np.ndarray, contexts: np.ndarray, seed: int) -> np.ndarray:
    """The iterations that a bandit pays, one system after the other.

    It is played by its learner: a ledger would give the same arms, and check and keep each round.
    """
    learner, rng = bandit.learner(), np.random.default_rng(seed)
    paid = np.empty(len(table))
    for number, row in enumerate(table):
        context = float(contexts[number]) if bandit.contextual else None
        arm, probability = learner.draw(rng, context)
        paid[number] = row[arm]
        learner.learn(arm, paid[number] - bandit.lowest, probability, context)
    return paid


# -- inside the engine -----------------------------------------------------------------------


ARMS: dict[str, IterativeSolver] = {
    "RecyclingCG": RecyclingCG(),
    "CG": CG(),
    "PCG-Jacobi": PCG(Jacobi(4)),
    "PCG-Nystrom": PCG(NystromPreconditioner(20)),
}


class Played(eqx.Module):
    """What each of several solvers has learned, and its products so far."""

    learned: tuple
    products: Int[Array, " solvers"]


class SideBySide(LinearSolver):
    """Solves each system by all of several solvers, from the same start; the first one's answer."""

    solvers: tuple[IterativeSolver | Tuned, ...]
    state: Played | None = None

    @property
    def tol(self) -> float | Scalar:
        """That of the first."""
        return self.solvers[0].tol

    def check(self, operator: LinearOperator) -> None:
        """See `LinearSolver.check`."""
        for solver in self.solvers:
            solver.check(operator)

    def with_tol(self, tol: float | Scalar) -> Self:
        """See `hypergrad.tolerance.HasTolerance`."""
        solvers = tuple(solver.with_tol(tol) for solver in self.solvers)
        return eqx.tree_at(lambda s: s.solvers, self, solvers)

    def init_state(self, like: PyTree) -> Played:
        """See `LinearSolver.init_state`."""
        learned = tuple(solver.init_state(like) for solver in self.solvers)
        return Played(learned, jnp.zeros(len(self.solvers), jnp.int32))

    def with_state(self, state: PyTree) -> Self:
        """See `LinearSolver.with_state`."""
        return eqx.tree_at(lambda s: s.state, self, state, is_leaf=lambda leaf: leaf is None)

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`."""
        assert self.state is not None
        solutions = [
            solver.with_state(known).solve_scaled(system)
            for solver, known in zip(self.solvers, self.state.learned, strict=True)
        ]
        products = self.state.products + jnp.stack([s.products for s in solutions])
        played = Played(tuple(s.state for s in solutions), products)
        return eqx.tree_at(
            lambda s: s.state, solutions[0], played, is_leaf=lambda leaf: leaf is None
        )


class Run(NamedTuple):
    """An outer run: problem, start and data, and what moves it with a linear solver."""

    parts: tuple
    algorithm: Callable[[Any], OuterAlgorithm]


def whole_data(task: hoag.Task, seed: int) -> Run:
    """A problem of `hoag`, its inner problem solved exactly."""
    parts = (task.problem, task.params, task.hparams, *task.split(seed))
    return Run(parts, lambda linear: HOAG(exact(Newton(), linear)))


def digits(seed: int) -> Run:
    """Logistic regression with a penalty for each of 64 pixels."""
    return whole_data(hoag.logistic(many=True), seed)


def kernel(seed: int) -> Run:
    """Kernel ridge regression, its penalty and its width."""
    return whole_data(hoag.kernel_ridge(), seed)


def photographs(seed: int) -> Run:
    """`maid`: weight and smoothing of total variation, on a crop of 32 x 32 pixels."""
    task = maid.total_variation(maid.photographs(seed, 1, 32)[0])
    parts = (task.problem, task.params, task.hparams, task.train, task.truth)
    solver = maid.Accelerated(task.curvature)
    return Run(parts, lambda linear: HOAG(exact(solver, linear), constraint=task.constraint))


def cleaning(seed: int) -> Run:
    """`hyper_cleaning`: a weight for each of 200 examples, half of them with random labels."""
    rng, count = np.random.default_rng(seed), 200
    source, _ = fashion_mnist()
    rows = rng.permutation(len(source.y))[: 2 * count]
    x, y = hyper_cleaning.features(source.x[rows]), source.y[rows].astype(np.int32)
    labels = np.where(rng.random(count) < 0.5, rng.integers(0, 10, count), y[:count])
    train = {"x": x[:count], "y": jnp.asarray(labels, jnp.int32)}
    validation = {"x": x[count:], "y": jnp.asarray(y[count:])}
    zero = jnp.zeros((x.shape[1], 10), x.dtype)
    parts = (hyper_cleaning.PROBLEM, zero, jnp.zeros(count, x.dtype), train, validation)
    solver = hyper_cleaning.solver(50)
    return Run(
        parts, lambda linear: Alternating(exact(solver, linear.with_tol(1e-3)), optax.adam(0.3))
    )


def exact(solver: Any, linear: LinearSolver) -> ImplicitDifferentiation:
    """Without the error estimate, whose solves are not counted here."""
    return ImplicitDifferentiation(solver, linear, error_estimate=False)


RUNS = {"digits": digits, "kernel": kernel, "photographs": photographs, "cleaning": cleaning}


def products(made: Run, solvers: Sequence[IterativeSolver | Tuned], steps: int) -> list[int]:
    """Products of each of the solvers on all systems of an outer run that the first one drives."""
    algorithm = made.algorithm(SideBySide(tuple(solvers)))
    done: Any = run(made.parts[0], algorithm, *made.parts[1:], steps=steps, every=steps)
    return done.state.estimator_state.linear_state.products.tolist()


@experiment(
    paper="Khodak et al. 2024, arXiv:2310.02246",
    x64=True,
    options=[
        Option("systems", 5000, quick=400, help="linear systems of each sequence"),
        Option("omegas", 20, quick=10, help="arms: ω from the smallest to 1.95"),
        Option("smallest", 1.0, quick=1.5, help="smallest ω"),
        Option("repeats", 2, help="times that each bandit plays a sequence"),
        Option("runs", "digits,photographs,cleaning", quick="digits", help="outer runs of `Tuned`"),
        Option("steps", 60, quick=40, help="their outer steps"),
        Option(
            "solvers", "RecyclingCG,CG,PCG-Jacobi", quick="RecyclingCG,CG", help="arms of `Tuned`"
        ),
    ],
    claims=[
        Claim(
            "tsallis",
            "Tsallis-INF: iterations relative to the best fixed ω, worse variance",
            at_most=1.12,
            quick=2.0,
        ),
        Claim(
            "beyond",
            "ChebCB relative to the best fixed ω, high variance",
            at_most=0.65,
            quick=1.1,
        ),
        Claim(
            "instance",
            "ChebCB relative to the best ω of each system by Young's formula, worse variance",
            at_most=1.15,
            quick=2.0,
        ),
        Claim(
            "heat",
            "heat equation: ChebCB relative to the best fixed ω",
            at_most=0.9,
            quick=1.1,
        ),
        Claim(
            "tuned",
            "Tuned: products relative to the best of its arms on the same systems, in hindsight, "
            "worst run",
            at_most=1.1,
            quick=1.2,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Play the sequences, then run the engine."""
    options = context.options
    rng = np.random.default_rng(options.seed)
    omegas = np.linspace(options.smallest, 1.95, options.omegas)
    last = slice(-max(options.systems // 5, 1), None)
    sequences: dict[str, tuple[Systems, np.ndarray, str, tuple[float, float]]] = {
        f"{kind} variance": (*poisson(options.systems, SIDE, kind, rng), "sor", SHIFTS)
        for kind in ("high", "low")
    }
    moving, coefficients = heat(options.systems, CELLS, SECONDS)
    span = (float(coefficients.min()), float(coefficients.max()))
    sequences["heat equation"] = (moving, coefficients, "ssor", span)

    rows, means, curves = [], {}, {}
    with context.progress("sequences", total=len(sequences)) as bar:
        for name, (systems, contexts, method, span) in sequences.items():
            table = iterations(systems, omegas, method)
            fixed = table[last].mean(axis=0)
            mean = {"best fixed ω": fixed.min(), "best ω of the grid for each": 0.0}
            mean["best ω of the grid for each"] = table[last].min(axis=1).mean()
            if method == "sor":
                ends = Systems(*(part[last] for part in systems))
                best = best_relaxation(ends.diagonal, ends.coupling, SIDE)
                mean["Young's ω for each"] = iterations(ends, best[:, None], method).mean()
            drawn = {}
            for label, bandit in bandits(omegas, span).items():
                paid = [
                    play(bandit, table, contexts, options.seed + i) for i in range(options.repeats)
                ]
                mean[label] = np.mean([p[last].mean() for p in paid])
                drawn[label] = np.mean(paid, axis=0)
            means[name] = mean
            rows += [
                {
                    "sequence": name,
                    "ω": label
                    if label != "best fixed ω"
                    else f"{omegas[fixed.argmin()]:.2f}, best",
                    "iterations": float(value),
                }
                for label, value in mean.items()
            ]
            drawn |= {
                "best fixed ω": table[:, fixed.argmin()].astype(float),
                "best ω of the grid for each": table.min(axis=1).astype(float),
            }
            x = np.arange(1, options.systems + 1)
            curves[name] = {label: Curve(x, np.cumsum(v) / x) for label, v in drawn.items()}
            bar.advance()
    context.table("iterations of a system, mean over the last fifth", rows)
    for name, drawn in curves.items():
        thin = slice(max(options.systems // 100, 1), None, max(options.systems // 200, 1))
        context.plot(
            name.replace(" ", "_"),
            {label: Curve(c.x[thin], c.y[thin]) for label, c in drawn.items()},
            x="systems solved",
            y="iterations, mean so far",
        )
    kinds = [means["high variance"], means["low variance"]]
    context.measure("tsallis", max(m["Tsallis-INF"] / m["best fixed ω"] for m in kinds))
    context.measure("beyond", kinds[0]["ChebCB"] / kinds[0]["best fixed ω"])
    context.measure("instance", max(m["ChebCB"] / m["Young's ω for each"] for m in kinds))
    heated = means["heat equation"]
    context.measure("heat", heated["ChebCB"] / heated["best fixed ω"])
    inside(context)


def inside(context: Context) -> None:
    """`Tuned` against each of its arms."""
    options = context.options
    names = options.runs.split(",")
    arms = {label: ARMS[label] for label in options.solvers.split(",")}
    solvers = arms | {"Tuned": Tuned(list(arms.values()))}
    rows = []
    worst = 0.0
    with context.progress("outer runs", total=len(names)) as bar:
        for name in names:
            made = RUNS[name](options.seed)
            counts = products(made, list(solvers.values()), options.steps)
            spent = dict(zip(solvers, counts, strict=True))
            ratio = spent["Tuned"] / min(spent[label] for label in arms)
            worst = max(worst, ratio)
            rows.append({"run": name, **spent, "Tuned / best arm": ratio})
            bar.advance()
    context.table("products of each solver on all systems of an outer run", rows)
    context.measure("tuned", worst)


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
