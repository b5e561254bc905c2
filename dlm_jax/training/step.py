"""One training step: fold the key, ask the objective, answer with the denoiser, accumulate, update, average."""

import jax
import jax.numpy as jnp
import optax

from dlm_jax import config as configs
from dlm_jax import rng
from dlm_jax.parallel import sharding
from dlm_jax.training import guard as guards
from dlm_jax.training.state import TrainState


def question_loss(denoiser, params, question, *, segment_ids=None, key=None):
    """Returns sum(weights * cross-entropy) of a Question, in nats.

    Args:
      denoiser: Denoiser.
      params: its parameters.
      question: diffusion.objectives.Question.
      segment_ids: int32[B, L] or None.
      key: PRNG key for dropout, or None.
    """
    time = question.time if denoiser.needs_time else None
    # Only the scored rows leave the last layer and reach the head.
    hidden, _ = denoiser.hidden(
        params, question.inputs, rows=question.rows, time=time, segment_ids=segment_ids, key=key
    )
    losses = denoiser.token_losses(params, hidden, question.targets)
    return jnp.sum(question.weights * losses)


def make_train_step(denoiser, objective, optimizer, config, root_key):
    """Returns train_step(state, batch) -> (state, metrics).

    Args:
      denoiser: Denoiser.
      objective: (key, x0, segment_ids) -> Question.
      optimizer: optax transformation.
      config: TrainConfig.
      root_key: PRNG key of the run; the keys of a step follow from it and the step's number.
    Returns:
      A function of (TrainState, {"tokens": int32[B, L], "segment_ids": optional}) that returns the next state and
      metrics {name: (sum, weight)}: "loss" in nats per token, "grad_norm", "param_norm", and the counts of the Guard.
    """

    optimizer = optax.with_extra_args_support(optimizer)

    def micro_loss(params, step, index, tokens, segment_ids):
        question = objective(rng.stream(root_key, "mask", step, index), tokens, segment_ids)
        dropout_key = rng.stream(root_key, "dropout", step, index)
        total = question_loss(denoiser, params, question, segment_ids=segment_ids, key=dropout_key)
        return total / question.normaliser, (question.normaliser, question.constant)

    gradient = jax.value_and_grad(micro_loss, has_aux=True)

    def accumulate(params, step, batch):
        """Returns mean loss, weight, constant and mean gradient over micro-batches, each with its own noise."""
        if config.micro_batches == 1:
            (loss, (weight, constant)), grads = gradient(params, step, 0, batch["tokens"], batch.get("segment_ids"))
            return loss, weight, constant, grads

        def add(carry, micro):
            index, rows = micro
            (loss, (weight, constant)), grads = gradient(params, step, index, rows["tokens"], rows.get("segment_ids"))
            weighted = jax.tree.map(lambda x: x * weight, (loss, grads))
            return jax.tree.map(jnp.add, carry, (*weighted, weight)), constant

        split = jax.tree.map(lambda x: _micro_batches(x, config.micro_batches), batch)
        zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params), jnp.float32(0))
        (total, grads, weight), constants = jax.lax.scan(add, zeros, (jnp.arange(config.micro_batches), split))
        loss, grads = jax.tree.map(lambda x: x / weight, (total, grads))
        return loss, weight, constants[0], grads

    def train_step(state, batch):
        loss, weight, constant, grads = accumulate(state.params, state.step, batch)
        grad_norm = optax.tree.norm(grads)
        is_bad, guard = guards.judge(state.guard, state.step, loss + constant, grad_norm, config.spike_sigmas)

        def take(_, kept):
            params, ema, opt_state, grads = kept
            updates, opt_state = optimizer.update(grads, opt_state, params, grad_norm=grad_norm)
            params = optax.apply_updates(params, updates)
            decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
            ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)
            return params, ema, opt_state, updates

        # Once or not at all. As a loop it works in place: a choice between old and new would keep both in memory.
        kept = (state.params, state.ema, state.opt_state, grads)
        params, ema, opt_state, _ = jax.lax.fori_loop(0, jnp.where(is_bad, 0, 1), take, kept)
        one = jnp.float32(1)
        metrics = {
            "loss": ((loss + constant) * weight, weight),
            "grad_norm": (grad_norm, one),
            "param_norm": (optax.tree.norm(params), one),
            **{name: (count, one) for name, count in guards.counts(guard).items()},
        }
        return TrainState(state.step + 1, params, ema, opt_state, guard), metrics

    return train_step


def batch_names(config):
    """Returns the names of the arrays of a RunConfig's batches."""
    return ("tokens", "segment_ids") if config.data.segment_ids else ("tokens",)


def jit_train_step(denoiser, objective, optimizer, config, mesh, shardings, names):
    """Returns the jitted train step of a RunConfig: shardings stated, state donated; to be traced on the mesh.

    Args:
      denoiser, objective, optimizer: as in `make_train_step`.
      config: RunConfig.
      mesh: Mesh.
      shardings: TrainState of NamedShardings.
      names: of the arrays of a batch.
    """
    root_key = rng.stream(jax.random.key(config.seed), "train")
    step = make_train_step(denoiser, objective, optimizer, config.train, root_key)
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    return jax.jit(
        step, in_shardings=(shardings, dict.fromkeys(names, rows)), out_shardings=(shardings, whole), donate_argnums=0
    )


def required_flops(denoiser, config):
    """Returns float, the operations that one training step requires, whatever the implementation.

    Three forward passes: 2 a multiply-add, the body for every token with attention over all keys, the head on the rows
    that are scored.

    Args:
      denoiser: Denoiser.
      config: RunConfig.
    """
    length, scored = config.data.length, 1.0
    if configs.uses_pairs(config.diffusion):
        scored = (length + 1) / (2 * length)
    elif config.diffusion.objective != "autoregressive":
        scored = 0.5  # independent masks: half of the tokens on average, though all rows are computed
    return 3.0 * denoiser.flops(length, scored) * config.train.batch_size * length


def _micro_batches(x, count):
    """[B, ...] -> [count, B / count, ...]; row i goes to micro-batch i % count, so every device keeps its own rows."""
    return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
