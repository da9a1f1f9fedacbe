"""Pictures of a search: each function returns a matplotlib `Figure`.

```python
from strategies import plots

plots.history(result).savefig("history.png")
```

Every source of `strategies.importance` is one here. Nothing global is touched, and no window opens.
"""

try:
    import matplotlib  # noqa: F401
except ImportError as error:  # pragma: no cover -- the extra is installed where this is tested
    raise ImportError(
        'strategies.plots needs matplotlib: pip install "hypergrad-engine[plots]"'
    ) from error

from strategies.plots.brackets import brackets
from strategies.plots.contours import contours
from strategies.plots.front import front
from strategies.plots.history import history
from strategies.plots.parallel import parallel
from strategies.plots.paths import paths
from strategies.plots.shares import shares
from strategies.plots.slices import slices

__all__ = ["brackets", "contours", "front", "history", "parallel", "paths", "shares", "slices"]
