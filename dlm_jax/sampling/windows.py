"""Texts longer than the model's length: window after window, each beginning with the end of the text so far."""

import numpy as np

from dlm_jax.sampling import canvas as canvases
from dlm_jax.sampling.loop import Samples


def extend(sample, prompts, length, window, mask_id, text, eos_id=None):
    """Returns Samples of more tokens than a window holds.

    The first window begins with the prompt; every further one with the last half window of the text so far, frozen.

    Args:
      sample: (canvas int32[B, W], window number) -> Samples.
      prompts: list of int32[n], one a sample, each shorter than a window.
      length: int, tokens wanted.
      window: int, W, tokens that the model sees at once.
      mask_id: int.
      text: int32[L] -> str.
      eos_id: int, a row that ends with it stays ended; None: rows go on.
    Returns:
      Samples of `length` tokens; nfe is the sum over windows, and steps are counted on from window to window.
    """
    parts, first = sample(canvases.with_prompts(prompts, window, mask_id), 0), 0
    tokens, reveal_step, nfe = parts.tokens, parts.reveal_step, parts.nfe
    number = 1
    while tokens.shape[1] < length:
        new = min(window - window // 2, length - tokens.shape[1])
        kept = tokens[:, -(window // 2) :]
        first = reveal_step.max() + 1
        canvas = np.concatenate([kept, np.full((len(kept), new), mask_id, np.int32)], axis=1)
        canvas = np.pad(canvas, ((0, 0), (0, window - canvas.shape[1])), constant_values=mask_id)
        if eos_id is not None:
            canvas[tokens[:, -1] == eos_id] = eos_id
        parts = sample(canvas, number)
        fresh = slice(kept.shape[1], kept.shape[1] + new)
        steps = parts.reveal_step[:, fresh]
        tokens = np.concatenate([tokens, parts.tokens[:, fresh]], axis=1)
        reveal_step = np.concatenate([reveal_step, np.where(steps < 0, -1, steps + first)], axis=1)
        nfe, number = nfe + parts.nfe, number + 1
    return Samples(tokens, nfe, reveal_step, [text(row) for row in tokens])
