"""What may be taken back: revealed tokens that are masked again, so that a later step draws them anew.

| name               | a revealed token is masked again                                                               |
|--------------------|------------------------------------------------------------------------------------------------|
| none               | never                                                                                          |
| remdm_cap:e        | with probability min(e, most), most = min(1, (1 - a_s) / a_t)                                   |
| remdm_rescale:e    | with probability e * most                                                                      |
| remdm_confidence:e | like cap, shared out over the row by softmax(- probability of the token when it was drawn)      |
| remdm_loop:e       | with probability e while a stays at 0.9, never before and after                                 |
| forward_backward   | with probability (a_s - a_t) / a_t, at most `most`                                              |
| corrector:m        | m random ones a step are masked and drawn anew at once: one more denoiser call a step          |

All but confidence and the corrector change the odds of revealing to match, so that the share of masked tokens follows
the clock: a masked token is revealed with probability (a_s - (1 - sigma) a_t) / (1 - a_t). A step of `corrector:1` with
exact conditionals is a step of random-scan Gibbs sampling: it leaves the true distribution as it is, and brings others
nearer to it.

Noise: a position that is drawn again gets fresh noise, keyed by row, position and step. Frozen tokens are never taken
back. Source: ReMDM (Wang et al. 2503.00307, Sec. 4); forward-backward after Campbell et al. 2022.
"""

import jax
import jax.numpy as jnp

from dlm_jax.config import split_choice


def largest_sigma(alpha_t, alpha_s):
    """Returns float32[], the largest probability of masking again that keeps the marginals of the process."""
    return jnp.minimum(1.0, (1 - alpha_s) / jnp.maximum(alpha_t, 1e-12))


def sigma_of(remasking, alpha_t, alpha_s, parameter, is_revealed, decoded):
    """Returns float32[B, L], probability that a revealed token is masked again.

    Args:
      remasking: str, a value of the table above that is not "none" or "corrector".
      alpha_t, alpha_s: float32[], share of kept tokens before and after the step.
      parameter: float32[].
      is_revealed: bool[B, L], tokens that were drawn, not frozen.
      decoded: float32[B, L], probability of each token when it was drawn.
    """
    name = split_choice(remasking)[0]
    most = largest_sigma(alpha_t, alpha_s)
    sigma = SIGMAS[name](alpha_t, alpha_s, parameter, most)
    if name == "remdm_confidence":
        shares = jax.nn.softmax(jnp.where(is_revealed, -decoded, -jnp.inf), axis=1)
        return jnp.where(is_revealed, shares * sigma, 0.0)
    return jnp.where(is_revealed, sigma, 0.0)


def share_of(sigma, alpha_t, alpha_s):
    """Returns the probability that a masked token is revealed, given the probability that others are masked again."""
    return jnp.clip((alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t), 0.0, 1.0)


# (alpha_t, alpha_s, parameter, most) -> float32[]
SIGMAS = {
    "remdm_cap": lambda alpha_t, alpha_s, eta, most: jnp.minimum(eta, most),
    "remdm_rescale": lambda alpha_t, alpha_s, eta, most: eta * most,
    "remdm_confidence": lambda alpha_t, alpha_s, eta, most: jnp.minimum(eta, most),
    "remdm_loop": lambda alpha_t, alpha_s, eta, most: jnp.where(alpha_s == alpha_t, jnp.minimum(eta, most), 0.0),
    "forward_backward": lambda alpha_t, alpha_s, eta, most: jnp.clip(
        (alpha_s - alpha_t) / jnp.maximum(alpha_t, 1e-12), 0.0, most
    ),
}
