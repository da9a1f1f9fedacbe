"""How far the mean over the tasks seen may be from that over all tasks."""

import math

from hypergrad.expected import require_count, require_number


def task_bound(
    tasks: int, pieces: int, degree: int, *, span: float = 1.0, confidence: float = 0.95
) -> float:
    """A bound on `|mean over tasks seen − expectation|` for all values of one hyperparameter.

    For losses that are, as functions of one real hyperparameter, made of at most `pieces`
    polynomials of at most `degree` (jumps between pieces allowed) and take values in an interval of
    length `span`. Each crosses a level at most `b = pieces (degree + 1) − 1` times, so that `n`
    tasks and as many levels show at most `n b + 1` patterns. By symmetrisation and Massart's lemma,
    level by level, and McDiarmid's inequality, with probability `confidence` over the tasks,

        sup over λ of |mean − expectation| <= 2 s √(2 ln(2 (n b + 1)) / n) + s √(ln(1/(1−p)) / (2n))

    It holds for what was tuned on these very tasks, which is what it is for. The dependence on the
    pieces is logarithmic, as in Balcan, Nguyen and Sharma (2025); constants are those of this
    proof. Smooth losses with `b` crossings count as `pieces=1, degree=b`.

    **Arguments:**

    - `tasks`: `n`, drawn independently.
    - `pieces`, `degree`: see above; at least 1.
    - `span`: `s > 0`.
    - `confidence`: `p` in (0, 1).
    """
    for name, value in (("tasks", tasks), ("pieces", pieces), ("degree", degree)):
        require_count("task_bound", name, value)
    require_number("task_bound", "span", span)
    require_number("task_bound", "confidence", confidence)
    if not span > 0 or not 0 < confidence < 1:
        raise ValueError(
            "task_bound: expected span > 0 and 0 < confidence < 1, received "
            f"{span!r} and {confidence!r}."
        )
    crossings = pieces * (degree + 1) - 1
    patterns = math.sqrt(2 * math.log(2 * (tasks * crossings + 1)) / tasks)
    return span * (2 * patterns + math.sqrt(math.log(1 / (1 - confidence)) / (2 * tasks)))
