"""Fast paths, each beside its reference in the same file and with the same signature."""
