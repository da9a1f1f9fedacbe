"""One penalty per feature or per group, with scikit-learn's own estimators.

An estimator has one penalty for all columns. Dividing column j by a factor r_j multiplies its
penalty: |r_j w_j| in place of |w_j|, (r_j w_j)² in place of w_j². So `FeaturePenalties`, a
transformer in front of the genuine estimator, represents penalties of any ratio exactly; an
intercept is not touched. For a kernel of squared distances it gives every feature a length scale.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn import get_config
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted, validate_data

#: The step's name in a pipeline.
STEP = "penalties"
#: The group of the features that a mapping does not mention, as in a `ColumnTransformer`.
REMAINDER = "remainder"


class FeaturePenalties(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Divides every column by a factor; sparse matrices stay sparse.

    Parameters:
        factors: Positive numbers, one a column, or `None` for ones. A feature whose factor is r has
            an L1 penalty r times, an L2 penalty r² times, that of a feature with factor 1; under an
            RBF kernel its length scale is r times as long.
    """

    def __init__(self, factors: Any = None):
        self.factors = factors

    def fit(self, X: Any, y: Any = None) -> "FeaturePenalties":
        """Check that there is a factor for every column."""
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32))
        factors = np.ones(X.shape[1]) if self.factors is None else np.asarray(self.factors, float)
        if factors.shape != (X.shape[1],) or not np.all((factors > 0) & np.isfinite(factors)):
            raise ValueError(
                f"'factors': expected {X.shape[1]} positive numbers, one a feature, received "
                f"{self.factors!r:.80} of shape {factors.shape}"
            )
        self.factors_ = factors
        return self

    def transform(self, X: Any) -> Any:
        """The columns divided by their factors."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)
        inverse = (1.0 / self.factors_).astype(X.dtype)
        return X @ sparse.diags_array(inverse) if sparse.issparse(X) else X * inverse

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class PenalizedPipeline(Pipeline):
    """`FeaturePenalties` and an estimator, fitted with the estimator's own `sample_weight`."""

    def fit(self, X: Any, y: Any = None, **params: Any) -> "PenalizedPipeline":
        """As `Pipeline.fit`; `sample_weight` goes to the last step."""
        if "sample_weight" in params and not get_config()["enable_metadata_routing"]:
            weight = params.pop("sample_weight")
            if weight is not None:
                params[f"{self.steps[-1][0]}__sample_weight"] = weight
        return super().fit(X, y, **params)


def with_feature_penalties(estimator: Any) -> Pipeline:
    """The estimator with a step for `FeaturePenalties` right before it, a pipeline's last step."""
    if isinstance(estimator, Pipeline):
        steps = [*estimator.steps[:-1], (STEP, FeaturePenalties()), estimator.steps[-1]]
        return type(estimator)(steps, memory=estimator.memory, verbose=estimator.verbose)
    return PenalizedPipeline([(STEP, FeaturePenalties()), (step_name(estimator), estimator)])


def step_name(estimator: Any) -> str:
    """What `make_pipeline` calls a step."""
    return type(estimator).__name__.lower()


def groups_of(
    penalty: str | Mapping[str, Sequence[Any]], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Columns of each group, by the group's name.

    **Arguments:**

    - `penalty`: `"per_feature"`; `"per_group"`, for columns that are named `block__feature` as a
      `ColumnTransformer` names them; or a mapping from names of groups to features, by name or by
      position, a feature of a block also without the block's name.
    - `names`: of the columns that reach the estimator.

    **Raises:** `ValueError` for a feature that does not exist or is in two groups, and for
    `"per_group"` where names have no blocks.
    """
    if penalty == "per_feature":
        return {name: np.array([column]) for column, name in enumerate(names)}
    if penalty == "per_group":
        blocks = [name.split("__")[0] if "__" in name else None for name in names]
        if None in blocks or len(set(blocks)) < 2:
            raise ValueError(
                "'penalty': expected features in the blocks of a ColumnTransformer for "
                f"'per_group', or a mapping from groups to features, received {list(names[:5])}..."
            )
        return {
            str(block): np.flatnonzero([b == block for b in blocks])
            for block in dict.fromkeys(blocks)
        }
    if not isinstance(penalty, Mapping) or not penalty:
        raise ValueError(
            "'penalty': expected 'single', 'per_feature', 'per_group' or a mapping from groups to "
            f"features, received {penalty!r}"
        )
    # A ColumnTransformer's `block__feature` is known as `feature` as well, if there is only one.
    bare = [name.split("__", 1)[-1] for name in names]
    count = Counter(bare)
    position = {n: column for column, n in enumerate(bare) if count[n] == 1}
    position.update({name: column for column, name in enumerate(names)})
    groups: dict[str, np.ndarray] = {}
    taken: dict[int, str] = {}
    for group, members in penalty.items():
        if isinstance(members, str) or not isinstance(members, Sequence | np.ndarray):
            raise ValueError(f"'penalty': {group!r}: expected a list, received {members!r}")
        columns = [_column(group, member, position, names) for member in members]
        for column in columns:
            if column in taken:
                raise ValueError(
                    f"'penalty': expected each feature in one group, received {names[column]!r} in "
                    f"{taken[column]!r} and {group!r}"
                )
            taken[column] = group
        groups[group] = np.array(columns, int)
    rest = [column for column in range(len(names)) if column not in taken]
    if rest:
        groups[REMAINDER] = np.array(rest)
    return groups


def _column(group: str, member: Any, position: Mapping[str, int], names: Sequence[str]) -> int:
    size = len(names)
    if isinstance(member, str) and member in position:
        return position[member]
    if isinstance(member, int | np.integer) and 0 <= member < size:
        return int(member)
    raise ValueError(
        f"'penalty': {group!r}: expected names of features ({names[:5]}...) or positions "
        f"below {size}, received {member!r}"
    )
