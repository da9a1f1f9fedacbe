"""Smooth criteria: what stands for a scorer while hypergradients are followed.

| scorer | criterion |
| --- | --- |
| `r2`, `explained_variance`, a regressor's own score | `r2`: 1 - R² |
| `neg_mean_squared_error` | `squared_error` |
| `neg_root_mean_squared_error` | `root_squared_error` |
| `neg_mean_absolute_error`, `neg_median_absolute_error` | `absolute_error` |
| `neg_mean_poisson_deviance`, `neg_mean_gamma_deviance`, a GLM's own score | `deviance` |
| `neg_log_loss` | `log_loss` |
| `accuracy`, `balanced_accuracy`, `roc_auc...`, `average_precision`, `f1...`, `precision...`, \
`recall...`, `jaccard...`, `matthews_corrcoef`, `neg_brier_score`, `top_k_accuracy` | \
`log_loss`; `squared_hinge` for support vector machines |

A model may have criteria of its own (`Model.criteria`): machines of pairs of classes, Cox's partial
likelihood, the likelihoods of a Gaussian process.

The first six rows are the scorer itself, up to its sign (the median stands out); in the last one
the criterion is a surrogate.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar
from sklearn.base import is_classifier

Criterion = Callable[[Float[Array, "n m"], Float[Array, "n m"], Float[Array, " n"]], Scalar]


def _mean(values: Float[Array, "n m"], weights: Float[Array, " n"]) -> Float[Array, " m"]:
    return weights @ values / jnp.sum(weights)


def squared_error(output: Array, y: Array, weights: Array) -> Scalar:
    """Mean squared error, over samples and outputs."""
    return jnp.mean(_mean((output - y) ** 2, weights))


def root_squared_error(output: Array, y: Array, weights: Array) -> Scalar:
    """Root of the mean squared error, averaged over outputs."""
    return jnp.mean(jnp.sqrt(_mean((output - y) ** 2, weights)))


def absolute_error(output: Array, y: Array, weights: Array) -> Scalar:
    """Mean absolute error, over samples and outputs."""
    return jnp.mean(_mean(jnp.abs(output - y), weights))


def r2(output: Array, y: Array, weights: Array) -> Scalar:
    """One minus the coefficient of determination, averaged over outputs."""
    spread = _mean((y - _mean(y, weights)) ** 2, weights)
    # A constant target has no R²: the error itself then.
    return jnp.mean(_mean((output - y) ** 2, weights) / jnp.where(spread > 0, spread, 1.0))


def log_loss(output: Array, y: Array, weights: Array) -> Scalar:
    """Mean negative log likelihood of logits: one column for two classes, else one per class."""
    if output.shape[1] == 1:
        each = jax.nn.softplus(output) - y * output
    else:
        each = -jnp.sum(y * jax.nn.log_softmax(output), axis=1, keepdims=True)
    return _mean(each, weights)[0]


def squared_hinge(output: Array, y: Array, weights: Array) -> Scalar:
    """Mean squared hinge loss of margins, summed over one-against-rest columns."""
    signs = 2.0 * y - 1.0
    return jnp.sum(_mean(jax.nn.relu(1.0 - signs * output) ** 2, weights))


#: By name, what can be asked for; `"deviance"` is the estimator's own.
CRITERIA: dict[str, Criterion] = {
    "squared_error": squared_error,
    "root_squared_error": root_squared_error,
    "absolute_error": absolute_error,
    "r2": r2,
    "log_loss": log_loss,
    "squared_hinge": squared_hinge,
}
_EXACT = {
    "r2_score": "r2",
    "explained_variance_score": "r2",
    "mean_squared_error": "squared_error",
    "root_mean_squared_error": "root_squared_error",
    "mean_absolute_error": "absolute_error",
    "median_absolute_error": "absolute_error",
    "mean_poisson_deviance": "deviance",
    "mean_gamma_deviance": "deviance",
    "log_loss": "log_loss",
}
_CLASSIFICATION = (
    "accuracy_score",
    "average_precision_score",
    "balanced_accuracy_score",
    "brier_score_loss",
    "f1_score",
    "jaccard_score",
    "matthews_corrcoef",
    "precision_score",
    "recall_score",
    "roc_auc_score",
    "top_k_accuracy_score",
)


def criterion_for(scorer: Any, estimator: Any, *, margins: bool, deviance: bool) -> str:
    """The name of the criterion that stands for a scorer.

    **Arguments:**

    - `scorer`: what `sklearn.metrics.check_scoring` returns.
    - `estimator`: the final estimator.
    - `margins`: its outputs are margins, not logits.
    - `deviance`: it has a deviance of its own.

    **Raises:** `ValueError` naming the scorer if nothing smooth stands for it.
    """
    function = getattr(scorer, "_score_func", None)
    classification = "squared_hinge" if margins else "log_loss"
    if function is None and type(scorer).__name__ == "_PassthroughScorer":
        if is_classifier(estimator):
            return classification
        return "d2" if deviance else "r2"
    name = getattr(function, "__name__", None)
    if is_classifier(estimator):
        if name in _CLASSIFICATION or (name == "log_loss" and not margins):
            return classification
    elif name in _EXACT and (_EXACT[name] != "deviance" or deviance):
        return _EXACT[name]
    raise ValueError(
        f"'scoring': expected a scorer with a smooth stand-in, received {scorer!r}; name one with "
        f"criterion={'|'.join(CRITERIA)} or a function, or search without gradients with "
        "criterion=None"
    )
