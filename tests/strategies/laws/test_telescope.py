"""Tuning at sizes that double."""

import math

import pytest

from strategies.laws import PowerLaw, telescope

SIZES = [64, 128, 256, 512]


def loss(config, size):
    """The best rate drifts a little, by a power of the size that vanishes."""
    best = 2.0**-6 * (1 + 16 / size)
    return 1.0 + 0.1 * math.log2(config["lr"] / best) ** 2 + math.log2(config["wd"] / 0.1) ** 2


def test_it_ends_as_near_as_a_full_grid_and_costs_little_more():
    ranges = {"lr": (2.0**-10, 2.0**-2), "wd": (0.01, 1.0)}
    found = telescope(loss, ranges, SIZES)
    assert [len([r for r in found.rows if r["size"] == s]) for s in SIZES] == [25] * 4
    assert all(stage.bracketed for stage in found.stages)
    # A grid as fine as the last one over the whole range has 33 x 33 points.
    assert found.stages[-1].value <= 1.01
    # Trainings that cost as the square of the width: a third more than those of the last size.
    assert found.cost(lambda size: size**2) == pytest.approx(25 * (1 + 1 / 4 + 1 / 16 + 1 / 64))
    law = PowerLaw.fit(found.points, ("size",), "lr")
    assert abs(law.exponents[0]) < 0.2


def test_an_optimum_at_an_end_is_said_and_followed():
    found = telescope(loss, {"lr": (2.0**-5, 2.0**-1), "wd": (0.05, 0.2)}, SIZES, shrink=1.0)
    assert [stage.bracketed for stage in found.stages] == [False, True, True, True]
    assert [point["size"] for point in found.points] == SIZES[1:]
    assert found.stages[1].ranges["lr"][0] == pytest.approx(2.0**-7)


def test_it_goes_on_where_it_was_interrupted():
    ranges, record, left = {"lr": (2.0**-9, 2.0**-3), "wd": (0.01, 1.0)}, [], 40

    def fails(config, size):
        if len(record) == left:
            raise KeyboardInterrupt
        return loss(config, size)

    with pytest.raises(KeyboardInterrupt):
        telescope(fails, ranges, SIZES, record=record)
    assert len(record) == left
    asked = []
    again = telescope(lambda c, s: asked.append(c) or loss(c, s), ranges, SIZES, record=record)
    assert len(asked) == 100 - left
    assert again.config == telescope(loss, ranges, SIZES).config


def test_what_is_refused():
    with pytest.raises(ValueError, match="'lr': expected positive numbers that ascend"):
        telescope(loss, {"lr": (0.0, 1.0)}, SIZES)
    with pytest.raises(ValueError, match="'sizes': expected positive numbers that ascend"):
        telescope(loss, {"lr": (0.1, 1.0)}, [64, 32])
    with pytest.raises(ValueError, match=r"'lr': expected positive numbers .* received True"):
        telescope(loss, {"lr": (0.1, True)}, SIZES)
    with pytest.raises(ValueError, match=r"'sizes': expected positive numbers .* received True"):
        telescope(loss, {"lr": (0.1, 1.0)}, [True, 32])
    with pytest.raises(ValueError, match="'points': expected an odd number"):
        telescope(loss, {"lr": (0.1, 1.0)}, SIZES, points=4)
    with pytest.raises(ValueError, match="size 64: expected a finite loss"):
        telescope(lambda c, s: math.nan, {"lr": (0.1, 1.0)}, SIZES)
