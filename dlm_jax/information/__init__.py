"""What information theory says about sampling in parallel: how dependent tokens are, what a schedule costs, what to do.

numpy in float64; distributions and orders also accept or return jax arrays, so that they can be used inside a program.
"""

from dlm_jax.information import distributions
from dlm_jax.information.costs import StepCosts
from dlm_jax.information.curve import InformationCurve
from dlm_jax.information.error import (
    bernoulli_kl,
    expected_kl,
    li_cai_lower_bound,
    li_cai_upper_bound,
    upper_bound,
    upper_bound_from_correlations,
    valid_share_lower_bound,
)
from dlm_jax.information.orders import bisection_sizes, dispersed_order, spaced_order
from dlm_jax.information.plan import Plan
from dlm_jax.information.schedules import (
    affine_sizes,
    cosine_sizes,
    few_distinct_sizes,
    fewest_steps,
    guaranteed_sizes,
    logodds_sizes,
    optimal_sizes,
    reverse_cosine_sizes,
    sqrt_sizes,
    uniform_sizes,
)

__all__ = [
    "InformationCurve",
    "Plan",
    "StepCosts",
    "affine_sizes",
    "bernoulli_kl",
    "bisection_sizes",
    "cosine_sizes",
    "dispersed_order",
    "distributions",
    "expected_kl",
    "few_distinct_sizes",
    "fewest_steps",
    "guaranteed_sizes",
    "li_cai_lower_bound",
    "li_cai_upper_bound",
    "logodds_sizes",
    "optimal_sizes",
    "reverse_cosine_sizes",
    "spaced_order",
    "sqrt_sizes",
    "uniform_sizes",
    "upper_bound",
    "upper_bound_from_correlations",
    "valid_share_lower_bound",
]
