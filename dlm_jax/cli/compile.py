"""dlm compile: a config's training step, compiled for hardware that is not here: memory, operations, collectives."""

import os
import pathlib

from dlm_jax.cli import options

EXAMPLE = "dlm compile --config owt_mdlm_small --topology v5e:4x4"

# Share of the peak that well-tuned training steps reach; the estimate of a step's time assumes it.
_USUAL_MFU = 0.4


def define_flags(values):
    from absl import flags

    options.define_config(values)
    options.define_json(values)
    flags.DEFINE_string("topology", None, "v5e:4x4, v5litepod-16, v5p-64, v6e:16x16, v4:2x2x1, H100x8, ...",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_integer("vocab_size", 0, "of the model; 0 = that of the config's tokenizer", flag_values=values)


def run(values):
    config = options.run_config(values)
    vocab_size = values["vocab_size"].value or _vocab_size(config.data)
    if vocab_size < 2:
        raise ValueError(f"--vocab_size={vocab_size}: must be at least 2")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the compiler is asked, no device is
    from dlm_jax.launch import topologies

    topology = topologies.parse(options.required(values, "topology"))
    from dlm_jax import config as configs
    from dlm_jax.aot import programs
    from dlm_jax.progress import Progress

    configs.check_devices(config, topology.num_devices)

    quiet = values["json"].value
    label = f"compiling for {topology.num_devices} x {topology.generation}"
    try:
        programs.devices_of(topology)
    except programs.Unavailable as error:
        raise ValueError(str(error)) from None
    with Progress(label, quiet=quiet, interval=config.log.progress_seconds):
        say = (lambda text: None) if quiet else print
        found, suggestion = programs.fit(config, vocab_size, topology, say)
    payload = _payload(config, vocab_size, topology, found, suggestion)
    if quiet:
        options.emit(payload)
        return
    print("\n".join(_lines(payload)))


def _payload(config, vocab_size, topology, found, suggestion):
    from dlm_jax.models.denoiser import Denoiser
    from dlm_jax.training.step import required_flops

    denoiser = Denoiser(config.model, vocab_size, topology.platform)
    flops = required_flops(denoiser, config)
    estimate = flops / (topology.peak_flops * topology.num_devices * _USUAL_MFU)
    return {
        "topology": topology.name,
        "num_devices": topology.num_devices,
        "mesh": dict(zip(("replica", "fsdp", "tensor"), config.mesh.shape(topology.num_devices), strict=True)),
        "num_params": denoiser.num_params,
        "vocab_size": vocab_size,
        "fits": not found.shortfall_bytes,
        "peak_memory_bytes": found.peak_memory_bytes,
        "memory_limit_bytes": topology.memory_bytes,
        "shortfall_bytes": found.shortfall_bytes,
        "suggestion": suggestion,
        "flops_per_step": flops,
        "step_seconds_estimate": estimate,
        "tokens_per_second_estimate": config.train.batch_size * config.data.length / estimate,
        "assumed_mfu": _USUAL_MFU,
        "collectives": found.collectives,
        "kernels": found.kernels,
        "compile_seconds": found.seconds,
    }


def _lines(payload):
    gib = 2**30
    mesh = " x ".join(f"{name} {size}" for name, size in payload["mesh"].items() if size > 1) or "one device"
    yield f"{payload['num_params'] / 1e6:,.1f} M parameters on {payload['topology']}: {mesh}"
    peak, limit = payload["peak_memory_bytes"] / gib, payload["memory_limit_bytes"] / gib
    if payload["fits"]:
        yield f"fits: {peak:.2f} of {limit:.2f} GiB a device"
    else:
        over = payload["shortfall_bytes"] / gib
        yield f"does not fit: {peak:.2f} GiB wanted of {limit:.2f} a device, {over:.2f} too many"
        change = payload["suggestion"]
        yield f"would fit with {change} (compiled)" if change else "nothing that was tried fits; take a larger slice"
    yield (
        f"{payload['flops_per_step']:.3e} required operations a step; "
        f"about {payload['step_seconds_estimate']:.2f} s and {payload['tokens_per_second_estimate']:,.0f} tokens/s "
        f"at {payload['assumed_mfu']:.0%} of the peak (assumed)"
    )
    for name in ("collectives", "kernels"):
        listed = ", ".join(f"{count} {kind}" for kind, count in payload[name].items()) or "none"
        yield f"{name}: {listed}"
    yield f"compiled in {payload['compile_seconds']:.0f} s"


def _vocab_size(data):
    """V of a config's tokenizer, without its corpus."""
    from dlm_jax.data import tokenizers

    if data.tokenizer == "bpe" or (data.tokenizer.endswith(".json") and not pathlib.Path(data.tokenizer).is_file()):
        return data.vocab_size
    return tokenizers.make_tokenizer(data.tokenizer, num_letters=len(data.transition)).vocab_size
