"""Block diffusion: a token sees its own block and the ones before, so that sampling can keep their keys and values.

dlm train --config block_diffusion --workdir runs/blocks
dlm sample --workdir runs/blocks --block_length=16 --cache=exact --num_steps=32

Training masks are those of block decoding: earlier blocks clean, later ones masked, the current one in random order.
One block a row is learnt from at each step, where BD3-LM's doubled rows learn from all of them.
"""

from dlm_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.source = "embedded"
    c.data.tokenizer = "bytes"
    c.data.length = 128
    c.model.embed_dim = 128
    c.model.num_heads = 2
    c.model.attention = "block_causal"
    c.model.block_length = 16
    c.diffusion.masking = "order_prefix"
    c.diffusion.order = "blocks:16"
    c.diffusion.random_order_share = 0.0
    c.optimizer.name = "muon"
    c.optimizer.learning_rate = 1.2e-2
    c.optimizer.warmup_steps = 20
    c.train.batch_size = 16
    c.train.ema_decay = 0.98
    c.sample.block_length = 16
    c.sample.cache = "exact"
    c.sample.num_steps = 32
    return c
