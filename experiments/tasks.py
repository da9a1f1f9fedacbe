"""One penalty for many tasks: how many must be seen for tasks that are not.

A task is to tell two digits apart from forty images: twenty to train a ridge regression, twenty to
validate it. One penalty is tuned on the mean validation loss of a few tasks and judged on fresh
ones, against the best penalty for those. The regret, and the gap between the loss on the tasks seen
and on those not seen, fall with the number of tasks as the theory of tuning across tasks says.
Hypergradients find the penalty in a few evaluations of all tasks at once, and a detector finds
where a dual function has a kink.

Balcan, Nguyen and Sharma, "Sample complexity of data-driven tuning of model hyperparameters in
neural networks with structured parameter-dependent dual function" (2025).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem, FunctionSolver, ImplicitDifferentiation, hypergradient
from hypergrad.linear import CG, Dense
from hypergrad.outer import Alternating, run
from hypergrad.tasks import find_breaks, over_tasks, task_bound

#: Log penalties that are compared.
GRID = np.linspace(-8.0, 4.0, 101)
KINK = 0.3
#: Evaluations of the hypergradient that a run may take.
EVALUATIONS = 10
#: Numbers of tasks that are seen, and the most.
COUNTS = [1, 2, 4, 8, 16, 32]
MOST = COUNTS[-1]


def squared(w: jax.Array, log_penalty: jax.Array, batch: tuple) -> jax.Array:
    """Outer loss: mean squared error of labels -1 and 1."""
    x, y = batch
    return jnp.mean((x @ w - y) ** 2)


def ridge(w: jax.Array, log_penalty: jax.Array, batch: tuple) -> jax.Array:
    """Inner loss."""
    return squared(w, log_penalty, batch) + jnp.exp(log_penalty) * jnp.sum(w**2)


def solution(w: jax.Array, log_penalty: jax.Array, batch: tuple) -> jax.Array:
    """Of the inner problem, by the kernel matrix: fewer rows than weights."""
    x, y = batch
    kernel = x @ x.T + len(y) * jnp.exp(log_penalty) * jnp.eye(len(y))
    return x.T @ jnp.linalg.solve(kernel, y)


ONE = BilevelProblem(ridge, squared)
TASKS = over_tasks(ONE)
LINEAR = CG(tol=1e-8, max_steps=1000)
SOLVER = FunctionSolver(lambda w, h, batch: jax.vmap(solution, (0, None, 0))(w, h, batch))


class Draw:
    """Tasks drawn independently: two classes, and twenty images of each."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        x, y = load_digits(return_X_y=True)
        x = x / 16.0 - 0.5
        self.images = np.c_[x, np.ones(len(x))]
        self.by_class = [np.flatnonzero(y == k) for k in range(10)]

    def __call__(self, count: int) -> tuple[tuple, tuple]:
        """Training and validation data of `count` tasks, a leading axis of tasks."""
        rows = np.empty((count, 2, 20), int)
        for one in rows:
            for side, k in enumerate(self.rng.choice(10, 2, replace=False)):
                one[side] = self.rng.choice(self.by_class[k], 20, replace=False)
        x = self.images[rows]
        labels = np.broadcast_to(np.repeat([-1.0, 1.0], 10), (count, 20))
        parts = [x[:, :, half].reshape(count, 20, -1) for half in (slice(10), slice(10, 20))]
        return tuple((part, labels) for part in parts)  # type: ignore[return-value]


def losses(train: tuple, valid: tuple) -> np.ndarray:
    """Validation loss of each task at each penalty of the grid, shape `(tasks, 101)`."""
    u, s, vt = np.linalg.svd(train[0], full_matrices=False)
    targets = np.einsum("tij,ti->tj", u, train[1])
    shrunk = s[:, None] / (s[:, None] ** 2 + 20 * np.exp(GRID)[None, :, None])
    through = np.einsum("tij,tkj->tik", valid[0], vt)
    predicted = np.einsum("tik,tgk->tgi", through, shrunk * targets[:, None])
    return np.mean((predicted - valid[1][:, None]) ** 2, axis=2)


def secant() -> optax.GradientTransformation:
    """Newton's method on the slope, the curvature from the last two."""

    def init(point: jax.Array) -> dict:
        return {"point": point, "slope": jnp.full_like(point, jnp.nan)}

    def update(slope: jax.Array, state: dict, point: jax.Array) -> tuple[jax.Array, dict]:
        moved, bent = point - state["point"], slope - state["slope"]
        step = -slope * moved / bent
        # Downhill only, and at most two e-foldings of the penalty: far off there is no curvature.
        sensible = jnp.isfinite(step) & (step * slope < 0)
        step = jnp.where(sensible, step, -2.0 * jnp.sign(slope))
        return jnp.clip(step, -2.0, 2.0), {"point": point, "slope": slope}

    return optax.GradientTransformation(init, update)


#: A step of the penalty along the hypergradient of all tasks.
ALGORITHM = Alternating(ImplicitDifferentiation(SOLVER, LINEAR, error_estimate=False), secant())


