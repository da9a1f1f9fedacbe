"""Local search along hypergradients, many chains at once, with discrete search around it.

A *chain* descends from one starting point by a bounded quasi-Newton method in the unit
coordinates, where log domains are affine and every bound is 0 or 1. Each step minimises the model
`g·s + s·Bs/2` over the intersection of the box and an ∞-norm trust region, `B` being the limited-
memory BFGS matrix (Byrd, Lu, Nocedal and Zhu, SIAM J. Sci. Comput. 16, 1995) of the gradients seen
on the chain; the trust region follows the ratio of actual to predicted decrease (Conn, Gould and
Toint, Trust-Region Methods, 2000). Chains compete: the next evaluation goes to the chain whose
value minus its optimistic further decrease is lowest. What has no gradient, such as categoricals
and integers, is searched by changing it around the incumbent, which starts a new chain from the
incumbent's continuous values; when the best chain has converged, chains start elsewhere.

Where the gradients say that the objective is a sum of functions of one coordinate each, and the
values agree, chains start at the minimum of that sum (`strategies.surrogates.additive`), however
many valleys it has.
"""

import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.searchers.bayes import BayesSearcher
from strategies.searchers.mutation import perturbed
from strategies.space import SearchSpace
from strategies.surrogates.additive import AdditiveSurrogate, fit_additive
from strategies.surrogates.gaussian_process import Rows, fit

# What a chain's further steps try while one is being evaluated, relative to its radius.
_LENGTHS = (1.0, 0.4, 2.0)
# A chain may end this many times its next step's decrease lower.
_HORIZON = 3.0
# No slope is steeper than so many times the difference between the worst value and the best.
_STEEPEST = 1e4
# The last steps of a chain: at least so much of a decrease that is worth an evaluation otherwise.
_POLISH = 1e-6
# The surrogate that chooses new starts: at most so many dimensions, and so many rows.
_SURROGATE_SIZE = 30
_SURROGATE_ROWS = 90
# The additive surrogate: at most so many dimensions, points and derivatives; and a larger mean
# square of the values, in units of what was expected, says that the function is not additive.
_ADDITIVE_SIZE = 100
_ADDITIVE_POINTS = 40
_ADDITIVE_DERIVATIVES = 1500
_SURPRISE = 3.0
# So many standard deviations below its mean is looked for a minimum.
_BOLDNESS = (0.0, 0.3)


@dataclass(frozen=True, eq=False)
class _Point:
    """An observation in unit coordinates; `gradient` is NaN where nothing is known."""

    name: int
    unit: np.ndarray
    value: float
    gradient: np.ndarray
    error: float
    note: Mapping[str, Any]
    active: np.ndarray


@dataclass(frozen=True, eq=False)
class _Chain:
    """The points that descended from one start, and the step that the model proposes next."""

    name: int
    points: list[_Point]
    best: _Point
    where: np.ndarray
    radius: float
    step: np.ndarray
    decrease: float
    trust: float
    pairs: list[tuple[np.ndarray, np.ndarray]]


class _Model:
    """`B = theta I - W M Wᵀ`, the BFGS matrix of some pairs, as an operator."""

    def __init__(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]], diagonal: np.ndarray):
        self.diagonal = diagonal
        # Unrolled rank-two updates; with at most tens of pairs this is as fast as the compact form.
        self.terms: list[tuple[np.ndarray, np.ndarray]] = []
        for s, y in pairs:
            bs = self(s)
            self.terms.append((y / np.sqrt(s @ y), bs / np.sqrt(s @ bs)))

    def __call__(self, v: np.ndarray) -> np.ndarray:
        result = self.diagonal * v
        for plus, minus in self.terms:
            result = result + plus * (plus @ v) - minus * (minus @ v)
        return result


