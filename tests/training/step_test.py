"""One training step: micro-batches, the moving average, and the gradient of the plain computation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlm_jax import config, rng
from dlm_jax.diffusion.objectives import make_objective
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.training import state, step

V, KEY = 7, jax.random.key(4)
DENOISER = Denoiser(config.ModelConfig(num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8, dtype="float32"), V)
TOKENS = jnp.arange(40).reshape(8, 5) % V
OBJECTIVE = make_objective(config.DiffusionConfig(), V)


def plain_loss(params, question):
    """Mean weighted cross-entropy through all logits of all positions."""
    logits = DENOISER.logits(params, DENOISER.hidden(params, question.inputs)[0])
    groups = question.scored.shape[0]
    log_p = jax.nn.log_softmax(logits).reshape(groups, -1, V)
    rows = jnp.take_along_axis(log_p, question.scored[..., None], axis=1)
    picked = jnp.take_along_axis(rows, question.targets[..., None], axis=-1)[..., 0]
    return -(question.weights * picked).sum() / question.normaliser


def test_two_micro_batches_take_the_mean_loss_and_gradient_each_with_its_own_noise():
    optimizer = optax.sgd(0.1)
    settings = config.TrainConfig(batch_size=8, micro_batches=2, ema_decay=0.9)

    @jax.jit
    def everything():
        before = state.init_state(DENOISER, optimizer, jax.random.key(0))
        after, metrics = step.make_train_step(DENOISER, OBJECTIVE, optimizer, settings, KEY)(before, {"tokens": TOKENS})

        def mean(params, indices):
            asked = [OBJECTIVE(rng.stream(KEY, "mask", 0, i), TOKENS[k::2], None) for k, i in enumerate(indices)]
            return sum(plain_loss(params, question) for question in asked) / 2

        want, grads = jax.value_and_grad(mean)(before.params, (0, 1))
        return before, after, metrics["loss"], want, grads, mean(before.params, (0, 0))

    before, after, (total, weight), want, grads, same_noise = everything()
    np.testing.assert_allclose(total / weight, want, rtol=1e-5)
    assert abs(total / weight - same_noise) > 1e-3  # variation: one noise for both is another loss
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before.params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, expected)
    # At step 0 the average decays by min(0.9, 1 / 10).
    average = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, before.ema, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.ema, average)
    assert after.step == 1
