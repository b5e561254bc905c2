"""The mathematics of masked diffusion: schedules, masks, objectives. Pure functions of jax.numpy, keys as arguments.

Time runs from 0 = data to 1 = all masked; alpha(t) is the probability that a token is still clean.
"""
