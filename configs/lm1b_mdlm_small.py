"""MDLM small on LM1B (Sahoo et al. 2024): 12 layers, width 768, length 128, 1M steps of 512 rows, BERT-uncased tokens.

Expected: validation perplexity at most 27.0 per token (published). The published run does not wrap sentences into
rows; here they are wrapped, which gives each token more context, so the figures are not comparable to the digit.
`tfds:lm1b` reads the data set that tensorflow-datasets prepared on this machine.

dlm train --config lm1b_mdlm_small --workdir runs/lm1b
"""

from dlm_jax.configs import owt_mdlm_small


def get_config():
    c = owt_mdlm_small.get_config()
    c.data.source = "tfds:lm1b"
    c.data.tokenizer = "bert-base-uncased/tokenizer.json"
    c.data.vocab_size = 30_522
    c.data.length = 128
    c.data.split = "hash"
    c.data.validation_fraction = 0.01
    c.model.remat = "none"
    return c
