"""Accelerators by the names that people and clouds use, and by the names that the compiler wants.

| written                                     | means                                           |
|---------------------------------------------|-------------------------------------------------|
| v5e:4x4, v5p:4x4x4, v6e:16x16               | a generation and the dimensions of a slice       |
| v5litepod-16, v6e-256                       | a slice by its number of chips                  |
| v4-32, v5p-64                               | by its number of cores, two a chip              |
| H100x8, H100x2x8                            | GPUs, or hosts x GPUs                           |
"""

import dataclasses
import math
import re

# Bytes that a program may use on one device, as the compilers state them.
_GIB = 2**30
_MEMORY = {"v4": 30.75 * _GIB, "v5e": 15.75 * _GIB, "v5p": 95.74 * _GIB, "v6e": 31.25 * _GIB, "H100": 84929347584}
# Dense bfloat16 FLOP/s of one device, and bytes/s of its memory, as the makers state them.
_PEAKS = {
    "v4": (275e12, 1228e9), "v5e": (197e12, 819e9), "v5p": (459e12, 2765e9), "v6e": (918e12, 1640e9),
    "H100": (989e12, 3352e9),
}  # fmt: skip
_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_CUBES = {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8),
    512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16), 4096: (16, 16, 16),
}  # fmt: skip
_SLICES = {"v4": _CUBES, "v5p": _CUBES, "v5e": _FLAT, "v6e": _FLAT}
_EXAMPLES = "v5e:4x4, v5litepod-16, v5p-64, v6e:16x16, v4:2x2x1 or H100x8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some devices that work together.

    Args:
      name: as the user wrote it.
      generation: v4, v5e, v5p, v6e or H100.
      dims: of the slice, in chips; of GPUs (hosts, GPUs a host).
    """

    name: str
    generation: str
    dims: tuple

    @property
    def platform(self):
        return "gpu" if self.generation == "H100" else "tpu"

    @property
    def num_devices(self):
        return math.prod(self.dims)

    @property
    def memory_bytes(self):
        """Bytes that a program may use on one device."""
        return int(_MEMORY[self.generation])

    @property
    def peak_flops(self):
        """FLOP/s of one device in bfloat16."""
        return _PEAKS[self.generation][0]

    @property
    def memory_bandwidth(self):
        """Bytes/s of one device."""
        return _PEAKS[self.generation][1]

    @property
    def compiler_arguments(self):
        """What jax.experimental.topologies.get_topology_desc takes."""
        if self.platform == "gpu":
            hosts, gpus = self.dims
            return {
                "platform": "cuda", "topology_name": "", "topology": f"1x{hosts}x{gpus}", "target_config": _H100,
            }  # fmt: skip
        arguments = {"platform": "tpu", "topology_name": f"{self.generation}:{'x'.join(map(str, self.dims))}"}
        if self.generation == "v4":
            arguments["chip_config_name"] = "megacore"
        if self.num_devices == 1:
            arguments["chips_per_host_bounds"] = (1, 1, 1)
        return arguments


def parse(name):
    """Returns the Topology of a name.

    Raises:
      ValueError: naming what is allowed.
    """
    found = re.fullmatch(r"h100(?::|x)?(\d+)(?:x(\d+))?", name.lower()) or re.fullmatch(r"h100()()", name.lower())
    if found:
        first, second = (int(part) if part else None for part in found.groups())
        dims = (1, 1 if first is None else first) if second is None else (first, second)
        if min(dims) < 1:
            raise ValueError(f"topology {name!r}: needs at least one GPU")
        return Topology(name, "H100", dims)
    text = name.lower().replace("v5litepod", "v5e").replace("v5lite", "v5e")
    found = re.fullmatch(r"(v4|v5e|v5p|v6e)(?::(\d+(?:x\d+)+)|-(\d+))", text)
    if not found:
        raise ValueError(f"topology {name!r}: must be written like {_EXAMPLES}")
    generation, shape, count = found.groups()
    known = _SLICES[generation]
    if shape:
        dims = tuple(int(size) for size in shape.split("x"))
        if dims not in known.values():
            allowed = ", ".join(f"{generation}:{'x'.join(map(str, size))}" for size in known.values())
            raise ValueError(f"topology {name!r}: no such slice; must be one of {allowed}")
        return Topology(name, generation, dims)
    per_chip = 2 if generation in ("v4", "v5p") else 1
    if int(count) % per_chip or int(count) // per_chip not in known:
        allowed = ", ".join(f"{name.split('-')[0]}-{chips * per_chip}" for chips in known)
        raise ValueError(f"topology {name!r}: no such slice; must be one of {allowed}")
    return Topology(name, generation, known[int(count) // per_chip])


_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" runtime_version { major: 12 minor: 9 } dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
