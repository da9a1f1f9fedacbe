"""Eleven stochastic bilevel methods on one protocol: who is where after as many oracle calls.

Three problems: the simulated quadratics of benchopt's `benchmark_bilevel`, one penalty per feature
of logistic regression on breast_cancer, and hyper-cleaning of Fashion-MNIST with half of the labels
random. The methods: SOBA, SABA and SRBA (one step for each of params, adjoint and hyperparameters:
plain, with a memory, recursive), MRBO and SUSTAIN (a single loop with momentum), stocBiO and VRBO
(an inner loop and a Neumann series, plain and recursive), F2SA, PBGD and BOME (first derivatives
only) and HyperDistill (online, through the steps). All see mini-batches; what is spent is counted
in examples for which a gradient, a Hessian-vector product or a mixed product was taken.

Each method gets the same tuning: the same pairs of inner and outer step sizes, tried on a problem
of its own. The runs that count are made at the best pair on other data, and compared where the
cheapest of them ends, by the outer loss at the exact inner solution for their hyperparameters.

Dagréou, Moreau, Vaiter and Ablin, "A lower bound and a near-optimal algorithm for bilevel empirical
risk minimization" (2023), figures 1 and 2. Of the others' papers those claims are checked that name
a rival: MRBO and VRBO against stocBiO.
"""

from argparse import Namespace
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jax.typing import ArrayLike
from scipy.stats import rankdata

from experiments.data.bilevel import TASKS, Task
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad.outer import (
    BOME,
    F2SA,
    MRBO,
    PBGD,
    SABA,
    SOBA,
    SRBA,
    SUSTAIN,
    VRBO,
    Alternating,
    Minibatches,
    OuterAlgorithm,
    StepReport,
    StocBiO,
    run,
)
from hypergrad.outer.base import RUNNING
from hypergrad.unrolled import HyperDistill

LOOKS = 16
TRIALS = [(inner, 4.0**power) for inner in (1.0, 0.3) for power in range(-2, 4)]
# Steps of an inner loop, products of a series, steps of an online run.
INNER, PRODUCTS, WINDOW = 10, 10, 50


class Method(NamedTuple):
    """An algorithm, its mini-batches, and about how many calls a step takes."""

    algorithm: OuterAlgorithm
    sampler: Minibatches
    price: int


def counter(params: jax.Array) -> jax.Array:
    """Steps taken so far."""
    return jnp.zeros((), jnp.int32)


def scaled(
    step: jax.Array, exponent: jax.Array, gradient: jax.Array, taken: jax.Array, params: object
) -> tuple[jax.Array, jax.Array]:
    """The update of gradient descent, and the new count."""
    return -step * (taken + 1.0) ** -exponent * gradient, taken + 1


def descent(step: ArrayLike, exponent: float = 0.0) -> optax.GradientTransformation:
    """Gradient descent whose step size is data: a compiled run serves all of them."""
    size = jnp.asarray(step, jnp.float32), jnp.asarray(exponent, jnp.float32)
    return optax.GradientTransformation(counter, Partial(scaled, *size))


def methods(task: Task, inner: float, outer: float) -> dict[str, Method]:
    """The methods with steps `inner` and `outer` times those of the task."""
    a, b, n = jnp.float32(inner * task.inner_step), outer * task.outer_step, task.batch
    keep = {"step_size": a, "constraint": task.constraint}
    blocks = Minibatches(n, n, blocks=True)

    def own(draws: int) -> Minibatches:
        return Minibatches(n, n, policy="independent", fits=draws)

    online = HyperDistill(descent(a), WINDOW)
    return {
        "SOBA": Method(SOBA(descent(b, 0.5), exponent=0.5, **keep), blocks, 4),
        "SOBA constant": Method(SOBA(descent(b), exponent=jnp.float32(0), **keep), blocks, 4),
        "SABA": Method(SABA(descent(b), **keep), blocks, 4),
        "SRBA": Method(SRBA(descent(b), **keep), blocks, 14),
        "MRBO": Method(MRBO(descent(b, 1 / 3), products=PRODUCTS, **keep), own(1 + PRODUCTS), 26),
        "SUSTAIN": Method(SUSTAIN(descent(b, 1 / 3), products=PRODUCTS, **keep), own(PRODUCTS), 15),
        "stocBiO": Method(
            StocBiO(descent(b), inner_steps=INNER, products=PRODUCTS, **keep),
            own(INNER + PRODUCTS),
            INNER + PRODUCTS + 2,
        ),
        "VRBO": Method(
            VRBO(descent(b), inner_steps=3, products=PRODUCTS, **keep),
            own(3 * (1 + PRODUCTS)),
            150,
        ),
        "F2SA": Method(F2SA(descent(b), inner_steps=INNER, **keep), own(INNER), 3 * INNER + 3),
        "PBGD": Method(PBGD(descent(b), inner_steps=INNER, **keep), own(INNER), INNER + 3),
        "BOME": Method(BOME(descent(b), inner_steps=INNER, **keep), own(INNER), INNER + 3),
        "HyperDistill": Method(
            Alternating(online, descent(b), constraint=task.constraint), Minibatches(n, n), 4
        ),
    }


