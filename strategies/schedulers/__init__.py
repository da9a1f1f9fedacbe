"""Who is trained for how long: Hyperband, Iterative Deepening Hyperband, ASHA.

```python
from strategies.schedulers import IterativeDeepeningHyperband, run
from strategies.searchers import RandomSearcher
from strategies.space import Float, SearchSpace

space = SearchSpace({"lr": Float(1e-4, 1.0, log=True)})
scheduler = IterativeDeepeningHyperband(RandomSearcher(space), max_resource=9, eta=3)


def objective(job):  # trains job.config up to job.resource epochs
    return (job.config["lr"] - 0.1) ** 2 + 1 / job.resource


run(objective, scheduler)
scheduler.deepen(27)  # 9 epochs were too few; everything is kept
run(objective, scheduler)
print(scheduler.incumbent)
```
"""

from strategies.schedulers.asha import ASHA
from strategies.schedulers.base import Job, Scheduler
from strategies.schedulers.flips import RankFlips, RankFlipWarning, rank_flips
from strategies.schedulers.hyperband import Hyperband, hyperband_cost
from strategies.schedulers.iterative_deepening import IterativeDeepeningHyperband
from strategies.schedulers.local import run

__all__ = [
    "ASHA",
    "Hyperband",
    "IterativeDeepeningHyperband",
    "Job",
    "RankFlipWarning",
    "RankFlips",
    "Scheduler",
    "hyperband_cost",
    "rank_flips",
    "run",
]
