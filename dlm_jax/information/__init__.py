"""What information theory says about sampling in parallel: exact test beds, and how many tokens to reveal a step.

numpy in float64; distributions also accept jax arrays, so that they can stand in for a denoiser inside a program.
"""

from dlm_jax.information import distributions
from dlm_jax.information.schedules import cosine_sizes, logodds_sizes, uniform_sizes

__all__ = ["cosine_sizes", "distributions", "logodds_sizes", "uniform_sizes"]
