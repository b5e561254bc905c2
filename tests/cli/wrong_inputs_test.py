"""Wrong input ends with exit code 2 and one line that names the thing, and never costs a checkpoint."""

import builtins
import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dlm_jax import files
from dlm_jax.cli.main import main

TINY = ("--config.train.num_steps=6", "--config.checkpoint.every_steps=3", "--config.train.batch_size=16")


def quiet_main(*arguments):
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        return main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A workdir of a tiny model, trained once; every test checks in the end that it is as it was."""
    workdir = tmp_path_factory.mktemp("trained") / "model"
    assert quiet_main("train", "--config", "debug", "--workdir", workdir, *TINY) == 0
    return workdir


def contents(workdir):
    return {str(path): path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def before(trained, tmp_path_factory):
    return {"files": contents(trained), "sha256": params_sha256(trained)}


def params_sha256(workdir):
    from io import StringIO

    out = StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["inspect", "--json", "--workdir", str(workdir)]) == 0
    return json.loads(out.getvalue())["params_sha256"]


def refused(capsys, *arguments):
    """Runs a command line that must be refused; returns its one line."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert code == 2, captured.err
    assert lines and lines[-1].startswith("dlm: ") and len(lines[-1]) > len("dlm: ") + 5
    assert sum(line.startswith("dlm: ") for line in lines) == 1
    assert "Traceback" not in captured.err and "Traceback" not in captured.out
    # Before the error only progress ("label: 0s") and what was skipped or packed.
    for line in lines[:-1]:
        assert ": " in line or line.startswith(("skipped", "corpus", "reading")) or "parameters on mesh" in line, line
    return lines[-1]


# ---------------------------------------------------------------------------------------------- no model needed


def text_files(folder):
    """Broken and unsuitable corpora, configs and tokenizers, by name."""
    made = {
        "typo.py": "def get_config(:\n",
        "raises.py": "def get_config():\n    raise RuntimeError('not today')\n",
        "nothing.py": "x = 1\n",
        "number.py": "def get_config():\n    return 5\n",
        "imports.py": "import no_such_package_at_all\n",
        "empty.txt": "",
        "broken.jsonl": "{broken\nalso broken\n",
        "one.txt": "a single document without a separator, long enough for several rows of it" * 20,
        "short.txt": "\n\n".join(f"document {i} of a small corpus, which holds a few rows only" for i in range(8)),
        "damaged.json": '{"model": ',
        "nomodel.json": "{}",
        "bad.npy": "this is no array",
        "corpus.csv": "a,b\n",
    }
    for name, content in made.items():
        (folder / name).write_text(content)
    np.save(folder / "other.npy", np.zeros((50, 31), np.int32))
    np.save(folder / "floats.npy", np.zeros((50, 32)))
    (folder / "file").write_text("not a folder")
    (folder / "folder").mkdir()
    return folder


