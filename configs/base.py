"""Every field with its default: the reference card. Other configs set only what differs.

dlm train --config base --workdir W
"""

from ml_collections import ConfigDict

from dlm_jax import config


def get_config():
    return ConfigDict(config.to_dict(config.RunConfig()))
