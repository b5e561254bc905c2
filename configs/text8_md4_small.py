"""MD4-S on text8 (Shi et al. 2024): 12 layers, width 768, length 256, 1M steps of 512 rows, cosine learning rate.

Expected: at most 1.37 bits per character on the test characters (MD4, Table 2). The published run trains on the first
90M characters and reports on the last 5M; here the last 5 % of the pieces are held out.

dlm train --config text8_md4_small --workdir runs/text8 --config.data.source=text8
(`text8` is the file of that name with the suffix .txt)
"""

from dlm_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.source = "text8.txt"
    c.data.document_separator = ""
    c.data.max_document_bytes = 1_000_000
    c.data.tokenizer = "text8"
    c.data.length = 256
    c.data.split = "last"
    c.data.validation_fraction = 0.05
    c.model.num_layers = 12
    c.model.embed_dim = 768
    c.model.num_heads = 12
    c.model.mlp_dim = 2048
    c.model.time_conditioning = True
    c.model.dropout = 0.05
    c.diffusion.masking = "independent"
    c.diffusion.schedule = "linear"
    c.diffusion.time_epsilon = 1e-4
    c.optimizer.learning_rate = 5e-4
    c.optimizer.beta2 = 0.999
    c.optimizer.weight_decay = 0.03
    c.optimizer.clip_norm = 0.0
    c.optimizer.warmup_steps = 2000
    c.train.num_steps = 1_000_000
    c.train.batch_size = 512
    c.train.ema_decay = 0.9999
    c.eval.every_steps = 10_000
    c.eval.num_rows = 1024
    c.checkpoint.every_steps = 5000
    c.log.every_steps = 100
    return c
