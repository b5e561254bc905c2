"""How fast the work is, beside what this machine can do: interleaved medians, required operations, peak memory."""
