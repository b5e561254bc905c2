"""`python -m dlm_jax VERB` is the same as `dlm VERB`."""

from dlm_jax.cli.main import command_line

if __name__ == "__main__":
    command_line()
