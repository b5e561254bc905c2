"""The first impression: a subword model of the embedded corpus, trained in minutes on two CPU cores.

dlm demo --workdir demo                        (fits the number of steps to --minutes)
dlm train --config demo --workdir runs/mine    (this many steps)

Chosen by measurement: at 110 s of training on two cores, subwords of a large vocabulary gave the lowest held-out bits
per byte, because a token then spells out what the corpus repeats; rows of 64 tokens beat rows of 128 at equal time, and
Muon beat AdamW where both were tried (4 layers of 128, 4096 subwords).
"""

from dlm_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.source = "embedded"
    c.data.tokenizer = "bpe"
    c.data.vocab_size = 16384
    c.data.length = 64
    c.model.num_layers = 3
    c.model.embed_dim = 128
    c.model.num_heads = 2
    c.optimizer.name = "muon"
    c.optimizer.learning_rate = 1.2e-2
    c.optimizer.warmup_steps = 20
    c.train.num_steps = 1000
    c.train.batch_size = 32
    c.train.ema_decay = 0.98
    c.sample.num_steps = 32
    c.eval.t_step_rows = 48
    c.checkpoint.every_steps = 250
    c.log.every_steps = 5
    c.log.progress_seconds = 4.0
    return c
