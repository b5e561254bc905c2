"""dlm study NAME: runs a published experiment again, with its table and figure."""

import pathlib
import sys

from absl import flags

from dlm_jax.cli import options

EXAMPLE = "dlm study convergence --workdir studies/convergence"


def define_flags(values):
    options.define_workdir(values, "folder of the study")
    options.define_json(values)
    flags.DEFINE_list("configs", ["orders", "demo"], "orders: config files, one a corpus", flag_values=values)
    flags.DEFINE_list("seeds", ["0", "1"], "orders: seeds of the models", flag_values=values)
    flags.DEFINE_integer("num_steps", None, "orders: training steps, instead of the config's", flag_values=values)
    flags.DEFINE_string("source", None, "orders: data.source, instead of the config's", flag_values=values)


def run_orders(values, workdir, say):
    import dataclasses

    from dlm_jax.studies import orders

    bases = {}
    for name in values["configs"].value:
        base = options.load_config_file(name)
        if values["num_steps"].value is not None:
            base = dataclasses.replace(base, train=dataclasses.replace(base.train, num_steps=values["num_steps"].value))
        if values["source"].value is not None:
            base = dataclasses.replace(base, data=dataclasses.replace(base.data, source=values["source"].value))
        bases[pathlib.Path(name).stem] = base
    return orders.run(bases, workdir, seeds=options.whole_numbers(values, "seeds"), say=say)


STUDIES = {"orders": run_orders}


def run(values, name):
    workdir = pathlib.Path(options.required(values, "workdir"))
    found = STUDIES[name](values, workdir, lambda line: print(line, file=sys.stderr, flush=True))
    if values["json"].value:
        options.emit(found)
