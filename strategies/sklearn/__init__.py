"""Scikit-learn's adapter: `HypergradSearchCV` in the place of `GridSearchCV`.

```python
from scipy.stats import loguniform
from sklearn.linear_model import Lasso
from strategies.sklearn import HypergradSearchCV

search = HypergradSearchCV(Lasso(), {"alpha": loguniform(1e-3, 1.0)}, penalty="per_feature")
search.fit(X, y).penalties_
```
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:  # pragma: no cover -- the extra is installed where this is tested
    raise ImportError(
        'strategies.sklearn needs scikit-learn: pip install "hypergrad-engine[sklearn]"'
    ) from error

from strategies.sklearn.generalization import OvertunedWarning
from strategies.sklearn.penalties import FeaturePenalties, PenalizedPipeline
from strategies.sklearn.search import HypergradSearchCV
from strategies.sklearn.trials import Trial

__all__ = [
    "FeaturePenalties",
    "HypergradSearchCV",
    "OvertunedWarning",
    "PenalizedPipeline",
    "Trial",
]