DEBUG = ("train", "--config", "debug", "--workdir", "{t}/w")
# name -> (command line, what the line must hold)
WITHOUT_MODEL = {
    "no such verb": (("frobnicate",), "verb 'frobnicate': must be one of demo, train"),
    "misspelt verb": (("trian",), "verb 'trian'.*did you mean 'train'"),
    "stray argument": ((*DEBUG, "stray"), "argument 'stray': dlm train takes flags only"),
    "unknown flag": ((*DEBUG, "--steps=3"), "[Uu]nknown.*flag.*'?steps"),
    "missing workdir": (("train", "--config", "debug"), "--workdir: must be given"),
    "missing workdir of sample": (("sample",), "--workdir: must be given"),
    "missing workdir of evaluate": (("evaluate",), "--workdir: must be given"),
    "missing workdir of inspect": (("inspect",), "--workdir: must be given"),
    "missing workdir of demo": (("demo",), "--workdir: must be given"),
    "missing config": (("train", "--workdir", "{t}/w"), "--config: must be given"),
    "config that is not there": (("train", "--config", "{t}/no.py", "--workdir", "{t}/w"), r"no\.py"),
    "config name that is not there": (("train", "--config", "debgu", "--workdir", "{t}/w"), "debgu"),
    "config with a syntax error": (("train", "--config", "{t}/typo.py", "--workdir", "{t}/w"), r"typo\.py"),
    "config that raises": (("train", "--config", "{t}/raises.py", "--workdir", "{t}/w"), r"raises\.py.*not today"),
    "config without get_config": (("train", "--config", "{t}/nothing.py", "--workdir", "{t}/w"), "get_config"),
    "config that is a number": (("train", "--config", "{t}/number.py", "--workdir", "{t}/w"), r"number\.py"),
    "config that imports nothing": (
        ("train", "--config", "{t}/imports.py", "--workdir", "{t}/w"), r"imports\.py.*no_such_package_at_all"),
    "config that is a folder": (("train", "--config", "{t}/folder", "--workdir", "{t}/w"), "folder"),
    "demo: config that is not there": (("demo", "--config", "{t}/no.py", "--workdir", "{t}/w"), r"no\.py"),
    "demo: config with a syntax error": (("demo", "--config", "{t}/typo.py", "--workdir", "{t}/w"), r"typo\.py"),
    "demo: config that raises": (("demo", "--config", "{t}/raises.py", "--workdir", "{t}/w"), r"raises.*not today"),
    "demo: config without get_config": (("demo", "--config", "{t}/nothing.py", "--workdir", "{t}/w"), "get_config"),
    "demo: config that is a number": (("demo", "--config", "{t}/number.py", "--workdir", "{t}/w"), r"number\.py"),
    "demo: no time": (("demo", "--minutes", "0", "--workdir", "{t}/w"), "--minutes=0.0: must be at least 3"),
    "demo: not a time": (("demo", "--minutes", "few", "--workdir", "{t}/w"), "minutes.*few"),
    "misspelt field": ((*DEBUG, "--config.model.num_layer=3"), "num_layer"),
    "unknown group": ((*DEBUG, "--config.modle.num_layers=3"), "modle"),
    "wrong type": ((*DEBUG, "--config.train.num_steps=many"), r"train\.num_steps.*many"),
    "fraction of a step": ((*DEBUG, "--config.train.num_steps=1.5"), r"train\.num_steps.*1\.5"),
    "wrong type in a list": ((*DEBUG, "--config.eval.t_steps=('a',)"), r"eval\.t_steps='a'"),
    "rule broken": ((*DEBUG, "--config.model.dropout=1.5"), r"model\.dropout=1\.5: must be at least 0 and below 1"),
    "batch not divisible": ((*DEBUG, "--config.train.batch_size=12"), r"train\.batch_size=12: .* divisible by 16"),
    "heads not dividing": ((*DEBUG, "--config.model.num_heads=3"), r"model\.num_heads=3: must divide"),
    "mesh too large": ((*DEBUG, "--config.mesh.tensor=3"), r"mesh\.tensor=3: must multiply"),
    "negative seed": ((*DEBUG, "--config.seed=-1"), "seed=-1: must be between 0 and"),
    "length too long": (
        (*DEBUG, "--config.data.source={t}/short.txt", "--config.data.length=400"), r"data\.length=400"),
    "too few rows": ((*DEBUG, "--config.data.source={t}/short.txt"), r"length=32: .* makes only \d+ train"),
    "empty corpus": ((*DEBUG, "--config.data.source={t}/empty.txt"), r"data\.source='.*empty\.txt': holds no document"),
    "missing corpus": ((*DEBUG, "--config.data.source={t}/no.txt"), r"data\.source='.*no\.txt': no such file"),
    "corpus of another kind": ((*DEBUG, "--config.data.source={t}/corpus.csv"), r"corpus\.csv must be \.txt"),
    "no good line": ((*DEBUG, "--config.data.source={t}/broken.jsonl"), r"broken\.jsonl': holds no document"),
    "one document": ((*DEBUG, "--config.data.source={t}/one.txt"), r"one\.txt': 1 document; .*at least 2"),
    "unknown part": ((*DEBUG, "--config.data.source=embedded:poems"), "embedded:poems'.*must be one of"),
    "unknown tfds data set": ((*DEBUG, "--config.data.source=tfds:no_such_set"), "tfds:no_such_set'.*not found"),
    "unknown tokenizer": ((*DEBUG, "--config.data.tokenizer=byte"), r"data\.tokenizer='byte': must be one of"),
    "missing tokenizer": ((*DEBUG, "--config.data.tokenizer={t}/no.json"), r"no\.json': no such file"),
    "damaged tokenizer": ((*DEBUG, "--config.data.tokenizer={t}/damaged.json"), r"damaged\.json: not valid JSON"),
    "tokenizer without model": ((*DEBUG, "--config.data.tokenizer={t}/nomodel.json"), r"nomodel\.json: not a token"),
    "text8 of other text": ((*DEBUG, "--config.data.tokenizer=text8"), "data.length=32: .*skipped.*character"),
    "bad npy": ((*DEBUG, "--config.data.source={t}/bad.npy"), r"bad\.npy': not a \.npy array"),
    "npy of other length": ((*DEBUG, "--config.data.source={t}/other.npy"), r"rows of 31 tokens, must be .*length=32"),
    "npy of floats": ((*DEBUG, "--config.data.source={t}/floats.npy"), r"float64\[50, 32\] must be integer"),
    "workdir is a file": (("train", "--config", "debug", "--workdir", "{t}/file"), "file.*: Not a directory"),
    "workdir inside a file": (("train", "--config", "debug", "--workdir", "{t}/file/w"), "file"),
    "sample: no workdir": (("sample", "--workdir", "{t}/none"), "workdir='.*none': no such folder"),
    "evaluate: no workdir": (("evaluate", "--workdir", "{t}/none"), "workdir='.*none': no such folder"),
    "inspect: no workdir": (("inspect", "--workdir", "{t}/none"), "workdir='.*none': no such folder"),
    "sample: workdir is a file": (("sample", "--workdir", "{t}/file"), "file"),
    "sample: empty workdir": (("sample", "--workdir", "{t}/folder"), r"folder/config\.json"),
    "sizes are no numbers": (("sample", "--workdir", "{t}/folder", "--sizes=4,x"), "--sizes=4,x: must be"),
    "t_steps are no numbers": (("evaluate", "--workdir", "{t}/folder", "--t_steps=4,x"), "--t_steps=4,x: must be"),
    "num_steps is no number": (("sample", "--workdir", "{t}/folder", "--num_steps=few"), "num_steps.*few"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_MODEL)
def test_wrong_input_is_refused_in_one_line(name, tmp_path, capsys):
    arguments, message = WITHOUT_MODEL[name]
    text_files(tmp_path)
    line = refused(capsys, *(argument.replace("{t}", str(tmp_path)) for argument in arguments))
    assert re.search(message, line), line
    assert not (tmp_path / "w" / "checkpoints").exists()


# ---------------------------------------------------------------------------------------------- with a model

SAMPLE, EVALUATE = ("sample", "--workdir", "{m}"), ("evaluate", "--workdir", "{m}")
WITH_MODEL = {
    "num_steps above the length": ((*SAMPLE, "--num_steps=33"), "num_steps=33: must be .*32"),
    "num_steps negative": ((*SAMPLE, "--num_steps=-1"), "num_steps=-1: must be at least"),
    "sizes of another sum": ((*SAMPLE, "--sizes=16,15"), "sizes.*31.*32"),
    "sizes with zero": ((*SAMPLE, "--sizes=16,0,16"), "sizes.*0"),
    "negative sizes": ((*SAMPLE, "--sizes=40,-8"), "sizes.*-8"),
    "unknown selection": ((*SAMPLE, "--selection=best"), "selection='best': must be one of random, confidence"),
    "negative temperature": ((*SAMPLE, "--temperature=-1"), r"temperature=-1\.0: must be at least 0"),
    "no temperature": ((*SAMPLE, "--temperature=nan"), "temperature=nan: must be at least 0"),
    "no samples": ((*SAMPLE, "--num_samples=0"), "num_samples=0: must be .*at least 1"),
    "no infilled samples": ((*SAMPLE, "--num_samples=0", "--infill=a[MASK]"), "num_samples=0: must be .*at least 1"),
    "negative seed": ((*SAMPLE, "--seed=-1"), "seed=-1: must be between 0"),
    "prompt too long": ((*SAMPLE, f"--prompt={'x' * 32}"), "prompt: 32 tokens must be fewer than the length 32"),
    "infill without mask": ((*SAMPLE, "--infill=no mask"), r"template: must hold \[MASK\]"),
    "infill too long": ((*SAMPLE, "--infill=[MASK*33]"), r"template: \[MASK\*33\] must be at most the length 32"),
    "infill with text too long": ((*SAMPLE, "--infill=x[MASK*32]"), "template: 33 tokens must be at most the length"),
    "infill far too long": ((*SAMPLE, "--infill=[MASK*99999999999999999999]"), "template: .*must be at most"),
    "infill and prompt": ((*SAMPLE, "--infill=a[MASK]", "--prompt=b"), "--infill.*--prompt"),
    "steps and sizes": ((*SAMPLE, "--num_steps=4", "--sizes=16,16"), "--num_steps.*--sizes"),
    "output into a file": ((*SAMPLE, "--num_steps=1", "--output={t}/file/s.jsonl"), "file"),
    "no T": ((*EVALUATE, "--t_steps=0"), "--t_steps=0: must be between 1 and data.length=32"),
    "T too large": ((*EVALUATE, "--t_steps=4,33"), "--t_steps=33: must be between 1 and data.length=32"),
    "inspect: no such step": (("inspect", "--workdir", "{m}", "--step=4"), "step=4: must be one of 3, 6"),
    "changed on resume": (
        ("train", "--config", "debug", "--workdir", "{m}", *TINY, "--config.model.num_layers=3"),
        r"model\.num_layers=3, was 2: the checkpoints in .* were trained otherwise"),
    "other corpus on resume": (
        ("train", "--config", "debug", "--workdir", "{m}", *TINY, "--config.data.length=16"),
        r"data\.length=16, was 32: the checkpoints in .* were trained otherwise"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_MODEL)
def test_wrong_input_to_a_model_is_refused_in_one_line(name, trained, before, tmp_path, capsys):
    arguments, message = WITH_MODEL[name]
    (tmp_path / "file").write_text("not a folder")
    filled = [argument.replace("{m}", str(trained)).replace("{t}", str(tmp_path)) for argument in arguments]
    line = refused(capsys, *filled)
    assert re.search(message, line), line
    assert contents(trained) == before["files"]


def edited(name, content):
    def damage(workdir):
        (workdir / name).write_bytes(content)

    return damage


def with_field(group, field, value):
    def damage(workdir):
        values = json.loads((workdir / "config.json").read_text())
        values[group][field] = value
        (workdir / "config.json").write_text(json.dumps(values))

    return damage


def without(name):
    def damage(workdir):
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def without_arrays(workdir):
    for step in ("3", "6"):
        for path in (workdir / "checkpoints" / step / "ema").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:10])


