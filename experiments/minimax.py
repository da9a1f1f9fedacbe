"""Games: group-robust logistic regression by two-timescale extragradient, to its last iterate.

A classifier minimises the loss of its worst group: an opponent puts weights on the groups, on the
simplex. The game is linear in the opponent, whose Hessian is zero, so that plain descent-ascent
circles. Digits with its ten classes as groups, and breast cancer with a tenth of one class left.
Judged by the duality gap of the last iterate, whose two halves are a maximum over groups and a
convex problem that is solved for the purpose. The same algorithm then meets a constraint: the loss
of the rarest group under a bound, by the Lagrangian.

Chae, Kim and Kim, "Two-timescale extragradient for finding local minimax points" (ICLR 2024);
Sagawa et al., "Distributionally robust neural networks for group shifts" (ICLR 2020), convex.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split

from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem
from hypergrad.outer import ConstrainedProblem, Extragradient, ScaledSimplex, optimality_report, run

#: Penalty on the weights: the game is strongly convex in them, if only just.
RIDGE = 1e-3
#: The step of both players: near the largest with which extragradient converges.
STEPS = {"digits": 1.0, "breast_cancer": 5.0}
LOADERS = {"digits": load_digits, "breast_cancer": load_breast_cancer}


def data(name: str, seed: int) -> tuple[dict, dict]:
    """Half to train, half to test: `x` with a constant, rows of length about 1, and `y`.

    Of breast cancer nine tenths of the malignant training examples are left out.
    """
    x, y = LOADERS[name](return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.5, random_state=seed, stratify=y)
    if name == "breast_cancer":
        rare = np.random.default_rng(seed).permutation(np.flatnonzero(y == 0))
        kept = np.setdiff1d(np.arange(len(y)), rare[len(rare) // 10 :])
        x, y = x[kept], y[kept]
    # Pixels that hardly vary are left small.
    scale = np.maximum(x.std(0), 0.3 if name == "digits" else 0.0)

    def prepared(x: np.ndarray, y: np.ndarray) -> dict:
        full = np.c_[(x - train_mean) / scale, np.ones(len(x))] / np.sqrt(x.shape[1])
        return {"x": jnp.asarray(full), "y": jnp.asarray(y)}

    train_mean = x.mean(0)
    return prepared(x, y), prepared(x_test, y_test)


def group_losses(w: jax.Array, batch: dict) -> jax.Array:
    """Mean cross-entropy of each class, which is its group."""
    scores = jax.nn.log_softmax(batch["x"] @ w)
    labels = jax.nn.one_hot(batch["y"], w.shape[1])
    return -jnp.sum(scores * labels, axis=(0,)) / jnp.sum(labels, axis=0)


def penalty(w: jax.Array) -> jax.Array:
    """Of the weights."""
    return RIDGE / 2 * jnp.sum(w**2)


GAME = BilevelProblem.minimax(
    lambda p, w, batch: p @ group_losses(w, batch) + penalty(w),
    opponent=ScaledSimplex(),
    worst=lambda w, batch: jnp.max(group_losses(w, batch)) + penalty(w),
)


@jax.jit
def weighted(w: jax.Array, p: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
    """The loss under fixed weights of the groups, and its gradient."""
    return jax.value_and_grad(lambda w: p @ group_losses(w, batch) + penalty(w))(w)


def best_answer(p: np.ndarray, batch: dict, shape: tuple) -> tuple[float, np.ndarray]:
    """`min over w of f(w, p)` to rounding, and the minimiser."""

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slope = weighted(jnp.asarray(flat.reshape(shape)), jnp.asarray(p), batch)
        return float(loss), np.asarray(slope).ravel()

    options = {"maxiter": 5000, "maxfun": 10000, "gtol": 1e-9, "ftol": 1e-15, "maxcor": 30}
    found = minimize(value, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B", options=options)
    return float(found.fun), found.x.reshape(shape)


def accuracies(w: np.ndarray, batch: dict) -> np.ndarray:
    """Accuracy of each class, in percent."""
    right = np.argmax(np.asarray(batch["x"]) @ np.asarray(w), axis=1) == np.asarray(batch["y"])
    return np.array([100 * right[np.asarray(batch["y"]) == k].mean() for k in range(w.shape[1])])


def played(name: str, batch: dict, classes: int, steps: int, look_ahead: bool) -> tuple[Curve, Any]:
    """The duality gap of the iterate against steps, and the result."""
    shape = (batch["x"].shape[1], classes)
    gaps: list[float] = []
    at: list[int] = []

    def watch(report: Any) -> None:
        lower, _ = best_answer(np.asarray(report.state.params), batch, shape)
        upper = float(GAME.evaluation_loss(report.state.params, report.state.hparams, batch))
        gaps.append(upper - lower)
        at.append(report.step)

    result = run(
        GAME,
        Extragradient(STEPS[name], look_ahead=look_ahead),
        jnp.full(classes, 1 / classes),
        jnp.zeros(shape),
        batch,
        batch,
        steps=steps,
        every=max(1, steps // 10),
        callbacks=[watch],
    )
    return Curve(at, gaps), result


def bounded(batch: dict, steps: int) -> float:
    """KKT residual of the last iterate: mean loss, that of the rare class under a bound."""
    problem = ConstrainedProblem(
        lambda w, b: jnp.mean(group_losses(w, b)[1:]) + penalty(w),
        lambda w, b: group_losses(w, b)[:1],
        0.3,
    )
    zero = jnp.zeros((batch["x"].shape[1], 2))
    result = run(
        problem, Extragradient(1.0), zero, jnp.zeros(1), batch, batch, steps=steps, every=steps
    )
    return optimality_report(problem, result.params, result.hparams, batch).residual


@experiment(
    paper="Chae, Kim and Kim 2024, arXiv:2305.16242",
    x64=True,
    options=[Option("steps", 2000, quick=300, help="steps of both players")],
    claims=[
        Claim("gap", "duality gap of the last iterate, the larger of two", at_most=1e-3, quick=0.1),
        Claim(
            "plain",
            "gap of descent-ascent over that of extragradient, the smaller of two",
            at_least=10.0,
            quick=1.0,
        ),
        Claim(
            "worst",
            "points of test accuracy of the worst group above plain training, the smaller of two",
            at_least=2.0,
        ),
        Claim(
            "linear",
            "correlation of log gap and steps, the weaker of two",
            at_most=-0.9,
            quick=-0.8,
        ),
        Claim(
            "constraint",
            "KKT residual of a bound on the rare class, same algorithm",
            at_most=1e-3,
            quick=0.1,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Play both games with and without looking ahead."""
    options = context.options
    rows, curves = [], {}
    measured: dict[str, list[float]] = {key: [] for key in ("gap", "plain", "worst", "linear")}
    with context.progress("games", total=5) as bar:
        for name in LOADERS:
            train, test = data(name, options.seed)
            classes = int(train["y"].max()) + 1
            counts = np.bincount(np.asarray(train["y"]), minlength=classes)
            shape = (train["x"].shape[1], classes)
            _, erm = best_answer(counts / counts.sum(), train, shape)
            gaps = {}
            for label, look_ahead in (("extragradient", True), ("descent-ascent", False)):
                curve, result = played(name, train, classes, options.steps, look_ahead)
                curves[f"{name}, {label}"] = curve
                gaps[label] = float(np.asarray(curve.y)[-1])
                rows.append(
                    {
                        "data": name,
                        "trained by": label,
                        "duality gap": gaps[label],
                        "worst loss": result.value,
                        "groups with weight": int(np.sum(np.asarray(result.params) > 1e-6)),
                        "worst test accuracy %": float(accuracies(result.hparams, test).min()),
                        "mean test accuracy %": float(accuracies(result.hparams, test).mean()),
                    }
                )
                bar.advance(incumbent=gaps[label])
            robust = rows[-2]["worst test accuracy %"]
            plain = accuracies(erm, test)
            rows.append(
                {
                    "data": name,
                    "trained by": "mean loss",
                    "duality gap": float("nan"),
                    "worst loss": float(jnp.max(group_losses(jnp.asarray(erm), train))),
                    "groups with weight": classes,
                    "worst test accuracy %": float(plain.min()),
                    "mean test accuracy %": float(plain.mean()),
                }
            )
            curve = curves[f"{name}, extragradient"]
            measured["gap"].append(gaps["extragradient"])
            measured["plain"].append(gaps["descent-ascent"] / gaps["extragradient"])
            measured["worst"].append(robust - float(plain.min()))
            # Rounding and the accuracy of the answer end the fall at last.
            seen = np.asarray(curve.y) > 1e-9
            fit = np.corrcoef(np.asarray(curve.x)[seen], np.log(np.asarray(curve.y)[seen]))
            measured["linear"].append(float(fit[0, 1]))
        residual = bounded(data("breast_cancer", options.seed)[0], options.steps)
        bar.advance(incumbent=residual)
    context.table("last iterates", rows)
    context.plot("gap", curves, x="steps", y="duality gap of the iterate", y_scale="log")
    context.measure("gap", max(measured["gap"]))
    context.measure("plain", min(measured["plain"]))
    context.measure("worst", min(measured["worst"]))
    context.measure("linear", max(measured["linear"]))
    context.measure("constraint", residual)


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
