"""Tiny everything: 60 steps with checkpoints, well under a minute on two CPU cores.

dlm train --config debug --workdir runs/debug
"""

from dlm_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.source = "embedded:topics"
    c.data.length = 32
    c.model.num_layers = 2
    c.model.embed_dim = 32
    c.model.num_heads = 2
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup_steps = 5
    c.train.num_steps = 60
    c.train.batch_size = 16
    c.eval.t_steps = (4, 8)
    c.eval.num_rows = 64
    c.eval.t_step_rows = 16
    c.checkpoint.every_steps = 20
    return c
