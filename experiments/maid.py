"""MAID: how accurately to solve, and how far to step, from error estimates alone.

A random quadratic problem with known constants; denoising of photographs by total variation
(weight and smoothing learnt) and by a field of experts (filters and weights learnt); multinomial
logistic regression on digits. MAID against HOAG's schedules and against fixed accuracies. The cost
is the number of inner iterations, all of accelerated gradient descent, or of those and all products
and gradients: of the linear systems, of corrected losses, and of the estimates of the error where
no constants are known.

MAID takes quasi-Newton steps on all four problems; "as published" are gradient steps whose size
doubles after a success. The quadratic and total variation are started from accuracies and step
sizes that differ by three orders of magnitude: MAID is meant not to care. The photographs of
training and test are different ones. "Fixed" has the step rule of HOAG, and one accuracy
throughout; "same steps" is a fixed accuracy with quasi-Newton steps, so that what adaptivity saves
can be told from what the steps save. The loss of a method is that of an exact solve at the
hyperparameters it has come to, outside of its account: its own rough solution may have a lower one
by accident.

Salehi, Mukherjee, Roberts and Ehrhardt, "An adaptively inexact first-order method for bilevel
optimization with application to hyperparameter learning" (2024), section 4.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar

from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.hoag import logistic
from hypergrad import CG, BilevelProblem, ImplicitDifferentiation, InnerSolution, InnerSolver
from hypergrad.implicit import ErrorEstimate
from hypergrad.linear import vector
from hypergrad.outer import HOAG, MAID, Box, OuterAlgorithm, QuasiNewton, Smoothness, run

NOISE = 0.1
# First accuracies and step sizes that MAID is started between, three orders of magnitude each.
ACCURACIES, SIZES = (1e-1, 1e-4), (1e-2, 10.0)
# On these problems, for these claims.
ROBUST = {"quadratic": "robust_both", "tv": "robust_real"}


class Accelerated(InnerSolver):
    """Nesterov's method for known curvature bounds, to `‖∂f/∂w‖ <= tol`.

    **Arguments:**

    - `curvature`: `hparams -> (smallest, largest)` eigenvalue of the inner Hessian.
    - `tol`, `max_steps`: when to stop.
    """

    curvature: Callable
    tol: float | Scalar = 1e-6
    max_steps: int = 20_000

    def with_tol(self, tol: float | Scalar) -> "Accelerated":
        """See `hypergrad.HasTolerance`."""
        return replace(self, tol=tol)

    def run(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batch: PyTree,
        *,
        state: PyTree | None = None,
        key: Array | None = None,
    ) -> InnerSolution:
        """See `InnerSolver.run`."""
        low, high = self.curvature(hparams)
        root = jnp.sqrt(low / high)
        momentum = (1 - root) / (1 + root)
        slope = jax.grad(lambda w: problem.inner_loss(w, hparams, batch, key)[0])

        def unfinished(carry: tuple) -> Array:
            return (carry[4] > self.tol) & (carry[3] < self.max_steps)

        def body(carry: tuple) -> tuple:
            w, ahead, gradient, count, _ = carry
            new = vector.axpy(-1 / high, gradient, ahead)
            ahead = vector.axpy(momentum, vector.sub(new, w), new)
            gradient = slope(ahead)
            # The gradient is measured at the extrapolated point, which is then also the answer.
            return new, ahead, gradient, count + 1, vector.norm(gradient)

        gradient = slope(params)
        start = (params, params, gradient, jnp.ones((), jnp.int32), vector.norm(gradient))
        _, point, _, count, residual = jax.lax.while_loop(unfinished, body, start)
        return InnerSolution(point, None, count, residual)


class Task(NamedTuple):
    """A problem with its data, start, feasible set, inner curvature, and constants if known."""

    problem: BilevelProblem
    train: PyTree
    truth: PyTree
    params: PyTree
    hparams: PyTree
    constraint: PyTree
    curvature: Callable
    smoothness: Smoothness | None = None


# -- the problems ----------------------------------------------------------------------------


def quadratic(seed: int) -> Task:
    """300 inner and 30 outer variables, all constants known."""
    inner_size, outer_size = 300, 30
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(inner_size, inner_size)))[0]
    a = jnp.asarray(basis @ np.diag(np.linspace(1.0, 50.0, inner_size)) @ basis.T)
    b = jnp.asarray(rng.normal(size=(inner_size, outer_size)) / np.sqrt(outer_size))
    target = jnp.asarray(rng.normal(size=inner_size))
    problem = BilevelProblem(
        lambda w, h, _: 0.5 * w @ (a @ w) - w @ (b @ h),
        lambda w, h, _: 0.5 * jnp.sum((w - target) ** 2) + 0.05 * jnp.sum(h**2),
    )
    constants = Smoothness(1.0, float(np.linalg.norm(np.asarray(b), 2)), 1.0)
    start = jnp.zeros(inner_size), jnp.full(outer_size, 3.0)
    return Task(problem, None, None, *start, None, lambda h: (1.0, 50.0), constants)


def photographs(seed: int, count: int, size: int) -> tuple[dict, dict]:
    """Noisy and clean grey crops: of a temple to train on, of a flower to test on."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    parts = []
    for image in load_sample_images().images:
        grey = image.mean(axis=2)[::2, ::2] / 255
        corners = [(rng.integers(0, grey.shape[0] - size), rng.integers(0, grey.shape[1] - size))]
        while len(corners) < count:
            corners.append(
                (rng.integers(0, grey.shape[0] - size), rng.integers(0, grey.shape[1] - size))
            )
        clean = np.stack([grey[i : i + size, j : j + size] for i, j in corners])
        noisy = clean + NOISE * rng.normal(size=clean.shape)
        parts.append({"noisy": jnp.asarray(noisy), "clean": jnp.asarray(clean)})
    return parts[0], parts[1]


