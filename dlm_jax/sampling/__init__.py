"""Samplers: small choices that compose inside one compiled program. Takes a denoise function, never a model class."""

from dlm_jax.sampling.loop import Samples, sample

__all__ = ["Samples", "sample"]
