"""The byte model of `dlm study orders`: small enough to be trained a dozen times.

dlm train --config orders --workdir runs/orders
"""

from dlm_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.source = "embedded"
    c.data.tokenizer = "bytes"
    c.data.length = 128
    c.model.num_layers = 4
    c.model.embed_dim = 128
    c.model.num_heads = 2
    c.optimizer.name = "muon"
    c.optimizer.learning_rate = 1.2e-2
    c.optimizer.warmup_steps = 20
    c.train.num_steps = 860
    c.train.batch_size = 16
    c.train.ema_decay = 0.98
    c.checkpoint.every_steps = 430
    c.log.every_steps = 10
    return c
