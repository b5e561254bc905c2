"""`python -m dlm_jax VERB` is the same as `dlm VERB`."""

import sys

from dlm_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
