"""Several real processes that find each other: the same batches as one process, whatever their number."""

import os
import subprocess
import sys

import numpy as np
import pytest
from dlm_jax.launch import local

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


LATE = """
import os, sys, time
from dlm_jax.parallel import multihost
multihost.initialize()
if os.environ["JAX_PROCESS_ID"] in sys.argv[1]:
    time.sleep(8)
try:
    print(multihost.exchange("meeting", os.environ["JAX_PROCESS_ID"], seconds=float(sys.argv[2])), flush=True)
except multihost.ProcessesMissing as error:
    print(error, flush=True)
time.sleep(2)  # whoever leaves takes the others along
os._exit(0)
"""


def processes(program, count, *arguments):
    """(stdout, stderr, exit code) of processes that find each other."""
    port = local.free_port()
    started = []
    for rank in range(count):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
        environment |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(rank)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return [(*process.communicate(timeout=120), process.returncode) for process in started]


def test_a_meeting_that_fails_says_who_is_missing():
    (first, *_), (second, *_), _ = processes(LATE, 3, "2", "2")
    assert first.strip() == second.strip() == "meeting: after 2 s no sign of process 2 (of 3)"
    # The variation: given the time, all three meet.
    found = processes(LATE, 3, "2", "60")
    assert [out.strip() for out, _, _ in found] == ["['0', '1', '2']"] * 3


def batch_of(num_hosts, folder, seed=0):
    folder.mkdir()
    for _, errors, code in processes(RANK, num_hosts, str(folder), str(num_hosts), str(seed)):
        assert code == 0, errors
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
