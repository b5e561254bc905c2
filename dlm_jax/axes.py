"""The legend: axis letters used in docstrings and einsums, and the logical axes of parameters.

Letters: B batch, L length, D embed, H heads, G kv_heads, K head_dim, F mlp, V vocab, N layers, T denoising steps,
R scored rows (positions the head is asked for).
"""

# Logical axis names. Every parameter names its own; parallel/sharding.py maps them to mesh axes.
LAYERS = "layers"
VOCAB = "vocab"
EMBED = "embed"
HEADS = "heads"
KV_HEADS = "kv_heads"
HEAD_DIM = "head_dim"
MLP = "mlp"
BATCH = "batch"
LENGTH = "length"
