"""MDLM small on OpenWebText (Sahoo et al. 2024): 12 layers, width 768, length 1024, 1M steps of 512 rows.

Expected: validation perplexity at most 23.21 per GPT-2 token on the last 100k documents (published; ours differs in
the network's details: RMSNorm, SwiGLU, no time input). Give the documents as JSON lines and GPT-2's tokenizer.json.

dlm train --config owt_mdlm_small --workdir runs/owt --config.data.source='owt/*.jsonl'
"""

from dlm_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.source = "owt/*.jsonl"
    c.data.tokenizer = "gpt2/tokenizer.json"
    c.data.vocab_size = 50_257
    c.data.length = 1024
    c.data.split = "last"
    c.data.validation_fraction = 0.0125  # 100k of 8.0M documents
    c.model.num_layers = 12
    c.model.embed_dim = 768
    c.model.num_heads = 12
    c.model.dropout = 0.1
    c.model.remat = "dots"
    c.diffusion.masking = "independent"
    c.diffusion.schedule = "log_linear"
    c.optimizer.learning_rate = 3e-4
    c.optimizer.beta2 = 0.999
    c.optimizer.warmup_steps = 2500
    c.optimizer.lr_schedule = "constant"
    c.train.num_steps = 1_000_000
    c.train.batch_size = 512
    c.train.ema_decay = 0.9999
    c.eval.every_steps = 10_000
    c.eval.num_rows = 1024
    c.checkpoint.every_steps = 2000
    c.log.every_steps = 100
    return c