def tuned(train: tuple, valid: tuple) -> tuple[float, list[float]]:
    """The log penalty that hypergradients find, and the loss at each evaluation.

    Fewer tasks are repeated to as many as the most: the same mean, and one program for all.
    """
    repeated = MOST // len(train[1])
    arrays = jax.tree.map(lambda a: jnp.concatenate([jnp.asarray(a)] * repeated), (train, valid))
    result = run(
        TASKS,
        ALGORITHM,
        jnp.zeros((MOST, train[0].shape[2])),
        jnp.asarray(0.0),
        *arrays,
        steps=EVALUATIONS,
    )
    return float(result.best.hparams), [row["value"] for row in result.history]


def dying_unit() -> float:
    """How far from its place the kink is found at which a hidden unit dies."""
    # The inner solution is w = λ; a ReLU of w - 0.3 is alive above, and dead below.
    problem = BilevelProblem(
        lambda w, h, _: (w - h) ** 2,
        lambda w, h, _: (jax.nn.relu(w - KINK) - 0.5) ** 2 + 0.1 * h**2,
    )
    solver = FunctionSolver(lambda w, h, _: h)
    estimator = ImplicitDifferentiation(solver, Dense(), error_estimate=False)

    def dual(at: float) -> tuple[float, float]:
        out = hypergradient(problem, jnp.asarray(0.0), jnp.asarray(at), estimator=estimator)
        return float(out.value), float(out.grad)

    breaks = find_breaks(dual, -1.0, 1.07, points=41, width=1e-3)
    if len(breaks) != 1 or breaks[0].kind != "kink":
        return float("nan")
    return abs(breaks[0].at - KINK)


def rate(counts: list[int], values: np.ndarray) -> float:
    """Slope of a line through the logarithms."""
    return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


@experiment(
    paper="Balcan, Nguyen and Sharma 2025, arXiv:2501.13734",
    x64=True,
    options=[
        Option("repeats", 400, quick=60, help="draws of the tasks seen, for each number of them"),
        Option("unseen", 4000, quick=800, help="tasks that are not seen"),
    ],
    claims=[
        Claim(
            "regret",
            "regret on unseen tasks with 2 tasks over that with 32",
            at_least=2.0,
        ),
        Claim("rate", "distance of the gap's rate in the number of tasks from -1/2", at_most=0.2),
        Claim("bound", "gap over the proven bound, at worst", at_most=1.0),
        Claim(
            "evaluations",
            "loss after ten hypergradients above the best of a 101-point grid, at worst",
            at_most=1e-3,
        ),
        Claim(
            "kink", "distance between the kink found and the place where a unit dies", at_most=1e-3
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Tune on 1 to 32 tasks, judge on fresh ones."""
    options = context.options
    draw = Draw(options.seed)
    fresh = np.concatenate([losses(*draw(400)) for _ in range(options.unseen // 400)])
    unseen, span = fresh.mean(0), float(fresh.max())
    rows, regrets, gaps, worst_share, above = [], [], [], 0.0, 0.0
    with context.progress("numbers of tasks", total=len(COUNTS)) as bar:
        for count in COUNTS:
            regret, gap, spread = [], [], []
            for _ in range(options.repeats):
                seen = losses(*draw(count)).mean(0)
                chosen = int(np.argmin(seen))
                regret.append(unseen[chosen] - unseen.min())
                gap.append(abs(seen[chosen] - unseen[chosen]))
                spread.append(np.abs(seen - unseen).max())
            train, valid = draw(count)
            log_penalty, history = tuned(train, valid)
            best = float(losses(train, valid).mean(0).min())
            above = max(above, min(history) - best)
            # The curves have one valley: two crossings of a level, as a parabola.
            bound = task_bound(count, 1, 2, span=span)
            worst_share = max(worst_share, float(np.quantile(spread, 0.95)) / bound)
            regrets.append(float(np.mean(regret)))
            gaps.append(float(np.mean(gap)))
            rows.append(
                {
                    "tasks seen": count,
                    "regret": regrets[-1],
                    "gap": gaps[-1],
                    "bound": bound,
                    "log penalty": log_penalty,
                    "above the grid": min(history) - best,
                }
            )
            bar.advance(incumbent=regrets[-1])
    context.table("one penalty for all tasks", rows)
    context.plot(
        "tasks",
        {
            "regret on unseen tasks": Curve(COUNTS, regrets),
            "gap between seen and unseen": Curve(COUNTS, gaps),
            "falls as 1/√m": Curve(COUNTS, [gaps[0] / np.sqrt(m) for m in COUNTS]),
        },
        x="tasks seen",
        y="squared error",
        x_scale="log",
        y_scale="log",
    )
    context.measure("regret", regrets[1] / regrets[-1])
    context.measure("rate", abs(rate(COUNTS, np.array(gaps)) + 0.5))
    context.measure("bound", worst_share)
    context.measure("evaluations", above)
    context.measure("kink", dying_unit())


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
