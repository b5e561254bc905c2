"""A denoiser of your own: any function tokens -> log-probabilities, seen through the seam of `models.Denoiser`."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dlm_jax.diffusion.masking import scored_rows


@dataclass(frozen=True)
class PlainDenoiser:
    """hidden = the function, logits = the identity; there are no parameters.

    Args:
      denoise: int32[B, L] -> float[B, L, V], log p(x_i | visible), traceable by jax.
      mask_id: int.
    """

    denoise: Callable
    mask_id: int
    needs_time = False

    def hidden(self, params, tokens, *, rows=None, time=None):
        """Returns (float[P, R, V], None): the rows asked for, int32[P, R] within groups of B / P consecutive rows."""
        answer = self.denoise(tokens)
        return (answer if rows is None else scored_rows(answer, rows)), None

    def logits(self, params, hidden):
        return hidden

    def token_losses(self, params, hidden, targets):
        """Returns float32[...], -log p(target) in nats."""
        log_p = jax.nn.log_softmax(hidden.astype(jnp.float32), axis=-1)
        return -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]

    def token_losses_and_entropies(self, params, hidden, targets):
        """Returns (-log p(target), entropy of the prediction), float32[...] in nats."""
        log_p = jax.nn.log_softmax(hidden.astype(jnp.float32), axis=-1)
        p = jnp.exp(log_p)
        return self.token_losses(params, hidden, targets), -jnp.where(p > 0, p * log_p, 0.0).sum(axis=-1)
