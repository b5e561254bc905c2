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


def check_shape(name, array, expected):
    """Raises unless `array` has the expected shape.

    Args:
      name: the argument's name, for the message.
      array: anything with a `.shape`.
      expected: a sequence of ints; None matches any size.
    Raises:
      ValueError: naming the argument, its shape and what is allowed.
    """
    shape = tuple(array.shape)
    matches = len(shape) == len(expected) and all(
        want is None or want == have for want, have in zip(expected, shape, strict=True)
    )
    if not matches:
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in expected) + "]"
        raise ValueError(f"{name}: shape {list(shape)} must be {wanted}")
