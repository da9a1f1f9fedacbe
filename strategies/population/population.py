"""Many trials in one program."""

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from strategies.arguments import finite, functions, integer, several
from strategies.ledger import Ledger, ledger_of
from strategies.local.results import Trial
from strategies.population import checkpoint
from strategies.population.buckets import checked, examples
from strategies.population.evolution import Evolution, evolve
from strategies.population.memory import available, refuse
from strategies.population.pbt import PBT
from strategies.population.program import Program
from strategies.population.progress import Progress
from strategies.population.run import Keeping, PopulationResult
from strategies.population.search import Search
from strategies.population.training import Functions, Training
from strategies.population.work import Rungs, Trials, Work
from strategies.schedulers.base import Scheduler
from strategies.searchers.base import Searcher
from strategies.space import Point, SearchSpace
from strategies.state import exclusive_lock, state_exists

PyTree = Any


class Population:
    """Trains many configurations at once: one compiled program, a lane for each member.

    ```python
    import jax
    import jax.numpy as jnp
    from strategies import Float, RandomSearcher, SearchSpace
    from strategies.population import Population

    space = SearchSpace({"rate": Float(1e-3, 1.0, log=True)})


    def init(key, config):
        return jax.random.normal(key, (3,))


    def step(state, config, batch, key):
        loss, slope = jax.value_and_grad(lambda x: jnp.sum(x**2))(state)
        return state - config["rate"] * slope, {"loss": loss}


    def evaluate(state, config):
        return jnp.sum(state**2)


    population = Population(init, step, evaluate, 8, space=space)
    result = population.run(RandomSearcher(space), trials=32, steps=20)
    print(result.best_config, result.best_value)
    ```

    Hyperparameters are inputs of the program: floats, integers and choices of numbers arrive as
    JAX scalars (arrays, if they have a shape), and new values never compile anything. What changes
    shapes is named in `buckets` and arrives as a plain value. Each member has keys of its own, so
    it becomes what it would have become alone, up to the rounding of sums in another order.

    **Arguments:**

    - `init`: `init(key, config) -> state`, any pytree of arrays: weights, optimizer state,
      environment.
    - `step`: `step(state, config, batch, key) -> state, metrics`; metrics are a pytree of arrays,
      those of the last step are in `Trial.info`.
    - `evaluate`: `evaluate(state, config) -> value`, a scalar that is minimised. NaN or infinity is
      a failure: the member is frozen, reported as failed and replaced.
    - `size`: how many members are trained at a time, at least 2.
    - `space`: the search space.
    - `batch`: `batch(key, config) -> batch` draws the batch of a step, of every member for itself.
      Default: `step` is given `None`.
    - `buckets`: paths of hyperparameters that change shapes or code. Each combination of their
      values has a program and an equal share of the lanes.
    - `seed`: of the members' keys. An integer, not a key: each member is given its own. Another
      one, `with_seed(1)`, compiles nothing.
    - `memory`: bytes that the population may take. Default: what is free on the device.
    - `devices`: that share the lanes; `size` (of each bucket) must be divisible by their number.
      Default: JAX's default device.

    **Raises:** `ValueError` for options that do not fit.
    """

    def __init__(
        self,
        init: Callable[..., PyTree],
        step: Callable[..., tuple[PyTree, PyTree]],
        evaluate: Callable[..., Any],
        size: int,
        *,
        space: SearchSpace | Mapping[str, Any],
        batch: Callable[..., PyTree] | None = None,
        buckets: Sequence[str] = (),
        seed: int = 0,
        memory: int | None = None,
        devices: Sequence[jax.Device] = (),
    ) -> None:
        given = {"init": init, "step": step, "evaluate": evaluate, "batch": batch}
        for name, function in given.items():
            if not callable(function) and (name != "batch" or function is not None):
                raise ValueError(f"{name!r}: expected a function, received {function!r:.80}")
        self._functions = Functions(init, step, evaluate, batch)
        self.size = integer("size", size, 2)
        self.space = SearchSpace.of(space)
        self.buckets = checked(self.space, buckets)
        self.seed = integer("seed", seed, 0)
        self._memory = None if memory is None else integer("memory", memory, 1)
        self.devices = several("devices", devices, "devices of JAX such as jax.devices()")
        if not all(isinstance(device, jax.Device) for device in self.devices):
            raise ValueError(f"'devices': expected jax.devices(), received {devices!r:.80}")
        self._examples = examples(self.space, self.buckets)
        self._lanes = -(-self.size // len(self._examples))
        if self._lanes % max(len(self.devices), 1):
            raise ValueError(
                f"'size': expected lanes that {len(self.devices)} devices can share equally, "
                f"received {self._lanes} for each of {len(self._examples)} programs"
            )
        self._programs: dict[int, dict[tuple[Any, ...], Program]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Programs and points belong to their process.
        return {k: v for k, v in self.__dict__.items() if k != "_examples"} | {"_programs": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._examples = examples(self.space, self.buckets)

    def with_seed(self, seed: int) -> "Population":
        """The same population with other keys; both share their compiled programs.

        A run that resumes wants the seed that it began with.

        **Raises:** `ValueError` if it is no integer >= 0.
        """
        other = copy.copy(self)
        other._programs = self._programs
        other.seed = integer("seed", seed, 0)
        return other

    # What is compiled

    def programs(self, horizon: int = 0) -> dict[tuple[Any, ...], Program]:
        """The program of each bucket; made at the first call, compiled when it is used.

        **Raises:** `ValueError` if the user's functions do not fit together, or if the population
        does not fit in memory, with the number of members that would.
        """
        if horizon not in self._programs:
            made = {
                key: Program(self._training(example), self._lanes, horizon, self.devices)
                for key, example in self._examples.items()
            }
            self._refuse(list(made.values()))
            self._programs[horizon] = made
        return self._programs[horizon]

    def check(self) -> None:
        """Refuse functions that do not fit together, without compiling anything.

        **Raises:** `ValueError` naming what to change.
        """
        for example in self._examples.values():
            self._training(example).state_shape()

    def _training(self, example: Point) -> Training:
        return Training(self._functions, self.space, example, self.buckets)

    @property
    def predicted_bytes(self) -> int:
        """Memory of all members, predicted from shapes; nothing is compiled for it."""
        programs = self.programs().values()
        each = sum(one.per_member * one.lanes for one in programs)
        return round(each + max(one.shared for one in programs))

    @property
    def traces(self) -> int:
        """How many programs were traced: one for each bucket, whatever was trained."""
        return sum(one.traces for made in self._programs.values() for one in made.values())

    def _refuse(self, programs: list[Program]) -> None:
        devices = self.devices or (jax.devices()[0],)
        free = self._memory
        if free is None:
            each = available(devices[0])
            # The devices of a CPU share its memory.
            same = devices[0].platform == "cpu"
            free = None if each is None else each * (1 if same else len(devices))
        shared = max(one.shared for one in programs)
        members = sum(one.per_member for one in programs) / len(programs)
        refuse(self.size, members, shared, free)

    # Running

    def run(
        self,
        search: "Searcher | Ledger | Scheduler | PBT",
        *,
        trials: int | None = None,
        steps: int | None = None,
        state_path: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 60.0,
        callbacks: Iterable[Callable[[Trial], bool | None]] = (),
        progress: Callable[[Progress], None] | None = None,
    ) -> PopulationResult:
        """Search.

        **Arguments:**

        - `search`: a searcher, or the ledger of one: trials of equal length. A scheduler: its rungs
          inside the program, paused members kept in free lanes or in the host's memory. A `PBT`.
        - `trials`: for a searcher, how many in all, those restored included. For a scheduler the
          most jobs, needed if it has no end.
        - `steps`: for a searcher, steps of a trial; for a scheduler, steps of one unit of its
          resource (default 1). A `PBT` has its own.
        - `state_path`: file for results, written before anybody is told of them; states of members
          are beside it, in `state_path + ".members"`. If it exists the run resumes there.
        - `checkpoint_seconds`: how often states are written, at most. What was not written is
          trained again, with the same result.
        - `callbacks`: called with a `Trial` after each result. One that returns `True` ends the
          run; what was being trained is trained on by the same call.
        - `progress`: called with a `Progress` at each boundary; `print` will do.

        Ctrl-C ends the run with the results so far; what was being trained is trained again by a
        run that resumes.

        **Returns:** A `PopulationResult`, for a `PBT` an `Evolution`.

        **Raises:** `ValueError` for options that do not fit, and see `programs`.
        """
        members = None if state_path is None else f"{os.fspath(state_path)}.members"
        keeping = _keeping(state_path, members, checkpoint_seconds, callbacks, progress)
        with exclusive_lock(state_path):
            if keeping.members_path is not None and not state_exists(state_path or ""):
                checkpoint.discard(keeping.members_path)
            if isinstance(search, PBT):
                if trials is not None or steps is not None:
                    raise ValueError("'trials', 'steps': expected none, as a PBT has its own steps")
                return self._evolve(search, keeping, Ledger(search.searcher))
            return self._search(search, trials, steps, keeping)

    def run_on(
        self,
        work: Work | PBT,
        *,
        ledger: Ledger | None = None,
        members_path: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 60.0,
        callbacks: Iterable[Callable[[Trial], bool | None]] = (),
        progress: Callable[[Progress], None] | None = None,
    ) -> PopulationResult:
        """Train what somebody else hands out and keeps the results of, such as a study of Optuna.

        **Arguments:**

        - `work`: hands out jobs, and is told what came of them; or a `PBT`.
        - `ledger`: of the `PBT`, which keeps its results. Default: one that keeps them here.
        - `members_path`: file for the members' states. Default: none; what was not finished is then
          trained again from its beginning, with the same results.
        - `checkpoint_seconds`, `callbacks`, `progress`: as for `run`.
        """
        members = None if members_path is None else os.fspath(members_path)
        keeping = _keeping(None, members, checkpoint_seconds, callbacks, progress)
        if isinstance(work, PBT):
            return self._evolve(work, keeping, ledger or Ledger(work.searcher))
        self._same_space(work.ledger.space)
        return self._work(work, keeping)

    def _work(self, work: Work, keeping: Keeping) -> PopulationResult:
        programs = self.programs()
        return Search(self.space, programs, self.buckets, work, self.seed, self.size, keeping).run()

    def _search(
        self, search: Any, trials: int | None, steps: int | None, keeping: Keeping
    ) -> PopulationResult:
        if isinstance(search, Scheduler):
            self._same_space(search.searcher.space)
            work: Rungs | Trials = Rungs(search, trials, steps)
        elif isinstance(search, Searcher | Ledger):
            ledger = ledger_of(search)
            self._same_space(ledger.space)
            work = Trials(ledger, integer("trials", trials, 1), integer("steps", steps, 1))
        else:
            raise ValueError(
                f"'search': expected a searcher, a scheduler or a PBT, received {search!r:.80}"
            )
        return self._work(work, keeping)

    def _evolve(self, search: PBT, keeping: Keeping, ledger: Ledger) -> Evolution:
        self._same_space(search.searcher.space)
        if len(self._examples) > 1:
            raise ValueError(
                f"'buckets': expected none, as weights are copied between members, "
                f"received {list(self.buckets)}"
            )
        (program,) = self.programs(search.explore.horizon).values()
        return evolve(search, program, self.seed, keeping, ledger)

    def _same_space(self, space: SearchSpace) -> None:
        if space != self.space:
            raise ValueError(f"'search': expected one on {self.space}, received one on {space}")


def _keeping(
    state_path: str | os.PathLike[str] | None,
    members_path: str | None,
    seconds: float,
    callbacks: Iterable[Callable[[Trial], bool | None]],
    progress: Callable[[Progress], None] | None,
) -> Keeping:
    if finite("checkpoint_seconds", seconds, "a finite number >= 0") < 0:
        raise ValueError(
            f"'checkpoint_seconds': expected a finite number >= 0, received {seconds!r:.80}"
        )
    calls = functions("callbacks", callbacks)
    functions("progress", [] if progress is None else [progress])
    return Keeping(state_path, members_path, seconds, calls, progress)
