"""Where metrics go: metrics.jsonl always, TensorBoard and Weights & Biases where asked for."""

import json
import math
import pathlib
import time


class JsonlWriter:
    """Appends one JSON object a line: step, time (Unix seconds), then name -> value.

    A line that a kill cut short is removed on opening.
    """

    def __init__(self, path):
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab+")  # noqa: SIM115, closed by close()
        self._file.seek(0)
        whole = self._file.read().rfind(b"\n") + 1
        self._file.truncate(whole)

    def write(self, step, values):
        line = {"step": step, "time": round(time.time(), 3), **{name: _plain(value) for name, value in values.items()}}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def close(self):
        self._file.close()


class TensorBoardWriter:
    """Scalars for TensorBoard; needs the extra `tensorboard`."""

    def __init__(self, folder):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, step, values):
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self):
        self._writer.close()


class WandbWriter:
    """Scalars for Weights & Biases; needs the extra `wandb`."""

    def __init__(self, project, folder, config):
        import wandb

        self._run = wandb.init(project=project, dir=str(folder), config=config, resume="allow")

    def write(self, step, values):
        self._run.log(values, step=step)

    def close(self):
        self._run.finish()


def make_writers(config, workdir, run_config):
    """Returns the writers of a LogConfig.

    Raises:
      ValueError: if a writer's package is not installed.
    """
    workdir = pathlib.Path(workdir)
    writers = [JsonlWriter(workdir / "metrics.jsonl")]
    try:
        if config.tensorboard:
            writers.append(TensorBoardWriter(workdir / "tensorboard"))
        if config.wandb_project:
            writers.append(WandbWriter(config.wandb_project, workdir, run_config))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"log: {error.name} is not installed; install dlm_jax[tensorboard] or dlm_jax[wandb]"
        ) from None
    return writers


def _plain(value):
    """JSON has no NaN: what is not finite becomes null."""
    value = float(value)
    return value if math.isfinite(value) else None
