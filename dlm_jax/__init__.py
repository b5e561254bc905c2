"""Train, measure, plan and sample diffusion language models.

`dlm_jax.load(workdir)` returns a `Generator`; everything else lives in the rooms, see README.md.
"""

__version__ = "0.1.0"


def load(workdir, *, step=None):
    """Loads a trained model from a workdir; see `dlm_jax.api.load`."""
    from dlm_jax import api  # imported late: `import dlm_jax` must stay quick

    return api.load(workdir, step=step)


def __getattr__(name):
    if name == "Generator":
        from dlm_jax import api

        return api.Generator
    raise AttributeError(f"module 'dlm_jax' has no attribute {name!r}")
