"""LeadingOnes: the golden values, and the formula against a plain simulation of bits."""

import numpy as np
import pytest

from experiments.data.leading_ones import expected, optimum, simulate, success

PORTFOLIO = [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("n", "static", "best", "portfolio"),
    [
        (50, 1250.0, 969.745, 974.885),
        (100, 5000.0, 3881.936, 3902.060),
        (1000, 500000.0, 388428.3, 390449.3),
    ],
)
def test_the_published_optima(n, static, best, portfolio):
    assert expected(n, lambda i: np.ones_like(i)) == pytest.approx(static)
    found, policy = optimum(n)
    assert found == pytest.approx(best, rel=1e-6)
    assert expected(n, lambda i: n // (i + 1)) == pytest.approx(found, rel=1e-9)
    assert (policy == n // (np.arange(n) + 1)).mean() > 0.9  # elsewhere two are equally good
    assert optimum(n, PORTFOLIO)[0] == pytest.approx(portfolio, rel=1e-6)


def bits(n, choose, rng):
    """Local search on the bits themselves."""

    def worth(x):
        return n if x.all() else int(np.argmin(x))

    x, steps = rng.integers(0, 2, n), 0
    while (value := worth(x)) < n:
        y = x.copy()
        y[rng.choice(n, choose(value), replace=False)] ^= 1
        x, steps = (y if worth(y) >= value else x), steps + 1
    return steps


def test_the_formula_is_the_mean_of_runs_on_bits_and_of_the_simulation():
    n, rng = 8, np.random.default_rng(0)
    exact = expected(n, lambda i: n // (i + 1))
    for run in (bits, lambda n, c, rng: simulate(n, c, rng)):
        times = [run(n, lambda i: n // (i + 1), rng) for _ in range(1500)]
        error = np.std(times) / np.sqrt(len(times))
        assert abs(np.mean(times) - exact) < 4 * error
    assert success(n, 3, 6) == 0
    assert expected(n, lambda i: np.full_like(i, 3)) == np.inf
