"""Guidance: a denoiser that looks at two canvases and pushes its prediction away from the second.

The first canvas holds the prompt, the second does not, or holds a negative prompt. Logits are
un + (1 + w) (with - un), so w = 0 is no guidance. Twice the cost of a step. A guided sampler samples no distribution
that the model defines: likelihoods and predicted errors do not apply to it.

Source: Ho & Salimans 2022; for masked text LLaDA `generate.py` (cfg_scale is w).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class GuidedDenoiser:
    """A denoiser with guidance, for the same loops; hidden states of both canvases lie one above the other.

    Its parameters are {"own": those of the denoiser, "unconditional": int32[B, L], the second canvas at frozen
    positions and -1 where it follows the first, "scale": float32[], w}.
    """

    denoiser: object

    @property
    def mask_id(self):
        return self.denoiser.mask_id

    @property
    def needs_time(self):
        return self.denoiser.needs_time

    def hidden(self, params, tokens, *, rows=None, time=None):
        """Returns ([2, B, R, D], None)."""
        other = jnp.where(params["unconditional"] >= 0, params["unconditional"], tokens)
        both = (self.denoiser.hidden(params["own"], one, rows=rows, time=time)[0] for one in (tokens, other))
        return jnp.stack(list(both)), None

    def logits(self, params, hidden):
        """Returns float32[B, R, V]."""
        with_prompt, without = (
            jax.nn.log_softmax(self.denoiser.logits(params["own"], one).astype(jnp.float32), axis=-1) for one in hidden
        )
        # A token that the first canvas rules out stays ruled out, and one that only the second does gets no credit.
        is_possible = with_prompt > -jnp.inf
        apart = jnp.where(is_possible & (without > -jnp.inf), with_prompt - without, 0.0)
        return jnp.where(is_possible, with_prompt + params["scale"] * apart, -jnp.inf)
