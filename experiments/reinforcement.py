"""Populations of agents: tuning PPO on CartPole and Acrobot at equal environment steps.

Every member is an agent trained by proximal policy optimisation (Schulman et al. 2017), written
here in its plainest form: a rollout in parallel environments of gymnax, advantages by GAE, a few
epochs on the whole rollout with Adam. All members train in one program. Tuned are the learning
rate, the discount, GAE's lambda, the clipping range and the entropy bonus.

The value of a member is what its latest episodes returned, from the rollouts that it was trained
on, so that evaluating costs no environment steps. Its derivative is the policy gradient of one more
rollout (Xu et al. 2018, meta-gradients): `evaluate` adds a term that is zero and whose derivative
is that. So `FollowGradient` moves the five hyperparameters along meta-gradients through an update.

Population-based training in four forms is compared with random search, ASHA and Bayesian
optimisation, each with as many environment steps. The best member of each is then judged by the
return of fresh episodes. ARLBench (Becktepe et al. 2024) found that such searches often do not
beat random search there; what is measured here is on the page, whichever way it went.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies import BayesSearcher, Float, RandomSearcher, SearchSpace
from strategies.local import Trial
from strategies.population import (
    PB2,
    PBT,
    Evolution,
    FollowGradient,
    Perturb,
    Population,
    PopulationResult,
)
from strategies.schedulers import ASHA

HIDDEN, ENVIRONMENTS, LENGTH, EPOCHS = 32, 8, 64, 4
#: With which the running mean of episodes' returns forgets.
MEMORY = 0.9
#: Of the policy gradient that the meta-gradient is taken of.
DISCOUNT, LAMBDA = 0.99, 0.95
EPISODE = 500
TASKS = {"cartpole": "CartPole-v1", "acrobot": "Acrobot-v1"}
SPACE = SearchSpace(
    {
        "rate": Float(1e-4, 1e-1, log=True),
        "discount": Float(0.8, 0.999),
        "lambda": Float(0.5, 1.0),
        "clip": Float(0.05, 0.5),
        "entropy": Float(1e-4, 1e-1, log=True),
    }
)


class Steps(NamedTuple):
    """What was seen in a rollout, leading axes `(LENGTH, ENVIRONMENTS)`."""

    seen: Array
    action: Array
    reward: Array
    done: Array
    log: Array
    value: Array


class Agent(NamedTuple):
    """A member: network, Adam's moments, the environments, and the mean return of late.

    `episode` holds the return so far of the episode in each environment.
    """

    weights: Any
    first: Any
    second: Any
    age: Array
    world: Any
    seen: Array
    episode: Array
    returned: Array
    key: Array


class Task:
    """PPO on an environment of gymnax, as the functions of a population."""

    def __init__(self, name: str) -> None:
        try:
            import gymnax
        except ImportError as error:
            raise ImportError(
                'gymnax is not on this machine: pip install "hypergrad-engine[gymnax]"'
            ) from error
        self.world, self.options = gymnax.make(TASKS[name])
        self.actions = int(self.world.num_actions)
        seen, _ = self.world.reset(jax.random.key(0), self.options)
        self.inputs = seen.shape[0]
        #: What a member that has not finished an episode is said to have returned.
        self.worst = 0.0 if name == "cartpole" else -float(EPISODE)
        self._episodes = jax.jit(jax.vmap(self._episode, (None, 0)))

    def population(self, size: int) -> Population:
        """So many agents."""
        return Population(self.init, self.step, self.evaluate, size, space=SPACE)

    # -- what the user of a population writes

    def init(self, key: Array, config: dict[str, Any]) -> Agent:
        """An agent that knows nothing."""
        for_worlds, *keys, later = jax.random.split(key, 6)
        shapes = [(self.inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, self.actions), (HIDDEN, 1)]
        scales = [1.0, 1.0, 0.01, 1.0]
        weights = [
            (scale * jax.random.normal(k, shape) / shape[0] ** 0.5, jnp.zeros(shape[1]))
            for k, shape, scale in zip(keys, shapes, scales, strict=True)
        ]
        zeros = jax.tree.map(jnp.zeros_like, weights)
        seen, world = jax.vmap(self.world.reset, (0, None))(
            jax.random.split(for_worlds, ENVIRONMENTS), self.options
        )
        return Agent(
            weights, zeros, zeros, jnp.zeros((), jnp.int32), world, seen,
            jnp.zeros(ENVIRONMENTS), jnp.asarray(self.worst, jnp.float32), later,
        )  # fmt: skip

    def step(
        self, agent: Agent, config: dict[str, Any], batch: None, key: Array
    ) -> tuple[Agent, dict[str, Array]]:
        """A rollout, and what is learned from it."""
        agent, steps, last = self.rollout(agent, key)
        advantage = advantages(steps, last, config["discount"], config["lambda"])
        target = advantage + steps.value
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)

        def loss(weights: Any) -> Array:
            logs, value = act(weights, steps.seen)
            log = chosen(logs, steps.action)
            ratio = jnp.exp(log - steps.log)
            inside = jnp.clip(ratio, 1.0 - config["clip"], 1.0 + config["clip"])
            gain = jnp.minimum(ratio * advantage, inside * advantage)
            entropy = -jnp.sum(jnp.exp(logs) * logs, axis=-1)
            return jnp.mean(0.5 * (value - target) ** 2 - gain - config["entropy"] * entropy)

        def epoch(agent: Agent, _: None) -> tuple[Agent, None]:
            return adam(agent, jax.grad(loss)(agent.weights), config["rate"]), None

        agent, _ = jax.lax.scan(epoch, agent, length=EPOCHS)
        return agent, {"return": agent.returned}

    def evaluate(self, agent: Agent, config: dict[str, Any]) -> Array:
        """Minus the return of late, with the policy gradient of a rollout as its derivative."""
        _, steps, last = self.rollout(agent, agent.key)
        advantage = jax.lax.stop_gradient(advantages(steps, last, DISCOUNT, LAMBDA))
        log = chosen(act(agent.weights, steps.seen)[0], steps.action)
        gain = jnp.mean(log * advantage)
        return -jax.lax.stop_gradient(agent.returned) - (gain - jax.lax.stop_gradient(gain))

    # -- what these are made of

    def rollout(self, agent: Agent, key: Array) -> tuple[Agent, Steps, Array]:
        """Play on for `LENGTH` steps; the value of where that ends. Nothing of it is derived."""
        frozen = jax.lax.stop_gradient(agent)

        def play(now: Any, key: Array) -> tuple[Any, Steps]:
            world, seen, episode, returned = now
            to_act, to_move = jax.random.split(key)
            logs, value = act(frozen.weights, seen)
            action = jax.random.categorical(to_act, logs)
            keys = jax.random.split(to_move, ENVIRONMENTS)
            after, world, reward, ended, cut, _ = jax.vmap(self.world.step, (0, 0, 0, None))(
                keys, world, action, self.options
            )
            done = ended | cut
            episode = episode + reward
            count = jnp.sum(done)
            mean = jnp.sum(jnp.where(done, episode, 0.0)) / jnp.maximum(count, 1)
            weight = MEMORY ** count.astype(jnp.float32)
            returned = jnp.where(count > 0, weight * returned + (1.0 - weight) * mean, returned)
            seen_now = Steps(seen, action, reward, done, chosen(logs, action), value)
            return (world, after, jnp.where(done, 0.0, episode), returned), seen_now

        start = frozen.world, frozen.seen, frozen.episode, frozen.returned
        keys = jax.random.split(key, LENGTH + 1)
        (world, seen, episode, returned), steps = jax.lax.scan(play, start, keys[1:])
        last = act(frozen.weights, seen)[1]
        agent = agent._replace(
            world=world, seen=seen, episode=episode, returned=returned, key=keys[0]
        )
        return agent, steps, last

    def judge(self, agent: Agent, key: Array, episodes: int) -> float:
        """The mean return of fresh episodes."""
        return float(jnp.mean(self._episodes(agent.weights, jax.random.split(key, episodes))))

    def _episode(self, weights: Any, key: Array) -> Array:
        to_begin, to_play = jax.random.split(key)
        seen, world = self.world.reset(to_begin, self.options)

        def play(now: Any, key: Array) -> tuple[Any, None]:
            world, seen, total, over = now
            to_act, to_move = jax.random.split(key)
            action = jax.random.categorical(to_act, act(weights, seen)[0])
            seen, world, reward, ended, cut, _ = self.world.step(
                to_move, world, action, self.options
            )
            total = total + jnp.where(over, 0.0, reward)
            return (world, seen, total, over | ended | cut), None

        start = world, seen, jnp.zeros(()), jnp.zeros((), bool)
        return jax.lax.scan(play, start, jax.random.split(to_play, EPISODE))[0][2]


def act(weights: Any, seen: Array) -> tuple[Array, Array]:
    """Log-probabilities of the actions, and the value of a state."""
    (a, b), (c, d), (e, f), (g, h) = weights
    hidden = jnp.tanh(jnp.tanh(seen @ a + b) @ c + d)
    return jax.nn.log_softmax(hidden @ e + f), (hidden @ g + h)[..., 0]


def chosen(logs: Array, action: Array) -> Array:
    """Of the log-probabilities, that of the action; by a mask, as a gather has a slow transpose."""
    return jnp.sum(jnp.where(action[..., None] == jnp.arange(logs.shape[-1]), logs, 0.0), axis=-1)


def advantages(steps: Steps, last: Array, discount: Any, decay: Any) -> Array:
    """Generalised advantage estimates (Schulman et al. 2016, equation 16)."""

    def back(later: Any, step: Steps) -> tuple[Any, Array]:
        advantage, value = later
        alive = 1.0 - step.done
        error = step.reward + discount * alive * value - step.value
        advantage = error + discount * decay * alive * advantage
        return (advantage, step.value), advantage

    return jax.lax.scan(back, (jnp.zeros_like(last), last), steps, reverse=True)[1]


def adam(agent: Agent, slope: Any, rate: Any) -> Agent:
    """A step of Adam, with the gradient's length at most 0.5."""
    length = jnp.sqrt(sum(jnp.sum(s**2) for s in jax.tree.leaves(slope)) + 1e-12)
    slope = jax.tree.map(lambda s: s * jnp.minimum(1.0, 0.5 / length), slope)
    age = agent.age + 1
    first = jax.tree.map(lambda m, s: 0.9 * m + 0.1 * s, agent.first, slope)
    second = jax.tree.map(lambda v, s: 0.999 * v + 0.001 * s**2, agent.second, slope)

    def move(w: Array, m: Array, v: Array) -> Array:
        # The root has no derivative at zero.
        root = jnp.sqrt(v / (1.0 - 0.999**age) + 1e-12)
        return w - rate * m / (1.0 - 0.9**age) / (root + 1e-5)

    weights = jax.tree.map(move, agent.weights, first, second)
    return agent._replace(weights=weights, first=first, second=second, age=age)


