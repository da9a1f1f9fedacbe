"""A trial of Ray Tune that is a member of a population; its process needs no JAX."""

import math
import os
import zlib
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune

from strategies.population import checkpoint
from strategies.population.checkpoint import Stored
from strategies.ray.reports import result
from strategies.space import Config

_FILE = "member.npz"


class MemberTrainable(tune.Trainable):
    """A trial whose steps are trained elsewhere; made by `population_trainable`."""

    holder: Any
    steps: int
    iterations: int
    metric: str
    number_key: str

    def setup(self, config: Config) -> None:
        """Called by Ray."""
        self._begin(config)

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._config = {key: value for key, value in config.items() if key != self.number_key}
        given = config.get(self.number_key)
        self._label = zlib.crc32(self.trial_id.encode())
        self._number = self._label if given is None else int(given)
        self._age = 0
        #: The state at the last checkpoint, and whether the actor may have another one.
        self._kept: Stored | None = None
        self._loaded = False
        #: Whether a training from the beginning leads to where this one is.
        self._whole = True

    def step(self) -> dict[str, Any]:
        """Train for one iteration; what the actor has lost it is brought, or trained again."""
        until = self._age + self.steps
        found = None if self._loaded else self._train(self._age, until)
        if found is None and self._kept is not None:
            found = self._train(self._kept.age, until, self._kept)
        if found is None:
            if not self._whole:
                raise RuntimeError(f"the state of member {self._number} is lost with its actor")
            found = self._train(0, until)
        self._loaded, self._age = False, until
        value, metrics = found
        row = result(value, metric=self.metric, metrics={"steps": until, "metrics": metrics})
        # A member that has failed trains no more.
        return {**row, "done": not math.isfinite(value) or until >= self.iterations * self.steps}

    def _train(self, since: int, until: int, kept: Stored | None = None) -> Any:
        asked = (self._label, self._number, self._config, since, until, kept)
        return ray.get(self.holder.train.remote(*asked))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Called by Ray: the member's state, as it is in the actor, or as it was before."""
        if not self._loaded:
            self._kept = ray.get(self.holder.state.remote(self._label, self._age)) or self._kept
        stored = {} if self._kept is None else {"member": self._kept}
        mine = {"age": self._age, "life": self._life()}
        checkpoint.write(os.path.join(checkpoint_dir, _FILE), stored, mine)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Called by Ray: go on from a checkpoint, of this trial or of another one."""
        stored, note = checkpoint.read(os.path.join(checkpoint_dir, _FILE))
        self._kept, self._age = stored.get("member"), note.get("age", 0)
        self._whole = note.get("life", self._life()) == self._life()
        self._loaded = True

    def _life(self) -> str:
        """What a training from its beginning depends on, and what it went through."""
        return f"{self._number} {self._config}" if self._whole else "another's"

    def reset_config(self, new_config: Config) -> bool:
        """Called by Ray: this process goes on with another trial."""
        self.cleanup()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Called by Ray at the end of the trial."""
        self.holder.forget.remote(self._label)
