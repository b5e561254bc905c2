"""LLaDA 8B's shape (Nie et al. 2025): 32 layers, width 4096, 32 heads, MLP 12288, 126,464 tokens, length 4096.

To be trained from scratch on a pod; published: 2.3T tokens at a global batch of 1280 rows. Differences: exact mask
counts in place of independent masking (the same loss in expectation), a batch of a power of two. Check a slice first:

dlm compile --config llada_8b --topology v5p-128
dlm train --config llada_8b --workdir gs://bucket/llada --config.data.source='corpus/*.jsonl'
"""

from dlm_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.source = "corpus/*.jsonl"
    c.data.tokenizer = "llada/tokenizer.json"
    c.data.vocab_size = 126_464
    c.data.length = 4096
    c.model.num_layers = 32
    c.model.embed_dim = 4096
    c.model.num_heads = 32
    c.model.mlp_dim = 12_288
    c.model.rope_theta = 500_000.0
    c.model.remat = "full"
    c.optimizer.learning_rate = 4e-4
    c.optimizer.weight_decay = 0.1
    c.optimizer.warmup_steps = 2000
    c.optimizer.lr_schedule = "constant"
    c.train.num_steps = 450_000
    c.train.batch_size = 1024
    c.train.micro_batches = 8
    c.train.ema_decay = 0.9999
    c.mesh.tensor = 4
    c.eval.every_steps = 10_000
    c.eval.num_rows = 1024
    c.checkpoint.every_steps = 1000
    c.log.every_steps = 100
    return c
