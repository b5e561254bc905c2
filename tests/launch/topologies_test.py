"""Topologies: what people write and what the compiler wants."""

import pytest
from dlm_jax.launch import topologies

KNOWN = {
    "v5e:4x4": ("v5e", 16, "v5e:4x4"),
    "v5litepod-16": ("v5e", 16, "v5e:4x4"),
    "v5litepod-1": ("v5e", 1, "v5e:1x1"),
    "v6e-256": ("v6e", 256, "v6e:16x16"),
    "v6e:2x4": ("v6e", 8, "v6e:2x4"),
    "v5p-8": ("v5p", 4, "v5p:2x2x1"),
    "v5p-64": ("v5p", 32, "v5p:2x4x4"),
    "v5p:4x4x4": ("v5p", 64, "v5p:4x4x4"),
    "v4-32": ("v4", 16, "v4:2x2x4"),
    "V4-8": ("v4", 4, "v4:2x2x1"),
    "H100": ("H100", 1, ""),
    "H100x8": ("H100", 8, ""),
    "h100x2x8": ("H100", 16, ""),
}


@pytest.mark.parametrize(("name", "want"), KNOWN.items())
def test_names_of_people_become_names_of_the_compiler(name, want):
    found = topologies.parse(name)
    assert (found.generation, found.num_devices, found.compiler_arguments["topology_name"]) == want
    assert found.platform == ("gpu" if found.generation == "H100" else "tpu")
    assert 15 * 2**30 < found.memory_bytes < 100 * 2**30


def test_what_the_compiler_wants_beside_the_name():
    assert topologies.parse("v4-8").compiler_arguments["chip_config_name"] == "megacore"
    assert topologies.parse("v5e:1x1").compiler_arguments["chips_per_host_bounds"] == (1, 1, 1)
    assert "chips_per_host_bounds" not in topologies.parse("v5e:2x2").compiler_arguments
    assert topologies.parse("H100x2x8").compiler_arguments["topology"] == "1x2x8"


@pytest.mark.parametrize(
    "name",
    ["", "v5", "v5e", "v5e:3x3", "v5e:4x4x4", "v5p:4x4", "v5p-7", "v5p-24", "v6e-3", "v7x:2x2", "H100x0", "A100x8"],
)
def test_what_is_no_topology_is_refused_with_what_is_allowed(name):
    with pytest.raises(ValueError, match=r"^topology .*(must be|needs)"):
        topologies.parse(name)
