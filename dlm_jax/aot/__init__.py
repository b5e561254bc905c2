"""Ahead of time: programs compiled for hardware that is not here, and what the compiler says of them."""
