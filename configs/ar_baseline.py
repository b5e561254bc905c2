"""The autoregressive baseline of `demo`: same network, data, optimizer and batch; causal mask, next-token loss.

dlm train --config ar_baseline --workdir runs/baseline
"""

from dlm_jax.configs import demo


def get_config():
    c = demo.get_config()
    c.model.attention = "causal"
    c.diffusion.objective = "autoregressive"
    return c