def differences(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Forward differences down and across, zero at the far edges."""
    down = jnp.pad(images[:, 1:] - images[:, :-1], ((0, 0), (0, 1), (0, 0)))
    across = jnp.pad(images[:, :, 1:] - images[:, :, :-1], ((0, 0), (0, 0), (0, 1)))
    return down, across


def mean_square(w: jax.Array, hparams: PyTree, batch: dict) -> jax.Array:
    """Outer loss: half the mean squared error."""
    return 0.5 * jnp.mean((w - batch["clean"]) ** 2)


def total_variation(data: dict) -> Task:
    """Log-weight and log-smoothing of total variation; losses are means over pixels."""
    pixels = data["noisy"].size

    def inner(w: jax.Array, h: dict, batch: dict) -> jax.Array:
        down, across = differences(w)
        roughness = jnp.sqrt(down**2 + across**2 + jnp.exp(2 * h["smoothing"]))
        return (
            0.5 * jnp.sum((w - batch["noisy"]) ** 2) + jnp.exp(h["weight"]) * jnp.sum(roughness)
        ) / pixels

    def curvature(h: dict) -> tuple:
        return 1 / pixels, (1 + 8 * jnp.exp(h["weight"] - h["smoothing"])) / pixels

    start = {"weight": jnp.asarray(-6.0), "smoothing": jnp.asarray(-2.0)}
    box = Box({"weight": -9.0, "smoothing": -5.0}, {"weight": 0.0, "smoothing": 0.0})
    problem = BilevelProblem(inner, mean_square)
    return Task(problem, data, data, data["noisy"], start, box, curvature)


def experts(data: dict) -> Task:
    """Eight 3 x 3 filters and their log-weights, each expert a smoothed absolute value."""
    pixels, smooth = data["noisy"].size, 0.05

    def responses(w: jax.Array, filters: jax.Array) -> jax.Array:
        # A matrix product over patches: convolutions in float64 are slow on a processor.
        rows, columns = w.shape[1] - 2, w.shape[2] - 2
        patches = [w[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
        return jnp.stack(patches, axis=-1) @ filters.reshape(-1, 9).T

    def inner(w: jax.Array, h: dict, batch: dict) -> jax.Array:
        size = jnp.sqrt(responses(w, h["filters"]) ** 2 + smooth**2)
        expert = jnp.sum(jnp.exp(h["weights"]) * size)
        return (0.5 * jnp.sum((w - batch["noisy"]) ** 2) + expert) / pixels

    def curvature(h: dict) -> tuple:
        norms = jnp.sum(jnp.abs(h["filters"]), axis=(1, 2)) ** 2
        return 1 / pixels, (1 + jnp.sum(jnp.exp(h["weights"]) * norms) / smooth) / pixels

    waves = np.cos(np.pi / 3 * np.outer(np.arange(3), np.arange(3) + 0.5))
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    filters = np.stack([np.outer(waves[i], waves[j]) for i in range(3) for j in range(3)][1:])
    start = {"filters": jnp.asarray(filters), "weights": jnp.full(8, -6.0)}
    box = Box({"filters": -2.0, "weights": -9.0}, {"filters": 2.0, "weights": -1.0})
    problem = BilevelProblem(inner, mean_square)
    return Task(problem, data, data, data["noisy"], start, box, curvature)


def digits(seed: int) -> Task:
    """Multinomial logistic regression, one penalty per pixel."""
    task = logistic(many=True)
    train, validation = task.split(seed)
    x = np.asarray(train["x"])
    largest = 0.5 * np.linalg.norm(x, 2) ** 2 / len(x)

    def curvature(h: jax.Array) -> tuple:
        return jnp.exp(jnp.min(h)), largest + jnp.exp(jnp.max(h))

    start = jnp.full_like(task.hparams, -1.0)
    box = Box(-6.0, 2.0)
    return Task(task.problem, train, validation, task.params, start, box, curvature)


# -- the experiment --------------------------------------------------------------------------


def estimator(task: Task, *, errors: bool) -> ImplicitDifferentiation:
    """Implicit differentiation with the task's own inner solver.

    That an error is below half of the hypergradient can be told from solves to one digit.
    """
    return ImplicitDifferentiation(
        Accelerated(task.curvature),
        CG(max_steps=500),
        error_estimate=ErrorEstimate(CG(tol=0.1, max_steps=500)) if errors else False,
    )


def adaptive(task: Task, *start: float, metric: QuasiNewton | None) -> MAID:
    """MAID, by the task's constants or by estimates.

    **Arguments:**

    - `start`: first inner and linear tolerance, and first step size.
    """
    own = estimator(task, errors=task.smoothness is None)
    first = (jnp.asarray(x) for x in start)
    return MAID(own, task.smoothness, *first, metric=metric, constraint=task.constraint)


class Trace(NamedTuple):
    """By outer step: inner iterations, those and the products, and the best loss; and the end."""

    iterations: np.ndarray
    calls: np.ndarray
    losses: np.ndarray
    hparams: PyTree

    def until(self, target: float) -> tuple[float, float]:
        """Iterations, and calls, until the loss was at or below that; infinite if it never was."""
        inside = np.flatnonzero(self.losses <= target)
        if not inside.size:
            return np.inf, np.inf
        return float(self.iterations[inside[0]]), float(self.calls[inside[0]])


def trace(task: Task, algorithm: OuterAlgorithm, steps: int) -> Trace:
    """Run the algorithm and keep account."""
    parts = (task.params, task.hparams, task.train, task.truth)
    visited: list[PyTree] = []
    look = lambda report: visited.append(report.state.visited)  # noqa: E731
    result = run(task.problem, algorithm, *parts, steps=steps, callbacks=[look])
    columns = ("inner_iterations", "calls")
    table = np.array([[row[column] for column in columns] for row in result.history])
    losses = _exact_losses(task, jax.tree.map(lambda *leaves: jnp.stack(leaves), *visited))
    iterations, spent = np.cumsum(table, axis=0).T
    return Trace(iterations, spent, np.minimum.accumulate(losses), result.hparams)


@eqx.filter_jit
def _exact_losses(task: Task, visited: PyTree) -> jax.Array:
    """The outer loss at each of the points, of inner solutions to 1e-9 of the first gradient."""
    slope = jax.grad(task.problem.inner)(task.params, task.hparams, task.train)
    solver = Accelerated(task.curvature, tol=1e-9 * vector.norm(slope))

    def at(w: PyTree, point: PyTree) -> tuple[PyTree, jax.Array]:
        w = solver.run(task.problem, w, point, task.train).params
        return w, task.problem.outer(w, point, task.truth)

    return jax.lax.scan(at, task.params, visited)[1]


def psnr(images: jax.Array, truth: jax.Array) -> float:
    """Peak signal-to-noise ratio in dB, pixels in [0, 1]."""
    return float(-10 * jnp.log10(jnp.mean((images - truth) ** 2)))


def unadaptive(task: Task, schedule: str, metric: QuasiNewton | None = None) -> HOAG:
    """HOAG with one of its schedules, or with one tolerance throughout."""
    named = schedule.isalpha()
    tolerance = schedule if named else lambda step: float(schedule)
    rough = estimator(task, errors=False)
    return HOAG(rough, tolerance, metric=metric, constraint=task.constraint)


REGULARISERS = {"tv": total_variation, "experts": experts}


@experiment(
    paper="Salehi, Mukherjee, Roberts and Ehrhardt 2024, arXiv:2308.10098",
    x64=True,
    options=[
        Option(
            "tasks",
            "quadratic,tv,experts,digits",
            quick="quadratic,tv,experts",
            help="comma-separated",
        ),
        Option(
            "raced",
            "quadratic,tv,experts,digits",
            quick="quadratic,tv",
            help="those against others",
        ),
        Option("steps", 60, quick=15, help="outer steps; twice as many of MAID's"),
        Option("schedules", "exponential,cubic,1e-1", quick="exponential", help="of HOAG"),
        Option("starts", 3, quick=2, help="initial accuracies, and for each so many step sizes"),
        Option("images", 3, quick=1, help="training images"),
        Option("size", 48, quick=16, help="side of the images, pixels"),
    ],
    claims=[
        Claim(
            "robust",
            "quadratic: largest over smallest cost to a gap of 1e-2, over initial accuracies three "
            "orders of magnitude apart, worst initial step size",
            at_most=1.5,
        ),
        Claim(
            "robust_both",
            "the same over accuracies and step sizes together, each three orders apart",
            at_most=2.0,
        ),
        Claim(
            "robust_real",
            "total variation: largest over smallest cost to the loss of a fixed accuracy of 1e-8 "
            "(+1 %), over accuracies and step sizes together, each three orders apart",
            at_most=2.0,
            # Few pixels take few iterations, and the first accuracy is a larger share of them.
            quick=3.0,
            when=lambda options: "tv" in options.raced.split(","),
        ),
        Claim(
            "cheaper",
            "inner iterations relative to a fixed accuracy of 1e-8 until the loss that it ends "
            "with (+1 %), worst problem",
            at_most=1 / 3,
        ),
        Claim(
            "cheaper_all",
            "the same with all products and gradients counted, those of error estimates, too",
            at_most=1 / 3,
            # And so are the estimates of the error.
            quick=1.0,
        ),
        Claim(
            "cheaper_steps",
            "that relative to a fixed accuracy of 1e-8 with the same quasi-Newton steps",
            at_most=1 / 2,
            quick=1.5,
        ),
        *(
            Claim(
                f"psnr_{name}",
                f"{text}: gain over the noisy test images, dB",
                at_least=3.0,
                when=lambda options, name=name: name in options.tasks.split(","),
            )
            for name, text in (("tv", "total variation"), ("experts", "field of experts"))
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Run the methods on each problem."""
    options = context.options
    names, raced = options.tasks.split(","), options.raced.split(",")
    schedules = options.schedules.split(",")
    train, test = photographs(options.seed, options.images, options.size)
    makers: dict[str, Callable[[], Task]] = {
        "quadratic": lambda: quadratic(options.seed),
        **{name: lambda make=make: make(train) for name, make in REGULARISERS.items()},
        "digits": lambda: digits(options.seed),
    }
    tasks = {name: makers[name]() for name in dict.fromkeys(["quadratic", *names])}
    rows, ratios = [], []
    learnt: dict[str, PyTree] = {}
    targets = {"quadratic": _quadratic_best(tasks["quadratic"]) + 1e-2}
    accuracies, sizes = (
        np.geomspace(*ends, options.starts).tolist() for ends in (ACCURACIES, SIZES)
    )
    starts = [(accuracy, size) for accuracy in accuracies for size in sizes]
    total = len(names) + (len(schedules) + 3) * len(raced) + 2 * len(starts)
    with context.progress("runs", total=total) as bar:
        for name in names:
            task = tasks[name]
            algorithms: dict[str, OuterAlgorithm] = {
                "MAID": adaptive(task, 0.1, 0.1, 0.1, metric=QuasiNewton())
            }
            if name in raced:
                algorithms |= {
                    "MAID, as published": adaptive(task, 0.1, 0.1, 0.1, metric=None),
                    **{
                        f"HOAG, {each}" if each.isalpha() else f"fixed {each}": unadaptive(
                            task, each
                        )
                        for each in schedules
                    },
                    "fixed 1e-8": unadaptive(task, "1e-8"),
                    "fixed 1e-8, same steps": unadaptive(task, "1e-8", QuasiNewton()),
                }
            traces: dict[str, Trace] = {}
            for label, algorithm in algorithms.items():
                # A step of MAID costs a fraction of an exact one; iterations are compared.
                steps = options.steps * (2 if isinstance(algorithm, MAID) else 1)
                traces[label] = trace(task, algorithm, steps)
                bar.advance(incumbent=traces[label].losses[-1])
            if name in REGULARISERS:
                learnt[name] = traces["MAID"].hparams
            if name not in raced:
                continue
            best = min(found.losses[-1] for found in traces.values())
            target = traces["fixed 1e-8"].losses[-1] * 1.01
            targets.setdefault(name, target)
            costs = {label: found.until(target) for label, found in traces.items()}
            iterations, calls = np.divide(costs["MAID"], costs["fixed 1e-8"])
            ratios.append(
                (iterations, calls, costs["MAID"][1] / costs["fixed 1e-8, same steps"][1])
            )
            context.plot(
                f"{name}_loss",
                {label: Curve(found.calls, found.losses) for label, found in traces.items()},
                x="inner iterations, products and gradients",
                y="outer loss",
                x_scale="log",
                title=name,
            )
            rows += [
                {
                    "problem": name,
                    "method": label,
                    "final loss": found.losses[-1],
                    "above the best": found.losses[-1] - best,
                    "inner iterations to the exact one's loss": costs[label][0],
                    "with products": costs[label][1],
                }
                for label, found in traces.items()
            ]

        cost: dict[str, dict[tuple[float, float], float]] = {}
        for name in (each for each in ROBUST if each in targets):
            cost[name] = {}
            for accuracy, size in starts:
                algorithm = adaptive(tasks[name], accuracy, accuracy, size, metric=QuasiNewton())
                found = trace(tasks[name], algorithm, 2 * options.steps)
                cost[name][accuracy, size] = found.until(targets[name])[1]
                bar.advance(incumbent=cost[name][accuracy, size])
    context.table("outer loss and cost", rows)
    context.table(
        "cost by initial accuracy and step size",
        [
            {"problem": name, "accuracy": a, "step size": s, "cost": c}
            for name, costs in cost.items()
            for (a, s), c in costs.items()
        ],
    )
    by_size = [[cost["quadratic"][accuracy, size] for accuracy in accuracies] for size in sizes]
    context.measure("robust", max(max(costs) / min(costs) for costs in by_size))
    for name, costs in cost.items():
        context.measure(ROBUST[name], max(costs.values()) / min(costs.values()))
    keys = ("cheaper", "cheaper_all", "cheaper_steps")
    for key, value in zip(keys, np.max(ratios, axis=0), strict=True):
        context.measure(key, float(value))
    for name, gain in _show(context, learnt, test).items():
        context.measure(f"psnr_{name}", gain)


def _quadratic_best(task: Task) -> float:
    """The least outer loss, by linear algebra."""

    def value(h: jax.Array) -> jax.Array:
        hessian = jax.hessian(task.problem.inner)(task.params, h, None)
        slope = jax.grad(task.problem.inner)(jnp.zeros_like(task.params), h, None)
        return task.problem.outer(-jnp.linalg.solve(hessian, slope), h, None)

    zero = jnp.zeros_like(task.hparams)
    curvature = jax.hessian(value)(zero)
    return float(value(-jnp.linalg.solve(curvature, jax.grad(value)(zero))))


def _show(context: Context, learnt: dict[str, PyTree], test: dict) -> dict[str, float]:
    """Denoise the test images with what was learnt, draw the first, return the gains in dB."""
    if not learnt:
        return {}
    pictures = {"clean": test["clean"], "noisy": test["noisy"]}
    for name, hparams in learnt.items():
        task = REGULARISERS[name](test)
        solver = Accelerated(task.curvature, tol=1e-8)
        pictures[name] = solver.run(task.problem, test["noisy"], hparams, test).params
    quality = {name: psnr(images, test["clean"]) for name, images in pictures.items()}
    context.table(
        "test images, another photograph than in training",
        [{"images": name, "PSNR, dB": value} for name, value in quality.items() if name != "clean"],
    )
    with context.figure("denoised", width=2.4 * len(pictures), height=2.7) as figure:
        panels = figure.subplots(1, len(pictures))
        for panel, (name, images) in zip(panels, pictures.items(), strict=True):
            panel.imshow(np.asarray(images[0]), cmap="gray", vmin=0, vmax=1)
            panel.set_title(f"{name} {quality[name]:.1f} dB" if name != "clean" else name)
            panel.axis("off")
    return {name: quality[name] - quality["noisy"] for name in learnt}


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