def _box_minimum(
    gradient: np.ndarray, model: _Model, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Minimise `g·s + s·Bs/2` for `low <= s <= high`: conjugate gradients on the free variables.

    Whenever a conjugate-gradient path leaves the box, its end is projected and the variables on a
    bound that want to stay there are held; the loop ends when no variable changes its side.
    """
    s = np.zeros_like(gradient)
    for _ in range(20):
        slope = gradient + model(s)
        held = ((s <= low) & (slope >= 0)) | ((s >= high) & (slope <= 0))
        free = ~held
        residual = np.where(free, -slope, 0.0)
        size = float(residual @ residual)
        if size <= 1e-16 * float(gradient @ gradient):
            break
        start = s
        d, p = np.zeros_like(s), residual
        for _ in range(2 * len(model.terms) + 10):
            curved = np.where(free, model(p), 0.0)
            length = size / float(p @ curved)
            d = d + length * p
            residual = residual - length * curved
            new = float(residual @ residual)
            outside = np.any((start + d < low) | (start + d > high))
            if new <= 1e-12 * float(gradient @ gradient) or outside:
                break
            p = residual + new / size * p
            size = new
        # Project; halve the path until the model decreases (projection may bend it upwards).
        before = float(gradient @ s + 0.5 * (s @ model(s)))
        length = 1.0
        for _ in range(20):
            trial = np.clip(start + length * d, low, high)
            after = float(gradient @ trial + 0.5 * (trial @ model(trial)))
            if after < before:
                s = trial
                break
            length *= 0.5
        else:
            break
        if before - after <= 1e-6 * abs(after):
            break
    return s


class _Offer(NamedTuple):
    """A jump: its expected improvement, the one that the surrogate's mean promises, and where."""

    gain: float
    promise: float
    place: np.ndarray


def _offers(surrogate: AdditiveSurrogate) -> list[_Offer]:
    """Where every coordinate by itself may be lowest; then where their sum may, best first.

    The first is not for its value: a gradient tells of all coordinates at once, so that each can be
    searched where it is least known, whatever the others do.
    """
    means, deviations = surrogate.mean, np.maximum(surrogate.deviation, 1e-300)
    columns = np.arange(means.shape[1])

    def offer(rows: np.ndarray, gain: float | None = None) -> _Offer:
        mean = float(means[rows, columns].sum())
        spread = max(float(np.linalg.norm(deviations[rows, columns])), 1e-3 * abs(mean), 1e-300)
        if gain is None:
            gain = float(_expected_gain(np.array(-mean), np.array(spread)))
        return _Offer(gain, max(-mean, 0.0), surrogate.places[rows, columns])

    gains = _expected_gain(means.min(axis=0) - means, deviations)
    apart = offer(np.argmax(gains, axis=0), float(gains.max(axis=0).sum()))
    together = [offer(np.argmin(means - bold * deviations, axis=0)) for bold in _BOLDNESS]
    return [apart, *sorted(together, key=lambda jump: -jump.gain)]


def _expected_gain(below: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Expected improvement of what is believed to lie so far below a level."""
    with np.errstate(over="ignore"):  # infinity is clipped as well
        z = np.clip(below / deviation, -30.0, 30.0)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return below * ndtr(z) + deviation * density


class HypergradientSearcher(Searcher):
    """Multi-start bounded quasi-Newton for what has a gradient, search around it for what has none.

    Works with partial, noisy or missing gradients, any number of pending suggestions, and
    observations in any order. Gradients whose reported relative error is 1 or more are ignored;
    smaller errors shorten the steps and drop curvature that they could have caused. Where the
    gradients seen do not predict the values seen, they are ignored altogether. Where the best
    configuration has none to follow and there is nothing to change, a Gaussian process decides
    (`BayesSearcher`).

    **Arguments:**

    - `space`, `seed`, `first`: see `Searcher`.
    - `radius`: first trust-region radius, in units of the box's side.
    - `memory`: number of gradient differences kept by a chain.

    `suggestion.note["move"]` says what a suggestion is: `"start"` (a new place), `"step"` (a
    quasi-Newton step of a chain), `"change"` (the incumbent, changed in what has no gradient) or
    `"model"` (the Gaussian process's choice).
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        radius: float = 0.15,
        memory: int = 12,
    ):
        super().__init__(space, seed=seed, first=first)
        if not 0 < radius <= 1:
            raise ValueError(f"'radius': expected a number in (0, 1], received {radius!r}")
        if memory < 1:
            raise ValueError(f"'memory': expected an integer >= 1, received {memory!r}")
        self.radius = radius
        self.memory = memory
        self._seen: dict[int, tuple[Observation, _Point]] = {}

    # Reading the history

    def _point(self, observation: Observation) -> _Point:
        """The observation in unit coordinates; remembered, as encoding long arrays takes time."""
        found = self._seen.get(id(observation))
        if found is not None and found[0] is observation:
            return found[1]
        unit = self.space.encode(observation.config)
        gradient = np.full(self.space.dimension, np.nan)
        error = observation.gradient_error
        error = 0.0 if error is None or np.isnan(error) else max(float(error), 0.0)
        complete = observation.status == "complete"
        if complete and observation.gradient and error < 1.0:
            gradient = self.space.pull_back(observation.config, observation.gradient)
        point = _Point(
            # A point that nobody suggested is known by its coordinates.
            name=-1 - zlib.crc32(unit.tobytes())
            if observation.number is None
            else observation.number,
            unit=unit,
            value=float(observation.value) if complete else np.inf,  # type: ignore[arg-type]
            gradient=gradient,
            error=error,
            note=observation.note,
            active=self.space.active_mask(observation.config),
        )
        if len(self._seen) > 100_000:
            self._seen.clear()
        self._seen[id(observation)] = (observation, point)
        return point

    def _chains(self, points: Sequence[_Point], graded: np.ndarray) -> list[_Chain]:
        """The chains, best first."""
        groups: dict[tuple[int, bytes], list[_Point]] = {}
        for point in points:
            name = point.note.get("chain", point.name)
            fixed = np.where(graded, -1.0, point.unit).tobytes()
            groups.setdefault((name, fixed), []).append(point)
        chains: list[_Chain] = []
        for (name, _), members in groups.items():
            known = [p for p in members if np.isfinite(p.value)]
            if known:
                chains.append(self._chain(name, members, known, graded, chains))
        return sorted(chains, key=lambda chain: (chain.best.value, chain.name))

    def _chain(
        self,
        name: int,
        members: list[_Point],
        known: list[_Point],
        graded: np.ndarray,
        earlier: Sequence[_Chain],
    ) -> _Chain:
        best = min(known, key=lambda p: p.value)
        where = np.isfinite(best.gradient) & graded
        radius, trust = self.radius, 1.0
        for point in members:
            if point.note.get("move") != "step":
                continue
            length, predicted = point.note["length"], point.note["decrease"]
            ratio = (point.note["from"] - point.value) / predicted
            if ratio < 0.25:
                radius = min(radius, 0.5 * length if ratio > 0 else 0.3 * length)
            elif ratio > 0.5 and length > 0.8 * radius:
                radius = max(radius, min(2.0 * length, 1.0))
            trust = float(np.clip(ratio, 0.1, 2.0))
        step, decrease = np.zeros_like(best.unit), 0.0
        pairs = self._pairs(known, where)
        if len(known) == 1:
            pairs = self._inherited(known[0], where, earlier)
        if where.any():
            step, decrease = self._step(best, pairs, where, radius)
        return _Chain(name, known, best, where, radius, step, decrease, trust, pairs)

    @staticmethod
    def _inherited(
        point: _Point, where: np.ndarray, earlier: Sequence[_Chain]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Curvature for a chain of one point: that of the chain it was changed from."""
        for chain in earlier:
            if chain.name == point.note.get("parent") and np.array_equal(chain.where, where):
                return chain.pairs
        return []

    def _pairs(
        self, known: Sequence[_Point], where: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Differences of points and of gradients along the chain, oldest first."""
        graded = [p for p in known if np.isfinite(p.gradient[where]).all()]
        pairs = []
        for earlier, later in itertools.pairwise(graded):
            s = (later.unit - earlier.unit)[where]
            y = (later.gradient - earlier.gradient)[where]
            noise = max(earlier.error, later.error) * max(
                float(np.linalg.norm(earlier.gradient[where])),
                float(np.linalg.norm(later.gradient[where])),
            )
            curvature = float(s @ y)
            if curvature > 1e-6 * float(np.linalg.norm(s)) * max(float(np.linalg.norm(y)), noise):
                pairs.append((s, y))
            elif curvature < 0 and later.value < earlier.value:
                # Downhill over a hump: what was learnt before it holds no longer.
                pairs.clear()
        return pairs[-self.memory :]

    def _step(
        self,
        best: _Point,
        pairs: Sequence[tuple[np.ndarray, np.ndarray]],
        where: np.ndarray,
        radius: float,
    ) -> tuple[np.ndarray, float]:
        """The model's minimiser in the box and the trust region, and its predicted decrease."""
        gradient, unit = best.gradient[where], best.unit[where]
        largest = float(np.max(np.abs(gradient), initial=0.0))
        step = np.zeros_like(best.unit)
        if largest == 0.0:
            return step, 0.0
        if pairs:
            s, y = pairs[-1]
            scale = float(y @ y) / float(s @ y)
            diagonal = np.full(len(unit), scale)
        else:
            diagonal = np.full(len(unit), largest / radius)
        model = _Model(pairs, diagonal)
        radius = radius * (1.0 - best.error)
        low = np.maximum(-radius, -unit)
        high = np.minimum(radius, 1.0 - unit)
        s = _box_minimum(gradient, model, low, high)
        step[where] = s
        return step, -float(gradient @ s + 0.5 * (s @ model(s)))

    # Choosing

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        rng = self.rng(number)
        points = self._smooth([self._point(observation) for observation in history])
        known = [point for point in points if np.isfinite(point.value)]
        waiting = [self.space.encode(suggestion.config) for suggestion in pending]
        places = [*(point.unit for point in points), *waiting]
        notes = [*(item.note for item in history), *(item.note for item in pending)]
        moves = [note.get("move") for note in notes]
        # A trial that tuned itself reports another place, yet the default has been its start.
        begun = "start" in moves or self.space.default() in self.first
        if not known:
            return self._start(number, rng, places, begun)
        tried = {unit.tobytes() for unit in places}
        informative = self._informative(known)
        graded = informative & self._trusted(known)
        chains = self._chains(points, graded)
        underway = [item.note.get("chain") for item in pending if item.note.get("move") == "step"]
        best = chains[0]

        least = self._least(known)
        settled = best.decrease <= least
        jump = self._jump(number, best, known, informative, tried, least)
        if jump is not None:
            return jump
        if (
            best.decrease <= 100.0 * least
            and self._bent(best, known, graded, 500.0 * least)
            and 0 < best.where.sum() <= _SURROGATE_SIZE
            and moves.count("step") > 4 * moves.count("start")
            and not (moves and moves[-1] == "start")
        ):
            return self._start(number, rng, places, begun, best, known, graded)
        change = step = None
        if settled or moves.count("change") <= moves.count("step"):
            change = self._changed(rng, best.best, places, graded)
        if change is None or moves.count("step") <= moves.count("change"):
            step = self._advanced(number, chains, underway, least, tried)
        if step is not None:
            return step
        if change is not None and (moves.count("change") < 10 or rng.random() < 0.8):
            return Suggestion(
                number, change, {"move": "change", "chain": number, "parent": best.name}
            )
        if not best.where.any():
            return self._modelled(number, history, pending, gradients=bool(graded.any()))
        # Nothing else promises more: what little the best chain may still descend.
        step = self._advanced(number, chains[:1], underway, _POLISH * least, tried)
        if step is not None:
            return step
        return self._start(number, rng, places, begun, best, known, graded)

    def _modelled(
        self,
        number: int,
        history: Sequence[Observation],
        pending: Sequence[Suggestion],
        gradients: bool,
    ) -> Suggestion:
        """Where there is no gradient to follow: what a Gaussian process expects most of."""
        searcher = BayesSearcher(self.space, seed=self.seed, gradients=gradients)
        suggestion = searcher.propose(number, history, pending)
        return replace(suggestion, note={"move": "model", "chain": number})

    @staticmethod
    def _smooth(points: Sequence[_Point]) -> list[_Point]:
        """The points, those gradients left out that say nothing beyond their own neighbourhood.

        Behind the edge of stability a training is chaotic: slopes grow exponentially, values do
        not. No valley is so steep that its slope would cross all values in a sliver of the box.
        """
        values = [point.value for point in points if np.isfinite(point.value)]
        if not values:
            return list(points)
        steepest = _STEEPEST * (max(values) - min(values))

        def explodes(point: _Point) -> bool:
            return (
                float(np.max(np.abs(np.nan_to_num(point.gradient)), initial=0.0)) > steepest > 0.0
            )

        nothing = np.full_like(points[0].gradient, np.nan)
        return [replace(p, gradient=nothing) if explodes(p) else p for p in points]

    @staticmethod
    def _least(known: Sequence[_Point]) -> float:
        """A decrease that is not worth an evaluation while there is anything else to try."""
        lowest = min(point.value for point in known)
        # Steps crowd around their minimum, and a bad place says nothing of the valley: the best of
        # all other points tells how values differ.
        values = [point.value for point in known if point.note.get("move") != "step"]
        scale = min(values or [point.value for point in known]) - lowest
        return max(1e-4 * scale, 1e-9 * abs(lowest), 1e-300)

    def _advanced(
        self,
        number: int,
        chains: Sequence[_Chain],
        underway: Sequence[Any],
        least: float,
        tried: set[bytes],
    ) -> Suggestion | None:
        """The next step of the chain that may end lowest."""
        offers = []
        for chain in chains:
            count = underway.count(chain.name)
            if chain.decrease <= least or count >= len(_LENGTHS):
                continue
            # A step that is being evaluated already makes another one less valuable.
            hope = _HORIZON * chain.trust * chain.decrease * 0.5**count
            if chain is not chains[0] and chain.best.value - hope >= chains[0].best.value:
                continue
            if any(self._joined(chain, better) for better in chains[: chains.index(chain)]):
                continue
            offers.append((chain.best.value - hope, chain.name, count, chain))
        for _, _, count, chain in sorted(offers, key=lambda offer: offer[:3]):
            step, decrease = chain.step, chain.decrease
            if count:
                radius = chain.radius * _LENGTHS[count]
                step, decrease = self._step(chain.best, chain.pairs, chain.where, radius)
            config = self.space.decode(np.clip(chain.best.unit + step, 0.0, 1.0))
            if decrease <= 0 or self.space.encode(config).tobytes() in tried:
                continue
            note = {
                "move": "step",
                "chain": chain.name,
                "base": chain.best.name,
                "from": chain.best.value,
                "length": float(np.max(np.abs(step))),
                "decrease": decrease,
            }
            return Suggestion(number, config, note)
        return None

    @staticmethod
    def _bent(best: _Chain, known: Sequence[_Point], graded: np.ndarray, tolerance: float) -> bool:
        """Whether some value lies clearly below a tangent, so that there may be other valleys."""
        fixed = best.best.unit[~graded]
        alike = [
            p
            for p in known
            if np.isfinite(p.gradient[best.where]).all() and np.array_equal(p.unit[~graded], fixed)
        ][-50:]
        x = np.array([p.unit[best.where] for p in alike])
        slopes = np.array([p.gradient[best.where] for p in alike])
        values = np.array([p.value for p in alike])
        rise = slopes @ x.T - np.sum(slopes * x, axis=1)[:, None]
        return bool(np.any(values < values[:, None] + rise - tolerance))

    @staticmethod
    def _joined(chain: _Chain, better: _Chain) -> bool:
        """Whether a chain has come so near to a better one that it would only follow it."""
        away = np.abs(chain.best.unit - better.best.unit)
        return len(chain.points) > 1 and float(away.max()) < 0.1

    def _informative(self, known: Sequence[_Point]) -> np.ndarray:
        """Mask of the coordinates that gradients say something about.

        A gradient that is zero everywhere, as that of a learning rate by implicit differentiation,
        says nothing; one entry of an array may be zero for good reasons.
        """
        seen = np.zeros(self.space.dimension, bool)
        for point in known:
            seen |= np.nan_to_num(point.gradient) != 0.0
        for where in self.space.slices.values():
            seen[where] = seen[where].any()
        return seen

    @staticmethod
    def _trusted(known: Sequence[_Point]) -> bool:
        """Whether the gradients seen predict the differences of the values seen.

        The trapezoidal rule along a chain's steps gets the sign of nearly every difference right
        if the gradients are those of the values, and of every second one if they are noise.
        """
        by_name = {point.name: point for point in known}
        right = wrong = 0
        for point in known:
            base = by_name.get(point.note.get("base", point.name))
            if base is None or base is point:
                continue
            slope = np.nan_to_num(0.5 * (base.gradient + point.gradient))
            expected = float(slope @ (point.unit - base.unit))
            actual = point.value - base.value
            if expected * actual > 0:
                right += 1
            elif expected * actual < 0:
                wrong += 1
        return wrong < 4 or right > 2 * wrong

    def _start(
        self,
        number: int,
        rng: np.random.Generator,
        places: Sequence[np.ndarray],
        begun: bool,
        best: _Chain | None = None,
        known: Sequence[_Point] = (),
        graded: np.ndarray | None = None,
    ) -> Suggestion:
        """A new place: the default, then where a surrogate expects most, or far from all tried."""
        config = self.space.default()
        note = {"move": "start", "chain": number}
        if not places:
            return Suggestion(number, config, note)
        others = np.array(places)
        if not begun and not np.any(np.all(others == self.space.encode(config), axis=1)):
            return Suggestion(number, config, note)
        if best is not None and graded is not None:
            unit = self._promising(rng, best, known, graded, others)
            if unit is not None:
                return Suggestion(number, self.space.decode(unit), note)
        draws = [self.space.sample(rng) for _ in range(10 if self.space.dimension < 1000 else 1)]
        away = [np.min(np.sum((others - self.space.encode(c)) ** 2, axis=1)) for c in draws]
        return Suggestion(number, draws[int(np.argmax(away))], note)

    def _promising(
        self,
        rng: np.random.Generator,
        best: _Chain,
        known: Sequence[_Point],
        graded: np.ndarray,
        others: np.ndarray,
    ) -> np.ndarray | None:
        """The largest expected improvement of a Gaussian process on values and gradients.

        Only over what has gradients, at the best chain's other values, and only in so few
        dimensions that some hundred rows describe the landscape.
        """
        where = best.where
        size = int(where.sum())
        alike = [p for p in known if np.array_equal(p.unit[~graded], best.best.unit[~graded])]
        if not 0 < size <= _SURROGATE_SIZE or len(alike) < 4:
            return None
        alike = sorted(alike, key=lambda p: p.value)[:30]
        values = np.array([p.value for p in alike])
        # Bounded above, so that one bad place does not flatten the rest.
        roof = values[0] + 4.0 * max(float(np.median(values)) - values[0], 1e-12)
        scale = max(float(np.std(np.minimum(values, roof))), 1e-12)
        x = np.array([p.unit[where] for p in alike])
        rows, targets = Rows.values(x), np.minimum(values, roof) - np.median(values)
        room = _SURROGATE_ROWS - len(alike)
        for p in alike:
            slope = p.gradient[where]
            if p.value >= roof or not np.isfinite(slope).all() or room < 1:
                continue
            if room >= size * 2:
                directions = np.eye(size)
            elif slope.any():
                directions = (slope / np.linalg.norm(slope))[None]
            else:
                continue
            noise = np.full(len(directions), p.error * float(np.linalg.norm(slope)) / scale)
            at = np.repeat(p.unit[where][None], len(directions), 0)
            rows = rows.join(Rows(at, directions, noise))
            targets = np.append(targets, directions @ slope)
            room -= len(directions)
        process = fit(rows, targets / scale, np.zeros(size, int), iterations=6)
        # A valley is often left by moving in some coordinates only. The candidates are few, as the
        # surrogate is least certain, and so most hopeful, in the corners of the box.
        some = rng.random((60, size)) < rng.choice([0.1, 0.3, 0.6], (60, 1)) + 0.5 / size
        hops = np.where(some, rng.random((60, size)), best.best.unit[where])
        candidates = np.concatenate([rng.random((30, size)), hops])
        away = np.abs(candidates[:, None] - others[:, where]).max(axis=2).min(axis=1)
        candidates = candidates[away >= min(0.1, float(np.sort(away)[-5]))]
        mean, deviation = process.predict(candidates)
        gain = (values[0] - np.median(values)) / scale - mean
        z = gain / deviation
        improvement = gain * ndtr(z) + deviation * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
        unit = best.best.unit.copy()
        unit[where] = candidates[int(np.argmax(improvement))]
        return unit

    def _jump(
        self,
        number: int,
        best: _Chain,
        known: Sequence[_Point],
        informative: np.ndarray,
        tried: set[bytes],
        least: float,
    ) -> Suggestion | None:
        """The minimum of an additive surrogate, if the values say that the function is additive.

        That of its mean or of a lower confidence bound; where neither promises much any more, what
        every coordinate by itself may gain. Where such jumps have not kept what they promised, they
        must promise more than the best chain hopes for.
        """
        # Gradients that do not predict a step may still be those of ripples.
        where = np.isfinite(best.best.gradient) & informative
        alike = [
            p
            for p in known
            if np.isfinite(p.gradient[where]).all()
            and np.array_equal(p.unit[~informative], best.best.unit[~informative])
        ]
        if not where.any() or len(alike) < 4 or where.sum() > _ADDITIVE_SIZE:
            return None
        room = min(_ADDITIVE_POINTS, _ADDITIVE_DERIVATIVES // int(where.sum()))
        if len(alike) > room:
            lowest = sorted(alike, key=lambda p: p.value)[: room // 2]
            names = {p.name for p in [*lowest, *alike[-room // 2 :]]}
            alike = [p for p in alike if p.name in names]
        surrogate = fit_additive(
            np.array([p.unit[where] for p in alike]),
            np.array([p.value for p in alike]),
            np.array([p.gradient[where] for p in alike]),
            np.array([p.error for p in alike]),
            next(i for i, p in enumerate(alike) if p is best.best),
        )
        if surrogate is None or surrogate.surprise > _SURPRISE:
            return None
        hope = _POLISH * least
        jumps = [p for p in alike if p.note.get("promise")][-3:]
        if len(jumps) == 3 and all(
            p.note["from"] - p.value < 0.3 * p.note["promise"] for p in jumps
        ):
            hope = max(_HORIZON * best.trust * best.decrease, 10.0 * least)
        apart, *together = _offers(surrogate)
        worth = 10.0 * least
        idle = best.decrease <= worth and max(offer.gain for offer in together) <= worth
        for offer in [*([apart] if idle and apart.gain > worth else []), *together]:
            unit = best.best.unit.copy()
            unit[where] = offer.place
            config = self.space.decode(unit)
            if offer.gain > hope and self.space.encode(config).tobytes() not in tried:
                note = {"move": "start", "chain": number, "from": best.best.value}
                return Suggestion(number, config, {**note, "promise": offer.promise})
        return None

    def _changed(
        self,
        rng: np.random.Generator,
        base: _Point,
        places: Sequence[np.ndarray],
        graded: np.ndarray,
    ) -> dict[str, Any] | None:
        """The incumbent with changes in what has no gradient; `None` if all near it was tried."""
        searched = [
            path
            for path, where in self.space.slices.items()
            if base.active[where].any() and not graded[where].all()
        ]
        if not searched:
            return None
        seen = {unit[~graded].tobytes() for unit in places}
        if np.prod([self.space.domains[path].count for path in searched]) <= len(
            {unit[~graded & base.active].tobytes() for unit in places}
        ):
            return None
        for attempt in range(40):
            # One change at a time, more of them when single ones have all been tried.
            count = min(1 + attempt // 10, len(searched))
            unit = base.unit.copy()
            for path in rng.choice(searched, count, replace=False):
                where = self.space.slices[path]
                unit[where] = perturbed(rng, self.space.domains[path], unit[where])
            if unit[~graded].tobytes() in seen:
                continue
            config = self.space.decode(unit)
            if self.space.encode(config)[~graded].tobytes() not in seen:
                return config
        return None
