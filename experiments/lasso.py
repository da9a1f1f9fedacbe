"""Lasso, elastic net and weighted Lasso: hypergradients of a problem that is not smooth.

Least squares on the ten diabetes measurements, their squares and products (65 columns, scaled),
with an L1 penalty `exp(λ)`. The inner solution is a fixed point of the proximal step, and its
derivative lives on the support alone (Bertrand et al. 2020, "Implicit differentiation of Lasso-type
models for hyperparameter optimization"). Three parts:

- the hypergradient against central differences over the whole path of penalties, left out where the
  support changes between the two points of a difference, and there only;
- trainings needed: a search with the hypergradient against a grid of 100 penalties (Lasso), of
  15 x 15 (elastic net);
- one penalty a feature, which no grid can search, from the best single penalty on.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.data import tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import CG, BilevelProblem, ImplicitDifferentiation, ProximalStep
from strategies.local import minimize
from strategies.observation import Report, report
from strategies.space import Float

Batch = tuple[Array, Array]
MOST_STEPS = 200_000


def expanded(x: np.ndarray) -> np.ndarray:
    """The columns, their squares and products."""
    first, second = np.triu_indices(x.shape[1])
    return np.concatenate([x, x[:, first] * x[:, second]], axis=1)


def diabetes(seed: int) -> list[Batch]:
    """Training, validation and test part, scaled by the training part."""
    data = tabular("diabetes", seed=seed)
    columns = [expanded(part.x / np.std(data.train.x, axis=0)) for part in data]
    mean, scale = columns[0].mean(axis=0), columns[0].std(axis=0)
    centre, spread = data.train.y.mean(), data.train.y.std()
    return [
        (jnp.asarray((x - mean) / scale), jnp.asarray((part.y - centre) / spread))
        for x, part in zip(columns, data, strict=True)
    ]


def loss(w: Array, h: Any, batch: Batch) -> Array:
    """Half the mean square error."""
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def smooth(w: Array, h: Mapping[str, Array], batch: Batch) -> Array:
    """The differentiable part of the inner problem."""
    return loss(w, h, batch) + 0.5 * jnp.exp(h["l2"]) * jnp.sum(w**2)


def shrink(point: Array, h: Mapping[str, Array], step: Array) -> Array:
    """Soft thresholding, the proximal operator of `Σ exp(l1) |w|`."""
    return jnp.sign(point) * jnp.maximum(jnp.abs(point) - step * jnp.exp(h["l1"]), 0)


class Regression:
    """The bilevel problem on one split; `trained` counts its inner solves."""

    def __init__(self, seed: int) -> None:
        self.train, self.validation, self.test = diabetes(seed)
        x, y = self.train
        size = 0.9 / float(jnp.linalg.eigvalsh(x.T @ x)[-1] / len(y))
        self.step = ProximalStep(smooth, shrink, size, polyhedral=True)
        self.problem = BilevelProblem(None, loss, self.step)
        self.estimator = ImplicitDifferentiation(linear_solver=CG(tol=1e-11))
        self.largest = float(jnp.log(jnp.max(jnp.abs(x.T @ y)) / len(y)))
        self.trained = 0
        self._solve = jax.jit(self._fixed_point)
        self._differentiate = eqx.filter_jit(self._hypergradient)

    def _fixed_point(self, h: Mapping[str, Array]) -> Array:
        # Nesterov's acceleration with a restart when it points uphill; to rounding.
        def unfinished(carry: tuple) -> Array:
            _, _, _, move, step = carry
            return (move > 1e-15) & (step < MOST_STEPS)

        def body(carry: tuple) -> tuple:
            w, ahead, momentum, _, count = carry
            new = self.step.prox(self.step.forward(ahead, h, self.train), h, self.step.step)
            uphill = jnp.vdot(ahead - new, new - w) > 0
            momentum = jnp.where(uphill, 1.0, momentum)
            following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + jnp.where(uphill, 0, (momentum - 1) / following) * (new - w)
            return new, ahead, following, jnp.max(jnp.abs(new - w)), count + 1

        zero = jnp.zeros(self.train[0].shape[1])
        start = (zero, zero, jnp.ones(()), jnp.asarray(jnp.inf), 0)
        return jax.lax.while_loop(unfinished, body, start)[0]

    def _hypergradient(self, w: Array, h: Mapping[str, Array]) -> Any:
        state = self.estimator.init(self.problem, w, h, self.train)
        return self.estimator.hypergradient(self.problem, state, h, self.train, self.validation)

    def solve(self, h: Mapping[str, Any]) -> Array:
        """The inner solution, to rounding."""
        self.trained += 1
        return self._solve(jax.tree.map(jnp.asarray, dict(h)))

    def value(self, h: Mapping[str, Any]) -> float:
        """The validation loss at the solution."""
        return float(loss(self.solve(h), None, self.validation))

    def hypergradient(self, h: Mapping[str, Any]) -> tuple[Array, Any]:
        """The solution and its hypergradient."""
        h = jax.tree.map(jnp.asarray, dict(h))
        w = self.solve(h)
        return w, self._differentiate(w, h)


def differences(regression: Regression, points: int) -> list[dict[str, float]]:
    """The hypergradient and a central difference at each of so many penalties."""
    rows = []
    for l1 in np.linspace(regression.largest - 0.05, regression.largest - 6, points):
        h, shift = {"l1": l1, "l2": -30.0}, 1e-5
        w, result = regression.hypergradient(h)
        ends = [regression.solve({**h, "l1": l1 + s}) for s in (shift, -shift)]
        high, low = (float(loss(end, None, regression.validation)) for end in ends)
        kink = bool(jnp.any((ends[0] != 0) != (ends[1] != 0)))
        difference = (high - low) / (2 * shift)
        gradient = float(result.grad["l1"])
        rows.append(
            {
                "l1": float(l1),
                "support": int(jnp.sum(w != 0)),
                "products": int(result.info.iterations),
                "validation loss": float(result.value),
                "hypergradient": gradient,
                "difference": difference,
                "error": abs(gradient - difference) / abs(difference),
                "kink": kink,
            }
        )
    return rows


def search(
    regression: Regression, space: Mapping[str, Any], fixed: Mapping[str, Any], trials: int
) -> tuple[float, dict[str, Any], list[float]]:
    """Best validation loss, its penalties, and the incumbent after each training."""

    def objective(config: Mapping[str, Any]) -> Report:
        h = {**fixed, **{name: jnp.log(jnp.asarray(value)) for name, value in config.items()}}
        _, result = regression.hypergradient(h)
        # The space is in natural units: d/dc = d/dlog(c) / c.
        natural = {n: np.asarray(result.grad[n]) / np.asarray(v) for n, v in config.items()}
        return report(float(result.value), natural)

    found = minimize(objective, space, trials=trials)
    assert found.best_config is not None
    assert found.best_value is not None
    return found.best_value, found.best_config, list(found.best_so_far())


@experiment(
    paper="Bertrand, Klopfenstein, Blondel, Vaiter, Gramfort & Salmon 2020, arXiv:2002.08943",
    x64=True,
    options=[
        Option("points", 60, quick=12, help="penalties at which differences are taken"),
        Option("split", 0, help="split of the data"),
        Option("trials", 10, help="trainings of the search for one penalty"),
        Option("features", 60, quick=15, help="trainings of the search for one penalty a feature"),
    ],
    claims=[
        Claim(
            "exact",
            "the hypergradient equals central differences wherever the support does not change",
            at_most=1e-5,
        ),
        Claim(
            "most",
            "share of the penalties at which a difference could be taken",
            at_least=0.8,
        ),
        Claim(
            "lasso",
            "ten trainings with the hypergradient against a grid of 100 (relative excess)",
            at_most=1e-3,
        ),
        Claim(
            "elastic",
            "elastic net: 20 trainings with the hypergradient against a grid of 225 "
            "(relative excess)",
            at_most=1e-3,
        ),
        Claim(
            "weighted",
            "one penalty a feature: validation loss relative to the best single penalty",
            at_most=0.99,
        ),
    ],
)
def run(context: Context) -> None:
    """Measure, draw, and check the claims."""
    options = context.options
    regression = Regression(options.split)
    rows = differences(regression, options.points)
    context.table("path", rows)
    smooth_rows = [row for row in rows if not row["kink"]]
    context.measure("exact", max(row["error"] for row in smooth_rows))
    context.measure("most", len(smooth_rows) / len(rows))

    low, high = (float(np.exp(regression.largest + s)) for s in (-6.0, 0.0))
    axis = np.log(np.geomspace(low, high, 100))
    grid = [regression.value({"l1": l1, "l2": -30.0}) for l1 in axis]
    penalty = Float(low, high, log=True)
    best, chosen, curve = search(regression, {"l1": penalty}, {"l2": -30.0}, options.trials)
    context.measure("lasso", best / min(grid) - 1)
    context.plot("lasso", {"grid": Curve(x=axis, y=grid)}, x="log penalty", y="validation loss")

    side = np.log(np.geomspace(low, high, 15))
    square = [regression.value({"l1": a, "l2": b}) for a in side for b in side]
    both, pair, curve_pair = search(regression, {"l1": penalty, "l2": penalty}, {}, 20)
    context.measure("elastic", both / min(square) - 1)
    context.plot(
        "trainings",
        {
            "Lasso, hypergradient": Curve(x=np.arange(len(curve)) + 1, y=curve),
            "elastic net, hypergradient": Curve(x=np.arange(len(curve_pair)) + 1, y=curve_pair),
        },
        x="trainings",
        y="best validation loss",
    )

    columns = regression.train[0].shape[1]
    space = {"l1": Float(low, high, log=True, shape=(columns,), default=chosen["l1"])}
    each, penalties, _ = search(regression, space, {"l2": -30.0}, options.features)
    context.measure("weighted", each / best)
    settings = {
        "least squares": {"l1": -30.0, "l2": -30.0},
        "Lasso": {"l1": np.log(chosen["l1"]), "l2": -30.0},
        "elastic net": {name: np.log(value) for name, value in pair.items()},
        "one penalty a feature": {"l1": np.log(np.asarray(penalties["l1"])), "l2": -30.0},
    }
    context.table(
        "models",
        [
            {
                "model": name,
                "validation loss": regression.value(h),
                "test loss": float(loss(w := regression.solve(h), None, regression.test)),
                "features used": int(jnp.sum(w != 0)),
            }
            for name, h in settings.items()
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run.main())
