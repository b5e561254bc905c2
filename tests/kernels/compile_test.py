"""The kernels compile for accelerators that are not here, and are in the program; what the compiler refuses is told."""

import functools

import jax
import jax.numpy as jnp
import pytest
from dlm_jax.launch import topologies

from dlm_jax.aot import programs
from dlm_jax.kernels.attention import attention
from dlm_jax.kernels.unmask import unmask

TPUS = ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"]


@functools.cache
def device_of(name):
    try:
        return programs.devices_of(topologies.parse(name)).flat[0]
    except programs.Unavailable as error:
        pytest.skip(f"reported as unavailable: {error}")


def compiled_for(name, function, *shapes):
    where = jax.sharding.SingleDeviceSharding(device_of(name))
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=where) for shape, dtype in shapes]
    return jax.jit(function).lower(*arguments).compile()


def head_on(name, implementation=None, rows=1024, vocab_size=131_072, dim=768):
    def draw(hidden, kernel, words, temperature):
        keys = jax.random.wrap_key_data(words)
        platform = topologies.parse(name).platform
        return unmask(hidden, kernel, keys, temperature, platform=platform, implementation=implementation)

    return compiled_for(
        name, draw, ((1, rows, dim), jnp.bfloat16), ((vocab_size, dim), jnp.bfloat16), ((1, rows, 2), jnp.uint32),
        ((), jnp.float32),
    )  # fmt: skip


@pytest.mark.parametrize("name", [*TPUS, "H100"])
def test_the_fused_head_is_in_the_program_and_saves_its_logits(name):
    program = head_on(name)
    assert programs.kernels(program.as_text())
    logits = 4 * 1024 * 131_072
    assert program.memory_analysis().temp_size_in_bytes < logits / 100
    if name in TPUS:  # the compiler keeps no account for GPUs
        assert program.cost_analysis()["bytes accessed"] < 1.05 * (2 * 131_072 * 768 + 2 * 1024 * 768 + 9 * 4 * 1024)


@pytest.mark.parametrize("name", ["v5e:2x2", "H100"])
def test_without_the_kernel_the_logits_are_there(name):
    program = head_on(name, "reference")
    assert not programs.kernels(program.as_text())
    assert program.memory_analysis().temp_size_in_bytes > 4 * 1024 * 131_072 / 2
    if name in TPUS:
        assert program.cost_analysis()["bytes accessed"] > 10 * head_on(name).cost_analysis()["bytes accessed"]


@pytest.mark.parametrize("name", TPUS)
def test_attention_forward_and_backward_are_kernels(name):
    def gradients(q, k, v):
        return jax.grad(lambda *x: attention(*x, platform="tpu").astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)

    shape = ((2, 4, 512, 64), jnp.bfloat16)
    found = programs.kernels(compiled_for(name, gradients, shape, shape, shape).as_text())
    assert sum(found.values()) == 3, found  # forward, queries, keys and values