# -- the searches ----------------------------------------------------------------------------


def searches(
    whole: Population, part: Population, steps: int, interval: int
) -> dict[str, Callable[[], PopulationResult]]:
    """Each search, all with as many updates, `steps` for each member of `whole`.

    `part` holds fewer members at a time, for a search that learns from its trials.
    """
    members, seed = whole.size, whole.seed
    searcher = RandomSearcher(SPACE, seed=seed)

    def evolved(explore: Any) -> PopulationResult:
        return whole.run(PBT(searcher, steps, interval, explore=explore))

    def rungs() -> PopulationResult:
        spent: dict[int, float] = {}

        def enough(trial: Trial) -> bool:
            spent[trial.number] = max(spent.get(trial.number, 0.0), trial.info["steps"])
            return sum(spent.values()) >= members * steps

        schedule = ASHA(searcher, steps, min_resource=interval)
        return whole.run(schedule, trials=members * steps // interval, callbacks=[enough])

    return {
        "random search": lambda: whole.run(searcher, trials=members, steps=steps),
        "ASHA": rungs,
        "Bayes": lambda: part.run(BayesSearcher(SPACE, seed=seed), trials=members, steps=steps),
        "PBT": lambda: evolved(Perturb()),
        "PB2": lambda: evolved(PB2()),
        "PBT, meta-gradients": lambda: evolved(FollowGradient()),
    }


def compare(context: Context, name: str) -> tuple[dict[str, np.ndarray], float]:
    """The returns of the best members, by search and seed; that of an untrained agent."""
    options, task = context.options, Task(name)
    whole, part = (task.population(n) for n in (options.members, max(options.members // 4, 2)))
    found: dict[str, list[float]] = {}
    curves: dict[str, Curve] = {}
    with context.progress(name, 6 * options.seeds) as progress:
        for seed in range(options.seeds):
            populations = whole.with_seed(seed), part.with_seed(seed)
            runs = searches(*populations, options.steps, options.interval)
            for way, run_it in runs.items():
                result = run_it()
                judged = task.judge(
                    result.best_state, jax.random.key(1000 + seed), options.episodes
                )
                found.setdefault(way, []).append(judged)
                if seed == 0 and isinstance(result, Evolution):
                    curves[way] = Curve(*result.schedule("rate"))
                progress.advance(1)
    context.plot(f"rate on {name}", curves, x="update", y="learning rate", y_scale="log")
    returns = {way: np.array(each) for way, each in found.items()}
    begun = task.init(jax.random.key(0), {})
    idle = task.judge(begun, jax.random.key(1), options.episodes)
    context.table(
        f"return of the best member on {name}",
        [
            {
                "search": way,
                "median": float(np.median(each)),
                "from": float(np.min(each)),
                "to": float(np.max(each)),
                "seeds above random search": int(np.sum(each > returns["random search"])),
            }
            for way, each in returns.items()
        ],
    )
    return returns, idle


@experiment(
    paper=(
        "Jaderberg et al. 2017, arXiv:1711.09846; Xu et al. 2018, arXiv:1805.09801; "
        "Becktepe et al. 2024, arXiv:2409.18827"
    ),
    options=[
        Option("members", 48, quick=8, help="agents in one program"),
        Option("steps", 160, quick=24, help=f"updates, of {ENVIRONMENTS * LENGTH} steps each"),
        Option("interval", 8, quick=6, help="updates between two rounds"),
        Option("seeds", 5, quick=1, help="repetitions"),
        Option("episodes", 32, quick=8, help="by which the best member is judged"),
        Option("environments", ",".join(TASKS), quick="acrobot", help="comma-separated"),
    ],
    claims=[
        Claim(
            "learned",
            "return of the worst search's best member, in those of an untrained agent (on Acrobot "
            "steps of the latter in those of the former); the least of the environments",
            at_least=4.0,
            quick=1.5,
        ),
        Claim(
            "random",
            "seeds where meta-gradients beat random search (or are equal at the largest return), "
            "of all; the least of the environments",
            at_least=1.0,
        ),
        Claim(
            "pbt",
            "environments on which meta-gradients are no worse than plain PBT in the median, of "
            "all",
            at_least=1.0,
        ),
    ],
)
def run(context: Context) -> None:
    """Compare the searches on each environment."""
    learned, above, as_good = [], [], []
    for name in context.options.environments.split(","):
        returns, idle = compare(context, name)
        meta, best = returns["PBT, meta-gradients"], {"cartpole": EPISODE}.get(name, np.inf)
        least = min(float(np.median(each)) for each in returns.values())
        # Returns of Acrobot are negative: how many steps it takes.
        learned.append(least / idle if least > 0 else idle / least)
        above.append(np.mean((meta > returns["random search"]) | (meta >= best)))
        as_good.append(np.median(meta) >= np.median(returns["PBT"]))
    context.measure("learned", min(learned))
    context.measure("random", float(min(above)))
    context.measure("pbt", float(np.mean(as_good)))


if __name__ == "__main__":
    raise SystemExit(run.main())
