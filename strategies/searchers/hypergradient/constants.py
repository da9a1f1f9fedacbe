"""The numbers of the hypergradient searcher, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Each with where it comes from.

    What a mover's record is made of:

    - `recent`: so many of the last moves of a descent, and of the last evaluations of what was
      gained lately; what held longer ago held elsewhere.
    - `most`: bound of one ratio of achieved to promised gain, so that one stroke of luck does not
      outweigh the failures that it takes on average.
    - `worth`: share of the median distance from the incumbent that is worth looking for elsewhere.
      On ill-conditioned BBOB functions a thousandth ended descents that had barely begun.

    Descent:

    - `unsure`: standard deviation of a step's decrease, as a share of it. Over the BBOB functions
      half of the ratios of actual to predicted decrease are between a half and three halves.
    - `horizon`: steps like the next one that a descent is expected to gain from in all, and
      `left_over` what each leaves of its distance where nothing is known of a chain's pace: in its
      first steps a descent gains geometrically, about two thirds of what is left each time.
    - `even`: chance that a chain ends lower than another one: nothing is known of either.
    - `lengths`: what further steps of a chain try while one is being evaluated: shorter and longer.
    - `rounding`: a decrease of this share of the value cannot be told from rounding.
    - `near`: chains whose best points are this near to each other follow each other.
    - `chains`: so many of the best chains take part; the cost of a suggestion is bounded by it.

    Reading gradients:

    - `steepest`: no slope is steeper than this times the difference between the worst value and the
      best; a valley would cross all values in a ten-thousandth of the box.
    - `doubts`: wrong signs of predicted differences that make gradients doubted.

    Surrogates:

    - `surrogate_size`, `surrogate_points`, `surrogate_rows`: dimensions, points and rows of the
      Gaussian process for restarts, which keep it near ten milliseconds. `surrogate_least`: points
      that it needs.
    - `roof`: values are cut off this many times the median distance above the best, so that one
      bad place does not flatten the rest.
    - `surrogate_iterations`: of its length scale; it changes by less than a tenth in further ones.
    - `whole`: a gradient enters whole while there is room for so many of them, then along itself.
    - `candidates`: places compared; few, as the process is least certain, and so most hopeful, in
      the corners of the box. `hops`: share of them that leave the best place in some coordinates
      only, and `shares` of these.
    - `apart`: a restart is at least this far from what was tried, if `left` such places are left.
    - `anew`: hyperparameters of surrogates are chosen anew at so many times the points; a quarter
      more points seldom say something else of them, and choosing is most of the time.
    - `additive_least`, `additive_size`, `additive_points`, `additive_derivatives`: points that the
      additive surrogate needs (from four, sums were certain of what they could not know), and its
      dimensions, points and derivatives at most.
    - `surprise`: a larger mean square of the values, in units of what the sum expected, says that
      the function is none.
    - `boldness`: standard deviations below its mean at which a minimum is looked for.
    - `draws`: random places of which the farthest from all tried is taken.
    - `attempts`: changes that are drawn until one is new.
    """

    recent: int = 5
    worth: float = 1e-5
    most: float = 2.0

    unsure: float = 0.5
    horizon: float = 3.0
    left_over: float = 1 / 3
    even: float = 0.5
    lengths: tuple[float, ...] = (1.0, 0.4, 2.0)
    rounding: float = 1e-13
    near: float = 0.1
    chains: int = 12

    steepest: float = 1e4
    doubts: int = 4

    surrogate_size: int = 30
    surrogate_points: int = 30
    surrogate_rows: int = 90
    surrogate_least: int = 4
    surrogate_iterations: int = 6
    whole: int = 2
    roof: float = 4.0
    candidates: int = 90
    hops: float = 2 / 3
    shares: tuple[float, ...] = (0.1, 0.3, 0.6)
    apart: float = 0.1
    left: int = 5
    anew: float = 1.25
    additive_least: int = 6
    additive_size: int = 100
    additive_points: int = 40
    additive_derivatives: int = 1500
    surprise: float = 3.0
    boldness: tuple[float, ...] = (0.0, 0.3)
    draws: int = 10
    attempts: int = 40

    def checkpoint(self, count: int) -> int:
        """The largest number of points, up to `count`, at which hyperparameters are chosen."""
        found = self.surrogate_least
        while (following := max(found + 1, int(self.anew * found))) <= count:
            found = following
        return min(found, count)


CONSTANTS = Constants()
