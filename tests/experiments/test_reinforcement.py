"""What the agents of `experiments.reinforcement` are made of, without an environment."""

import jax.numpy as jnp
import numpy as np

from experiments.reinforcement import Steps, advantages


def test_advantages_are_the_sum_of_discounted_errors_until_the_episode_ends():
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 6, 3))
    done = rng.random((6, 3)) < 0.3
    last = rng.normal(size=3)
    discount, decay = 0.9, 0.7
    nothing = jnp.zeros((6, 3))
    steps = Steps(nothing, nothing, jnp.asarray(reward), jnp.asarray(done), nothing, value)
    found = advantages(steps, jnp.asarray(last), discount, decay)
    after = np.concatenate([value[1:], last[None]])
    error = reward + discount * np.where(done, 0.0, after) - value
    for lane in range(3):
        for start in range(6):
            total, weight = 0.0, 1.0
            for t in range(start, 6):
                total += weight * error[t, lane]
                weight *= discount * decay
                if done[t, lane]:
                    break
            np.testing.assert_allclose(found[start, lane], total, rtol=1e-12)
