"""Multi-layer perceptrons.

With the solvers `sgd` and `adam` the training itself is run again, step by step from the same start
and with the same batches, and differentiated forwards: the derivative of the fit that scikit-learn
makes, in the learning rate and the momenta as well as in the penalty. The number of epochs, which
scikit-learn's rule for stopping decides, counts as given. With `lbfgs` scikit-learn trains, and the
derivative in the penalty is the implicit one at the weights that it found.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar
from sklearn.base import clone
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils import gen_batches, shuffle

from hypergrad import MINRES, BilevelProblem
from strategies.sklearn.models.base import (
    Fold,
    Hyperparameters,
    Measure,
    Model,
    NotDifferentiableError,
    Response,
    Task,
    implicit_response,
)
from strategies.sklearn.models.epochs import Stopping, adam, run_epochs, sgd
from strategies.sklearn.models.glm import half_deviance
from strategies.sklearn.models.losses import half_squared_error, logistic, multinomial

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda z: z,
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}
# What scikit-learn takes for batch_size="auto".
_BATCH = 200
# Of the system of the implicit derivative; products with the Hessian, which may be singular.
_TOLERANCE = 1e-8
_MOST_STEPS = 2000


class NetworkModel(Model):
    """`MLPClassifier` and `MLPRegressor`: what both ways of training share."""

    dense_only: ClassVar[bool] = True
    # Weights to start from are drawn for every column.
    fixed_width: ClassVar[bool] = True

    def __init__(self, estimator: MLPClassifier | MLPRegressor, task: Task):
        super().__init__(estimator)
        for name in ("early_stopping", "warm_start"):
            if getattr(estimator, name):
                raise NotDifferentiableError(f"{name}=True")
        if not isinstance(estimator.random_state, int | np.integer):
            raise NotDifferentiableError(
                f"random_state={estimator.random_state!r}: no two trainings are alike; "
                "with an integer they are"
            )
        self.classes = task.classes
        self.poisson = getattr(estimator, "loss", None) == "poisson"
        if self.poisson:
            self.deviance = lambda output, y: 2.0 * half_deviance(output, y, 1.0)
        self.activation = _ACTIVATIONS[estimator.activation]

    def _layers(self, params: PyTree, x: Array) -> Array:
        """Outputs before the last activation."""
        *hidden, last = zip(params["coefs"], params["intercepts"], strict=True)
        for weights, intercept in hidden:
            x = self.activation(x @ weights + intercept)
        return x @ last[0] + last[1]

    def _losses(self, params: PyTree, x: Array, y: Array) -> Float[Array, "n m"]:
        """Losses whose derivative in an output is prediction minus target."""
        output = self._layers(params, x)
        if self.classes > 2:
            return multinomial(output, y)
        if self.classes:
            return logistic(output, y)
        if self.poisson:
            return half_deviance(jnp.exp(output), y, 1.0)
        return half_squared_error(output, y)

    def _penalty(self, params: PyTree, h: Hyperparameters) -> Scalar:
        return 0.5 * self.value(h, "alpha") * sum(jnp.sum(w**2) for w in params["coefs"])

    def objective(
        self, params: PyTree, h: Hyperparameters, x: Array, y: Array, weights: Array
    ) -> tuple[Scalar, Scalar]:
        """What the weights follow down, and what is looked at to stop."""
        total = jnp.maximum(jnp.sum(weights), 1e-30)  # an empty batch
        losses = weights @ self._losses(params, x, y)
        penalty = self._penalty(params, h)
        # A squared error counts as the mean over outputs when it is reported only.
        shown = jnp.sum(losses) if self.classes or self.poisson else jnp.mean(losses)
        return (jnp.sum(losses) + penalty) / total, (shown + penalty) / total

    def output(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Array:
        """See `Model.output`."""
        output = self._layers(params, fold.x)
        return jnp.exp(output) if self.poisson else output


class StochasticNetwork(NetworkModel):
    """Trained by `sgd` or `adam`."""

    def __init__(self, estimator: MLPClassifier | MLPRegressor, task: Task):
        super().__init__(estimator, task)
        momenta = ("beta_1", "beta_2") if estimator.solver == "adam" else ("momentum",)
        scaling = estimator.solver == "sgd" and estimator.learning_rate == "invscaling"
        power = ("power_t",) if scaling else ()
        self.hyperparameters = ("alpha", "learning_rate_init", *momenta, *power)

    def prepare(
        self, x: Any, y: np.ndarray, train: np.ndarray, values: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Weights to start from, and the samples of all batches of all epochs, as drawn there."""
        estimator = self.estimator
        random = np.random.RandomState(estimator.random_state)
        hidden = np.atleast_1d(np.asarray(estimator.hidden_layer_sizes, int)).tolist()
        sizes = [x.shape[1], *hidden, y.shape[1]]
        factor = 2.0 if estimator.activation == "logistic" else 6.0
        coefs, intercepts = [], []
        for before, after in pairwise(sizes):
            bound = np.sqrt(factor / (before + after))
            coefs.append(random.uniform(-bound, bound, (before, after)))
            intercepts.append(random.uniform(-bound, bound, after))
        rows = np.flatnonzero(train)
        count = len(rows)
        batch = estimator.batch_size
        batch = min(_BATCH if batch == "auto" else int(batch), count)
        order = np.arange(count)
        epochs = []
        slices = list(gen_batches(count, batch))
        at = np.full((len(slices), batch), -1)
        for _ in range(estimator.max_iter):
            if estimator.shuffle:
                order = shuffle(order, random_state=random)
            for number, part in enumerate(slices):
                at[number, : part.stop - part.start] = rows[order[part]]
            epochs.append(at.astype(np.int32))
            if not estimator.shuffle:
                break  # all epochs are the same
        return {"coefs": coefs, "intercepts": intercepts, "batches": np.stack(epochs)}

    def together(self, extras: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """See `Model.together`: as many batches as large in all folds; -1 is no sample."""
        shapes = np.array([extra["batches"].shape for extra in extras])
        _, count, size = shapes.max(axis=0)
        return [
            {
                **extra,
                "batches": np.pad(
                    extra["batches"],
                    [(0, 0), (0, count - shape[1]), (0, size - shape[2])],
                    constant_values=-1,
                ),
            }
            for extra, shape in zip(extras, shapes, strict=True)
        ]

    def solve(self, h: Hyperparameters, fold: Fold) -> PyTree:
        """See `Model.solve`: the weights after the last epoch."""
        estimator, batches = self.estimator, fold.extra["batches"]
        start = {"coefs": fold.extra["coefs"], "intercepts": fold.extra["intercepts"]}

        def loss(params: PyTree, at: Array) -> tuple[Scalar, Scalar]:
            there = (at >= 0).astype(fold.train.dtype)
            return self.objective(params, h, fold.x[at], fold.y[at], there * fold.train[at])

        rate = self.value(h, "learning_rate_init")
        if estimator.solver == "adam":
            rule = adam(
                rate, self.value(h, "beta_1"), self.value(h, "beta_2"), float(estimator.epsilon)
            )
        else:
            power = self.value(h, "power_t")
            momentum = self.value(h, "momentum")
            nesterov = bool(estimator.nesterovs_momentum)
            rule = sgd(rate, momentum, nesterov, estimator.learning_rate, power)
        stopping = Stopping(estimator.max_iter, estimator.tol, estimator.n_iter_no_change)
        return run_epochs(loss, rule, start, batches, stopping)

    def respond(self, h: Hyperparameters, fold: Fold, measure: Measure) -> Response:
        """See `Model.respond`: forwards, as hyperparameters are few and weights many."""

        def value(h: Hyperparameters) -> tuple[Scalar, Scalar]:
            found = measure(self.solve(h, fold), h, fold)
            return found, found

        gradient, found = jax.jacfwd(value, has_aux=True)(h)
        # How far from a minimum it stopped is part of what is differentiated.
        return Response(found, gradient, jnp.zeros(()))


class QuasiNewtonNetwork(NetworkModel):
    """Trained by `lbfgs`."""

    prepares_by_value: ClassVar[bool] = True
    hyperparameters = ("alpha",)

    def prepare(
        self, x: Any, y: np.ndarray, train: np.ndarray, values: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The weights that scikit-learn finds."""
        rows = np.flatnonzero(train)
        own = {name: float(value) for name, value in values.items()}
        network = clone(self.estimator).set_params(**own)
        target = y.argmax(axis=1) if self.classes > 2 else y
        target = target.ravel() if self.classes or y.shape[1] == 1 else target
        same = np.all(train[rows] == train[rows[0]])
        weights = {} if same and train[rows[0]] == 1.0 else {"sample_weight": train[rows]}
        network.fit(x[rows], target[rows], **weights)
        return {"coefs": network.coefs_, "intercepts": network.intercepts_}

    def respond(self, h: Hyperparameters, fold: Fold, measure: Measure) -> Response:
        """See `Model.respond`."""

        def inner(params: PyTree, h: Hyperparameters, fold: Fold) -> Scalar:
            return self.objective(params, h, fold.x, fold.y, fold.train)[0]

        found = {"coefs": fold.extra["coefs"], "intercepts": fold.extra["intercepts"]}
        return implicit_response(
            BilevelProblem(inner, measure),
            lambda params, h, fold: params,
            MINRES(tol=_TOLERANCE, max_steps=_MOST_STEPS),
            found,
            h,
            fold,
            convex=False,
        )


def network(estimator: MLPClassifier | MLPRegressor, task: Task) -> NetworkModel:
    """The model of a network, by its solver."""
    kind = QuasiNewtonNetwork if estimator.solver == "lbfgs" else StochasticNetwork
    return kind(estimator, task)


MODELS: dict[type, Any] = {MLPClassifier: network, MLPRegressor: network}