DAMAGED = {
    "no checkpoints": (without("checkpoints"), "checkpoints: holds no complete checkpoint"),
    "no config": (without("config.json"), r"config\.json"),
    "no tokenizer": (without("data/tokenizer.json"), r"tokenizer\.json"),
    "config is not JSON": (edited("config.json", b'{"seed": 0,'), r"config\.json: not valid JSON at line 1"),
    "config is not UTF-8": (edited("config.json", b"\xff"), r"config\.json: not UTF-8 at byte 0"),
    "config is a list": (edited("config.json", b"[]"), r"config\.json: config"),
    "config is nested too deeply": (
        edited("config.json", b"[" * 10**5 + b"]" * 10**5),
        r"config\.json: not valid JSON: .*recursion",
    ),
    "config has an unknown field": (edited("config.json", b'{"sed": 0}'), r"config\.json: sed: unknown field"),
    "tokenizer is damaged": (edited("data/tokenizer.json", b"{"), r"tokenizer\.json: not valid JSON"),
    "another width": (with_field("model", "embed_dim", 64), r"config\.json: model\.embed_dim=64: .* trained with 32"),
    "another depth": (with_field("model", "num_layers", 3), r"config\.json: model\.num_layers=3: .* trained with 2"),
    "another function of as many parameters": (
        with_field("model", "rope_theta", 10001.0),
        r"model\.rope_theta=10001\.0: .* trained with 10000\.0",
    ),
    "another tokenizer of as many tokens": (
        edited("data/tokenizer.json", b'{"dlm_jax": "characters", "name": "x", "alphabet": "%s"}' % (b"x" * 257)),
        r"tokenizer\.json: not the tokenizer",
    ),
    "a huge number": (with_field("optimizer", "eps", 10**400), r"config\.json: optimizer\.eps: a number of 401 digits"),
    "a place of two lines": (with_field("data", "cache_dir", "a\nb"), r"dlm: a b/tokenizer\.json: No such file"),
    "arrays cut short": (without_arrays, "checkpoints/6: cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("verb", ["sample", "inspect"])
def test_a_damaged_workdir_is_refused_in_one_line(verb, name, trained, tmp_path, capsys):
    damage, message = DAMAGED[name]
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    damage(workdir)
    assert re.search(message, line := refused(capsys, verb, "--workdir", workdir)), line


def test_an_undamaged_copy_is_not_refused(trained, before, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    assert params_sha256(tmp_path / "copy") == before["sha256"]


def test_a_baseline_that_cannot_be_compared_is_refused(trained, before, tmp_path, capsys):
    copy, baseline = tmp_path / "copy", tmp_path / "baseline"
    shutil.copytree(trained, copy)
    # The same network as a causal one, with another tokenizer of as many tokens.
    causal = ("--config.model.attention=causal", "--config.diffusion.objective=autoregressive")
    other = ("--config.data.tokenizer=bpe", "--config.data.vocab_size=257")
    assert quiet_main("train", "--config", "debug", "--workdir", baseline, *TINY, *causal, *other) == 0
    line = refused(capsys, "evaluate", "--workdir", copy, "--baseline", baseline)
    assert re.search(r"--baseline=.*baseline: its tokenizer differs from the model's", line), line
    line = refused(capsys, "evaluate", "--workdir", copy, "--baseline", copy)
    assert re.search(r"--baseline=.*copy: holds no autoregressive model", line), line
    line = refused(capsys, "sample", "--workdir", baseline)
    assert re.search("autoregressive", line), line


# ---------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["sample", "--workdir", "{t}/none"], "no such folder"),
        (["train", "--config", "debug", "--workdir", "{t}/w", "--config.model.num_heads=3"], "must divide"),
    ],
)
def test_a_real_process_ends_with_code_2_and_no_traceback(arguments, message, tmp_path):
    command = [argument.replace("{t}", str(tmp_path)) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "dlm_jax", *command], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("dlm: ") and message in lines[0]


# ---------------------------------------------------------------------------------------------- disks


def no_space(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")


def read_only(*arguments, **options):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "folder")


@pytest.mark.parametrize("where", ["os.replace", "os.fsync", "pathlib.Path.write_text"])
def test_a_full_disk_leaves_the_earlier_file_and_no_temporary_one(where, tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    files.write_json(path, {"earlier": 1})
    owner, name = where.rsplit(".", 1)
    with monkeypatch.context() as patch:
        patch.setattr({"os": os, "pathlib.Path": pathlib.Path}[owner], name, no_space)
        with pytest.raises(OSError, match="No space left"):
            files.write_json(path, {"later": 2})
    assert files.read_json(path) == {"earlier": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]
    files.write_json(path, {"later": 2})
    assert files.read_json(path) == {"later": 2}


@pytest.mark.parametrize(("fault", "reason"), [(no_space, "No space left"), (read_only, "Permission denied")])
def test_samples_that_cannot_be_written_are_one_line_and_cost_nothing(
    fault, reason, trained, before, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "samples.jsonl"
    output.write_text("earlier\n")
    name = {no_space: "replace", read_only: "fsync"}[fault]
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fault)
        line = refused(capsys, "sample", "--workdir", trained, "--num_steps=1", "--num_samples=1", f"--output={output}")
    assert reason in line
    assert output.read_text() == "earlier\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.jsonl"]
    assert contents(trained) == before["files"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    """Injected, because root may write into any folder."""
    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile, "mkstemp", read_only)
        line = refused(capsys, "train", "--config", "debug", "--workdir", tmp_path / "w", *TINY)
    assert "Permission denied" in line and not list(tmp_path.rglob("*.tmp"))


def test_rows_that_cannot_be_written_are_one_line(tmp_path, monkeypatch, capsys):
    real = builtins.open

    def open_(path, mode="r", *arguments, **options):
        if "tokens.npy" in str(path) and "w" in mode:
            no_space()
        return real(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", open_)
        line = refused(capsys, "train", "--config", "debug", "--workdir", tmp_path / "w", *TINY)
    assert "No space left" in line and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_training_into_a_full_disk_is_one_line(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        command = ["train", "--config", "debug", "--workdir", str(disk / "w"), *TINY]
        done = subprocess.run(
            [sys.executable, "-m", "dlm_jax", *command], capture_output=True, text=True, timeout=300, cwd=tmp_path
        )
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("dlm: ")
    assert sum(line.startswith("dlm: ") for line in done.stderr.splitlines()) == 1


def test_after_all_of_this_the_checkpoint_is_unchanged(trained, before):
    assert contents(trained) == before["files"]
    assert params_sha256(trained) == before["sha256"]
    assert before["sha256"] != "" and len(before["sha256"]) == 64
