"""Several real processes that find each other: the same batches as one process, whatever their number."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

RANK = """
import sys
import jax
import numpy as np
from dlm_jax.parallel import mesh, multihost, sharding
multihost.initialize()
from dlm_jax.data.batches import Batches
from dlm_jax.data.packing import Rows

assert jax.process_count() == int(sys.argv[2])
rows = Rows(np.arange(400, dtype=np.uint16).reshape(100, 4), np.zeros(100), np.zeros(100))
batches = Batches(rows, 8, seed=int(sys.argv[3]))
devices = jax.device_count()
for number, shape in enumerate([(1, devices, 1), (1, 1, devices)]):  # rows over all hosts; the same rows on all hosts
    where = sharding.batch_sharding(mesh.make_mesh(shape))
    whole = multihost.global_rows(lambda part: batches(13, part), {"tokens": (8, 4)}, where)["tokens"]
    for shard in whole.addressable_shards:
        start = shard.index[0].start or 0
        np.testing.assert_array_equal(shard.data, batches(13)["tokens"][start : start + len(shard.data)])
        if number == 0:
            np.save(f"{sys.argv[1]}/{start}.npy", np.asarray(shard.data))
words = [f"from {index}" for index in range(jax.process_count())]
assert multihost.exchange("test", f"from {jax.process_index()}") == words
"""


def batch_of(num_hosts, folder, seed=0):
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(num_hosts):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
        environment |= {"JAX_NUM_PROCESSES": str(num_hosts), "JAX_PROCESS_ID": str(rank)}
        command = [sys.executable, "-c", RANK, str(folder), str(num_hosts), str(seed)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    parts = sorted(folder.glob("*.npy"), key=lambda path: int(path.stem))
    return np.concatenate([np.load(path) for path in parts])


@pytest.fixture(scope="module")
def one_host(tmp_path_factory):
    return batch_of(1, tmp_path_factory.mktemp("hosts") / "one")


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_the_global_batch_is_that_of_one_process(num_hosts, one_host, tmp_path):
    np.testing.assert_array_equal(batch_of(num_hosts, tmp_path / "many"), one_host)


def test_another_seed_gives_another_batch(one_host, tmp_path):
    assert (batch_of(1, tmp_path / "other", seed=1) != one_host).any()
