"""What `dlm study convergence` does: how often it samples, and which distributions of low and high dependence it shows.

dlm study convergence --workdir studies/convergence
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.num_orders = 20  # fixed orders whose samples are compared with the exact law
    c.num_samples = 1_000_000  # of each
    c.small_length = 8  # of the distributions that are sampled that often
    c.length = 256  # of the curves
    c.num_rows = 2000  # of real data on which the error is measured at that length
    c.num_steps = (2, 4, 8, 16, 32, 64, 128)
    return c