class Run(NamedTuple):
    """Where a run was at its start and at each look: hyperparameters, and what was spent by then.

    - `spent`: examples differentiated.
    - `finished`: it did not break down.
    """

    visited: list[np.ndarray]
    spent: np.ndarray
    finished: bool

    def end(self, task: Task) -> float:
        """The outer loss at the inner solution in the end; infinite if it is none."""
        value = task.value(self.visited[-1])
        return value if self.finished and np.isfinite(value) else np.inf

    def losses(self, task: Task) -> list[float]:
        """The same at the start and at each look."""
        return [*map(task.value, self.visited[:-1]), self.end(task)]


def descend(task: Task, method: Method, calls: int, seed: int) -> Run:
    """A run of about so many mini-batch derivatives."""
    every = max(calls // method.price // LOOKS, 1)
    visited = [np.asarray(task.hparams)]

    def look(report: StepReport) -> None:
        visited.append(np.asarray(report.state.visited))

    table = run(
        task.problem,
        method.algorithm,
        task.params,
        task.hparams,
        task.train,
        task.validation,
        steps=every * LOOKS,
        sampler=method.sampler,
        every=every,
        seed=seed,
        callbacks=[look],
    ).history
    spent = np.cumsum([row["calls"] for row in table]) * task.batch
    at = [min(every * (i + 1), len(table)) - 1 for i in range(len(visited) - 1)]
    return Run(visited, np.concatenate([[1], spent[at]]), table[-1]["stop"] == RUNNING)


class Outcome(NamedTuple):
    """What the runs of one task came to.

    - `calls`: examples differentiated at each look, up to where the cheapest method ends.
    - `losses`: by method, shape `(seeds, looks)`.
    - `steps`: by method, the inner and the outer step size that were chosen.
    """

    calls: np.ndarray
    losses: dict[str, np.ndarray]
    steps: dict[str, tuple[float, float]]

    def ends(self, method: str) -> np.ndarray:
        """Where the seeds end."""
        return self.losses[method][:, -1]

    def sooner(self, method: str, rival: str) -> float:
        """The share of its calls that brings a method to where its rival ends; the median seed."""
        share = self.calls / self.calls[-1]
        reached = self.losses[method] <= self.losses[rival][:, -1:]
        first = [share[row.argmax()] if row.any() else np.inf for row in reached]
        return float(np.median(first))

    def ranks(self) -> np.ndarray:
        """Of the methods, in order, for each seed: 1 is the lowest loss."""
        ends = np.stack([self.ends(method) for method in self.losses])
        return rankdata(ends, axis=0)


def compare(name: str, options: Namespace, advance: Callable[[Task, Method, int], Run]) -> Outcome:
    """Choose the steps of each method on a problem of its own, and run it on the others."""
    other = options.seed + 1000
    practice = TASKS[name](other, options.quick)
    seeds = range(options.seed, options.seed + options.repeats)
    tasks = {seed: TASKS[name](seed, options.quick) for seed in seeds}
    trials = TRIALS[: options.trials]
    runs, steps = {}, {}
    for method in options.methods.split(","):
        tried = [advance(practice, methods(practice, *pair)[method], other) for pair in trials]
        best = trials[int(np.argmin([one.end(practice) for one in tried]))]
        steps[method] = best[0] * practice.inner_step, best[1] * practice.outer_step
        runs[method] = [
            advance(task, methods(task, *best)[method], seed) for seed, task in tasks.items()
        ]
    finished = [one for many in runs.values() for one in many if one.finished]
    calls = np.linspace(1, min(one.spent[-1] for one in finished), LOOKS + 1)

    def over_calls(one: Run, task: Task) -> np.ndarray:
        losses = np.interp(calls, one.spent, one.losses(task))
        return np.nan_to_num(losses, nan=np.inf)

    losses = {
        method: np.stack([over_calls(*pair) for pair in zip(many, tasks.values(), strict=True)])
        for method, many in runs.items()
    }
    return Outcome(calls, losses, steps)


METHODS = "SOBA,SOBA constant,SABA,SRBA,MRBO,SUSTAIN,stocBiO,VRBO,F2SA,PBGD,BOME,HyperDistill"


@experiment(
    paper="Dagréou, Moreau, Vaiter and Ablin 2023, arXiv:2302.08766",
    options=[
        Option("calls", 30_000, quick=20_000, help="mini-batch derivatives of a run"),
        Option("trials", len(TRIALS), quick=4, help="pairs of step sizes that each method tries"),
        Option("repeats", 5, quick=1, help="seeds"),
        Option("tasks", ",".join(TASKS), quick="quadratics", help="comma-separated"),
        Option(
            "methods",
            METHODS,
            quick="SOBA,SOBA constant,SABA,SRBA,stocBiO,MRBO,VRBO",
            help="comma-separated",
        ),
    ],
    claims=[
        Claim(
            "all_descend",
            "every method ends below where it starts (largest ratio of median outer losses)",
            at_most=0.9,
        ),
        Claim(
            "variance_reduction",
            "SABA and SRBA reach where SOBA ends on the quadratics in half of its calls (larger "
            "share)",
            at_most=0.5,
        ),
        Claim(
            "exact",
            "where SOBA with constant steps stalls on the quadratics, SABA and SRBA go on (largest "
            "ratio of suboptimalities)",
            at_most=0.01,
            quick=0.5,
        ),
        Claim(
            "momentum",
            "MRBO reaches where stocBiO ends on the quadratics in fewer calls (share of them)",
            at_most=1.0,
        ),
        Claim(
            "recursion",
            "VRBO reaches where stocBiO ends on the quadratics in fewer calls (share of them)",
            at_most=1.0,
        ),
        Claim(
            "ranking",
            "SABA or SRBA has the lowest mean rank (its distance to the best of the others)",
            at_most=0.0,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Compare on each task, then rank over all."""
    options = context.options
    names, rivals = options.tasks.split(","), options.methods.split(",")
    found: dict[str, Outcome] = {}
    total = len(names) * len(rivals) * (options.trials + options.repeats)
    with context.progress("runs", total=total) as bar:

        def advance(task: Task, method: Method, seed: int) -> Run:
            bar.advance()
            return descend(task, method, options.calls, seed)

        for name in names:
            found[name] = compare(name, options, advance)
    for name, outcome in found.items():
        context.plot(
            f"{name}_loss",
            {m: Curve.of_runs(each, outcome.calls) for m, each in outcome.losses.items()},
            x="examples differentiated",
            y="suboptimality" if name == "quadratics" else "outer loss at the inner solution",
            y_scale="log" if name == "quadratics" else "linear",
            title=name,
        )
    rows = [
        {
            "task": name,
            "method": method,
            "inner step": outcome.steps[method][0],
            "outer step": outcome.steps[method][1],
            "median end": float(np.median(outcome.ends(method))),
            "best seed": float(outcome.ends(method).min()),
            "worst seed": float(outcome.ends(method).max()),
        }
        for name, outcome in found.items()
        for method in rivals
    ]
    context.table("outer loss at equal calls", rows)
    ranks = np.concatenate([outcome.ranks() for outcome in found.values()], axis=1)
    table = [
        {
            "method": m,
            "mean rank": float(r.mean()),
            "lowest": float(r.min()),
            "highest": float(r.max()),
        }
        for m, r in zip(rivals, ranks, strict=True)
    ]
    context.table("ranks", sorted(table, key=lambda row: row["mean rank"]))

    starts = {name: np.median(outcome.losses[rivals[0]][:, 0]) for name, outcome in found.items()}
    context.measure("all_descend", max(row["median end"] / starts[row["task"]] for row in rows))
    simulated = found["quadratics"]
    end = {method: np.median(simulated.ends(method)) for method in rivals}
    reduced = ("SABA", "SRBA")
    context.measure("variance_reduction", max(simulated.sooner(m, "SOBA") for m in reduced))
    context.measure("exact", max(end[m] / end["SOBA constant"] for m in reduced))
    context.measure("momentum", simulated.sooner("MRBO", "stocBiO"))
    context.measure("recursion", simulated.sooner("VRBO", "stocBiO"))
    mean = {row["method"]: row["mean rank"] for row in table}
    others = min(rank for method, rank in mean.items() if method not in reduced)
    context.measure("ranking", min(mean[m] for m in reduced) - others)


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
