"""Workdirs in a bucket and corpora anywhere: with a local Google Cloud Storage, fsspec's memory, and real processes."""

import contextlib
import importlib.util
import json
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request

import fsspec
import pytest
from dlm_jax.launch import local

import dlm_jax
from dlm_jax import storage
from dlm_jax.cli.main import main
from dlm_jax.config import DataConfig
from dlm_jax.data import packing
from dlm_jax.training import checkpoint

TRAIN = (
    "train", "--config=debug", "--config.checkpoint.every_steps=10", "--config.eval.every_steps=0",
    "--config.log.every_steps=1", "--config.train.num_steps=50",
)  # fmt: skip


# The emulator leaves out a header that the real service sends and tensorstore asks for.
EMULATOR = """
from gcp_storage_emulator.handlers import objects
plain = objects.download
def download(request, response, storage, *rest, **more):
    try:
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["X-Goog-Generation"] = str(found["generation"])
    except Exception:
        pass  # not there: the answer says so
    plain(request, response, storage, *rest, **more)
objects.download = download
from gcp_storage_emulator.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """Returns "gs://bkt" and the environment in which it is found: a local Google Cloud Storage."""
    if not all(importlib.util.find_spec(name) for name in ("gcsfs", "gcp_storage_emulator")):
        pytest.skip("reported: needs gcsfs and gcp-storage-emulator")
    port = local.free_port()
    arguments = ["start", "--host=127.0.0.1", f"--port={port}", "--in-memory", "--default-bucket=bkt"]
    server = subprocess.Popen([sys.executable, "-c", EMULATOR, *arguments], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    variables = {
        "STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "GOOGLE_CLOUD_PROJECT": "p",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/storage/v1/b/bkt", timeout=5).read()
                break
            assert time.monotonic() < end and server.poll() is None
            time.sleep(0.2)
        yield "gs://bkt", variables
        server.terminate()
        server.wait()


def run(environment, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "dlm_jax", *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_goes_on_elsewhere_and_ends_as_on_a_disk(bucket, environment, tmp_path):
    url, variables = f"{bucket[0]}/runs/one", bucket[1]
    here = {**environment, **variables, "DLM_JAX_CACHE": str(tmp_path / "here")}
    process = subprocess.Popen(
        [sys.executable, "-m", "dlm_jax", *TRAIN, f"--workdir={url}"], env=here, stderr=subprocess.PIPE, text=True
    )
    fs = fsspec.filesystem("gcs")
    end = time.monotonic() + 120
    while not fs.glob("bkt/runs/one/checkpoints/*/manifest.json"):
        assert time.monotonic() < end and process.poll() is None, process.communicate()[1]
        fs.invalidate_cache()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate()
    assert process.returncode == 85, log
    # Another machine: another twin.
    there = {**environment, **variables, "DLM_JAX_CACHE": str(tmp_path / "there")}
    code, _, log = run(there, *TRAIN, f"--workdir={url}")
    assert code == 0, log
    code, out, log = run(there, "inspect", f"--workdir={url}", "--json")
    assert code == 0, log
    code, _, log = run(environment, *TRAIN, f"--workdir={tmp_path / 'disk'}")
    assert code == 0, log
    _, plain, _ = run(environment, "inspect", f"--workdir={tmp_path / 'disk'}", "--json")
    found, wanted = json.loads(out), json.loads(plain)
    assert found["params_sha256"] == wanted["params_sha256"] and found["step"] == wanted["step"] == 50
    fs.invalidate_cache()
    names = {name.removeprefix("bkt/runs/one/").split("/")[0] for name in fs.find("bkt/runs/one")}
    assert names == {"config.json", "metrics.jsonl", "checkpoints", "data"}
    steps = [json.loads(line) for line in fs.cat_file("bkt/runs/one/metrics.jsonl").decode().splitlines()]
    assert next(line["attempt_from"] for line in steps if "attempt_from" in line) == 0
    assert max(line["step"] for line in steps) == 50
    samples = dlm_jax.load(url).sample(num_samples=2, num_steps=4, seed=0)
    assert samples.texts == dlm_jax.load(tmp_path / "disk").sample(num_samples=2, num_steps=4, seed=0).texts


@pytest.mark.slow
def test_two_hosts_that_share_nothing_but_the_bucket_train_as_one(bucket, environment, tmp_path):
    url, hosts = f"{bucket[0]}/runs/two", []
    for rank, (argv, joined) in enumerate(local.plan([*TRAIN, f"--workdir={url}"], 2, local.free_port())):
        own = {**environment, **bucket[1], **joined, "DLM_JAX_CACHE": str(tmp_path / f"host-{rank}")}
        hosts.append(subprocess.Popen(argv, env=own, stderr=subprocess.PIPE))
    logs = [host.communicate(timeout=300)[1].decode() for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(logs)
    reader = {**environment, **bucket[1], "DLM_JAX_CACHE": str(tmp_path / "reader")}
    code, out, log = run(reader, "inspect", f"--workdir={url}", "--json")
    assert code == 0 and json.loads(out)["step"] == 50, log


def test_damage_in_a_bucket_is_found_and_set_aside(bucket, environment, tmp_path):
    url = f"{bucket[0]}/runs/damaged"
    there = {**environment, **bucket[1], "DLM_JAX_CACHE": str(tmp_path)}
    assert run(there, *TRAIN, f"--workdir={url}", "--config.train.num_steps=20")[0] == 0
    fs = fsspec.filesystem("gcs")
    fs.invalidate_cache()
    wounded = max(fs.find("bkt/runs/damaged/checkpoints/20/params"), key=fs.size)
    content = bytearray(fs.cat_file(wounded))
    content[len(content) // 2] ^= 1
    fs.pipe_file(wounded, bytes(content))
    code, _, log = run(there, *TRAIN, f"--workdir={url}", "--config.train.num_steps=30")
    assert code == 0 and "is not what was written; moved to gs://" in log, log
    fs.invalidate_cache()
    assert fs.exists("bkt/runs/damaged/checkpoints_damaged/20/reason.txt")
    twin = storage.twin(url)
    assert checkpoint.steps(twin) == [20, 30]


def test_a_lock_in_a_bucket_keeps_out_a_second_writer_and_is_taken_over_when_stale(bucket, monkeypatch):
    path = storage.as_path(f"{bucket[0]}/locks/.lock")
    monkeypatch.setattr(storage, "_BEAT", 0.05)
    monkeypatch.setattr(storage, "_STALE", 1.0)
    first = storage.Lock(path)
    with pytest.raises(BlockingIOError, match="another run writes there"):
        storage.Lock(path)
    first.close()
    path.write_text(json.dumps({"owner": "somebody who was killed", "alive": 0}))
    waits = []
    second = storage.Lock(path, waits.append)
    assert waits and json.loads(path.read_text())["owner"] != "somebody who was killed"
    second.close()
    assert not path.exists()


def corpus(source, folder):
    config = DataConfig(source=source, length=8, text_field="text")
    return packing.prepare(config, folder, quiet=True, say=lambda line: None)


def test_a_corpus_anywhere_is_the_same_corpus_and_is_fetched_anew_when_it_changes(bucket, tmp_path):
    text = "\n\n".join(f"Document number {number}." for number in range(50))
    (tmp_path / "a.txt").write_text(text)
    want = corpus(str(tmp_path / "a.txt"), tmp_path / "disk").fingerprint
    for place in ("memory://texts/a.txt", f"{bucket[0]}/texts/a.txt", f"file://{tmp_path}/a.txt"):
        with fsspec.open(place, "w") as file:
            file.write(text)
        assert corpus(place, tmp_path / "far").fingerprint == want, place
    assert corpus("memory://texts/*.txt", tmp_path / "far").fingerprint == want
    with fsspec.open("memory://texts/a.txt", "w") as file:
        file.write(text.replace("Document", "Dokument"))
    assert corpus("memory://texts/a.txt", tmp_path / "far").fingerprint != want


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--config=debug", "--workdir=memory://w"), "must be a folder or start with gs://"),
        (("train", "--config=debug", "--workdir=gs://me:secret@b/w"), "without user, password or query"),
        (("train", "--config=debug", "--workdir=w", "--config.data.source=https://me:secret@h/x.txt"), "without user"),
        (("train", "--config=debug", "--workdir=w", "--config.data.source=memory://none.txt"), "no such file"),
        (("train", "--config=debug", "--workdir=w", "--config.data.source=strange://x.txt"), "strange"),
        (("inspect", "--workdir=gs://bkt/nothing"), "holds no config.json"),
    ],
)
def test_wrong_places_are_refused_in_one_line(bucket, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLM_JAX_CACHE", str(tmp_path / "cache"))
    code = main(list(arguments))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dlm: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], lines
    assert "secret" not in lines[0] and not pathlib.Path("w/checkpoints").exists()


def test_the_password_of_an_address_never_reaches_a_configuration():
    with pytest.raises(ValueError) as caught:
        DataConfig(source="s3://key:hush@bucket/x.txt")
    assert "hush" not in str(caught.value)
