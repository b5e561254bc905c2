"""Two thousand damaged inputs: each is refused in one line, or changes nothing, or is taken at its word.

A damaged input gives exit code 2 and exactly one line "dlm: ..." at the end of stderr (progress and what was skipped
may stand before it); or it succeeds with the result of the undamaged one; or, for a corpus, every document that was
dropped is counted in the report. No traceback, no uncaught exception, no call of 60 seconds.

Where a damaged file still says something, another result is right: a curve, a plan, an array, a table of terms or a
given tokenizer in which a value became another valid one, and config.json in what may be changed after training. A
success with another result is accepted there only if the file still parses and differs in what decides the result.
"""

import contextlib
import copy
import csv
import dataclasses
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from dlm_jax import config as configs
from dlm_jax.cli import options
from dlm_jax.cli.main import main
from dlm_jax.data import normalize, packing, sources, tokenizers
from dlm_jax.information import InformationCurve
from dlm_jax.training import loop, manifest

LONGEST = 60  # seconds a call
LENGTH = 32
SAMPLE = ("--json", "--num_samples=2", "--prompt=Document 7: the cat")
# What a run may be continued, and a model loaded, with other values of.
FREE = ("sample.", "eval.", "checkpoint.", "mesh.", "log.", "train.num_steps", "train.hang_seconds", "data.cache_dir",
        "data.source")  # fmt: skip
CURVE_DECIDES = ("length", "counts", "raw_entropy_nats", "covariance", "entropy_nats", "tokenizer_sha256",
                 "model_sha256")  # fmt: skip
PLAN_DECIDES = ("length", "sizes", "order")


# ---------------------------------------------------------------------------------------------- a call, and its judge


class Hang(KeyboardInterrupt):
    """A call took too long; what main makes of it is no exit code of ours."""


@dataclass
class Outcome:
    code: int | None
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    found: object = None  # what a function returned, where no verb was called


def watched(function):
    """Returns the Outcome of a function that returns an exit code or something found, as a process would show it."""

    def stop(*_):
        raise Hang(f"no end after {LONGEST} s")

    def show(message, category, *_, **__):
        print(f"{category.__name__}: {message}", file=sys.stderr)

    code, found, begun = None, None, time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    try:
        with stderr_of_the_process() as err, contextlib.redirect_stdout(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for kind in (RuntimeWarning, UserWarning, SyntaxWarning):
                warnings.simplefilter("always", kind)
            warnings.showwarning = show
            try:
                found = function()
                code = found if isinstance(found, int) else 0
            except BaseException:
                traceback.print_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    out.flush()
    return Outcome(code, out.buffer.getvalue().decode(), err.getvalue(), time.monotonic() - begun, found)


@contextlib.contextmanager
def stderr_of_the_process():
    """Yields an io.StringIO that holds, in the end, what Python and the libraries below it wrote to stderr."""
    text, saved = io.StringIO(), os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            options = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
            with open(2, "w", **options) as err, contextlib.redirect_stderr(err):
                yield text
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            text.write(held.read().decode("utf-8"))


def dlm(*arguments):
    return watched(lambda: main([str(argument) for argument in arguments]))


def judge(outcome, reason_against):
    """Returns what is wrong with an Outcome, or "".

    Args:
      outcome: Outcome.
      reason_against: Outcome -> str, what is wrong with the result of a success, or "".
    """
    lines = [line for line in outcome.err.split("\n") if line.strip()]
    told = [line for line in lines if line.startswith("dlm: ")]
    if "Traceback" in outcome.err + outcome.out or outcome.code is None:
        return f"traceback: {lines[-1] if lines else ''}"
    if outcome.seconds > LONGEST:
        return f"took {outcome.seconds:.0f} s"
    if any(re.match(r"\s|\w+Warning:|.* panicked at ", line) for line in lines):
        return f"stderr holds what is no message: {lines}"
    if outcome.code == 2:
        is_one = len(told) == 1 and lines[-1] == told[0] and len(told[0]) > len("dlm: ") + 5
        return "" if is_one else f"exit code 2 without exactly one line: {lines}"
    if outcome.code != 0 or told:
        return f"exit code {outcome.code} with {told}"
    return reason_against(outcome)


# ---------------------------------------------------------------------------------------------- damage


def damaged_bytes(content, chance):
    """Bytes with one to three wounds."""
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        start = chance.randrange(len(content) + 1)
        stop = min(len(content), start + chance.choice((1, 1, 2, 5, 40)))
        kind = chance.choice(("flip", "flip", "delete", "repeat", "insert", "truncate", "swap"))
        if kind == "flip" and start < len(content):
            content[start] ^= 1 << chance.randrange(8)
        elif kind == "delete":
            del content[start:stop]
        elif kind == "repeat":
            content[start:start] = content[start:stop] * chance.choice((1, 2, 50))
        elif kind == "insert":
            content[start:start] = chance.randbytes(chance.choice((1, 2, 8)))
        elif kind == "truncate":
            del content[start:]
        elif kind == "swap" and content:
            other = chance.randrange(len(content))
            here = min(start, len(content) - 1)
            content[here], content[other] = content[other], content[here]
    return bytes(content)


DEEP, LONG = "<deep>", "<long>"
WRITTEN = {f'"{DEEP}"': "[" * 100_000 + "]" * 100_000, f'"{LONG}"': "1" + "0" * 5000}
NUMBERS = (
    0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e-30, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 2**31, 2**32, 2**63,
    -(2**63), 2**64, 10**30, 10**400, -(10**400), LONG,
)  # fmt: skip
TEXTS = (
    "", "a", "0", "\x00", "a\nb\rc\x85d", "\ud800", "\u2028", "x" * 5000, "../..", "/", "/proc/self/mem", "bytes",
    "random", "blocks:3", "none",
)  # fmt: skip
OTHERS = (None, True, False, [], {}, [[]], [0], [1, 2, 3], [None], {"a": 1}, [["a", 1], {"b": [2]}], DEEP)


def _strange(like, chance):
    """Mostly of the same kind, so that it is not refused for its type alone."""
    table = chance.choice((NUMBERS, TEXTS, OTHERS))
    if type(like) in (int, float, str) and chance.random() < 0.6:
        table = TEXTS if type(like) is str else NUMBERS
    return copy.deepcopy(chance.choice(table))


def damaged_json(content, chance):
    """The text of a JSON value with one to three strange places."""
    value = json.loads(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        value = _strange_place(value, chance)
    text = json.dumps(value, indent=chance.choice((None, 1)))
    for name, written in WRITTEN.items():
        text = text.replace(name, written)
    return text.replace("@again", "").encode()


def _strange_place(value, chance):
    if not isinstance(value, (dict, list)) or not value:
        return _strange(value, chance)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = chance.choice(keys)
        if isinstance(place[key], (dict, list)) and place[key] and chance.random() < 0.8:
            place = place[key]
            continue
        break
    kind = chance.choice(("drop", "change", "change", "change", "scale", "repeat", "add"))
    strange = _strange(place[key], chance)
    if kind == "drop":
        del place[key]
    elif kind == "scale" and type(place[key]) in (int, float) and abs(place[key]) < 1e300:
        place[key] = place[key] * chance.choice((-1, 2, 1000, 1e-3, 1e300)) + chance.choice((0, 1, -1))
    elif kind == "repeat" and isinstance(place, list):
        place.insert(key, copy.deepcopy(place[key]))
    elif kind == "repeat":
        place[f"{key}@again"] = strange
    elif kind == "add" and isinstance(place, list):
        place.insert(key, strange)
    elif kind == "add":
        place[chance.choice(("", "x", "format", "seed", "length", "\ud800", "sha256"))] = strange
    else:
        place[key] = strange
    return value


def damaged(content, chance, as_json):
    """Another content of a file."""
    for _ in range(100):
        made = (damaged_json if as_json and chance.random() < 0.6 else damaged_bytes)(content, chance)
        if made != content:
            return made
    raise AssertionError("nothing was damaged")


@contextlib.contextmanager
def holding(path, content):
    """A file with another content, for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def parsed(content):
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def differ(content, original, names):
    """Whether a damaged JSON object still says something else in the fields that decide a result."""
    now, before = parsed(content), parsed(original)
    return isinstance(now, dict) and any(repr(now.get(name)) != repr(before[name]) for name in names)


# ---------------------------------------------------------------------------------------------- the undamaged


ANIMALS = ("cat", "dog", "bird", "fox", "käuzchen", "𝒹𝓇𝒶𝑔𝑜𝓃")
DOCUMENTS = [
    f"Document {i}: the {ANIMALS[i % 6]} and item {i * i % 97} make\na small corpus; {'many ' * (i % 5)}words."
    for i in range(60)
]
TERMS = 'variant,canonical\ncat,feline\ndog,canine\n"small, corpus",collection\nitem,entry\nbird,\n'


@dataclass
class World:
    """A workdir of a tiny model, the files made from it, and the results of all of them undamaged."""

    folder: pathlib.Path
    train: tuple

    @property
    def workdir(self):
        return self.folder / "model"

    def path(self, name):
        return self.folder / name

    def run(self, verb, workdir=None):
        workdir = workdir or self.workdir
        extra = {
            "inspect": ("--json",),
            "sample": (*SAMPLE, "--num_steps=2", f"--output={self.path('samples.jsonl')}"),
            "train": self.train,
        }[verb]
        return dlm(verb, "--workdir", workdir, *extra)

    def sample_with_plan(self):
        output = self.path("samples.jsonl")
        return dlm("sample", "--workdir", self.workdir, *SAMPLE, "--plan", self.path("plan.json"), "--output", output)

    def plan_of_curve(self):
        return dlm("plan", "--json", "--curve", self.path("curve.json"), "--output", self.path("planned.json"))

    def measure(self, *arguments):
        output = self.path("measured.json")
        return dlm("measure", "--json", f"--length={LENGTH}", "--output", output, *arguments)


def result(outcome):
    assert outcome.code == 0, outcome.err
    return outcome.out


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "texts.txt").write_text("\n\n".join(DOCUMENTS))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    (folder / "terms.csv").write_text(TERMS)
    words = sorted({word for text in DOCUMENTS for word in re.findall(r"\w+|[^\w\s]+", text)})
    model = {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(["[UNK]", *words])}, "unk_token": "[UNK]"}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    own = {"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}, "normalizer": normalizer}
    (folder / "tokenizer.json").write_text(json.dumps(own))
    rows = np.random.default_rng(0).integers(0, 257, (40, LENGTH))
    np.save(folder / "rows.npy", rows.astype(np.uint16))
    np.save(folder / "flat.npy", rows.ravel()[: 20 * LENGTH + 5].astype(np.int32))
    train = (
        "--config", "debug", f"--config.data.source={folder / 'texts.txt'}", "--config.data.tokenizer=bpe",
        "--config.data.vocab_size=300", "--config.train.num_steps=4", "--config.checkpoint.every_steps=2",
        "--config.optimizer.warmup_steps=1",
    )  # fmt: skip
    made = World(folder, train)
    result(made.run("train"))
    losses = 5 / (1 + np.arange(8)) + np.random.default_rng(1).normal(size=(24, 8)) * 0.1
    curve = InformationCurve.measured(
        LENGTH, [0, 1, 2, 4, 8, 16, 24, 31], losses, np.arange(24) // 2, predictive_entropies=losses + 0.01,
        characters=40.0, tokenizer_sha256=tokenizers.sha256(tokenizers.load(made.workdir / "data/tokenizer.json")),
    )  # fmt: skip
    curve.save(folder / "curve.json")
    result(made.plan_of_curve())
    shutil.copy(folder / "planned.json", folder / "plan.json")
    return made


@pytest.fixture(scope="module")
def undamaged(world):
    older = world.path("older")
    shutil.copytree(world.workdir, older)
    shutil.rmtree(older / "checkpoints" / "4")
    return {
        "inspect": [json.loads(result(world.run("inspect", workdir))) for workdir in (world.workdir, older)],
        "sample": [result(world.run("sample", workdir)) for workdir in (world.workdir, older)],
        "sample --plan": result(world.sample_with_plan()),
        "plan --curve": result(world.plan_of_curve()),
        "tokenizer": result(
            world.measure("--corpus", world.path("texts.txt"), "--tokenizer", world.path("tokenizer.json"))
        ),
        "files": kept_files(world.workdir),
    }


def kept_files(workdir):
    paths = [path for path in sorted(workdir.rglob("*")) if path.is_file() and path.name not in (".lock",)]
    return {path.relative_to(workdir).as_posix(): path.read_bytes() for path in paths}


# ---------------------------------------------------------------------------------------------- what is damaged
# Each: (world, undamaged, chance) -> (Outcome, what is wrong with the result where it succeeded).


def config_json(world, undamaged, chance):
    path = world.workdir / "config.json"
    content = damaged(path.read_bytes(), chance, as_json=True)
    original = parsed(path.read_bytes())
    verb = chance.choice(("inspect", "inspect", "sample"))
    with holding(path, content):
        outcome = world.run(verb)

    def against(outcome):
        now = configs.to_dict(configs.from_dict(parsed(content)))
        changed = configs.difference(configs.from_dict(original), configs.from_dict(now))
        if not all(name.startswith(FREE) for name in changed):
            return f"a model of another configuration: {changed}"
        if verb == "sample":
            is_free = any(name.startswith("sample.") for name in changed)
            return "" if is_free or outcome.out == undamaged["sample"][0] else "other samples"
        found, wanted = json.loads(outcome.out), undamaged["inspect"][0]
        is_told = found.pop("config") == json.loads(json.dumps(now))
        is_same = found == {name: value for name, value in wanted.items() if name != "config"}
        return "" if is_told and is_same else "inspect says something else than the file and the checkpoint"

    return outcome, against


def checkpoint_json(world, undamaged, chance):
    names = ["manifest.json", "_CHECKPOINT_METADATA", "meta/metadata"]
    names += [f"{item}/{name}" for item in ("ema", "params") for name in ("_METADATA", "_sharding", "manifest.ocdbt")]
    path = world.workdir / "checkpoints/4" / chance.choice([*names, *names[:3]])
    return _loaded(world, undamaged, path, chance)


def tokenizer_json(world, undamaged, chance):
    return _loaded(world, undamaged, world.workdir / "data/tokenizer.json", chance)


def _loaded(world, undamaged, path, chance):
    content = damaged(path.read_bytes(), chance, as_json=parsed(path.read_bytes()) is not None)
    verb = chance.choice(("inspect", "sample"))
    with holding(path, content):
        outcome = world.run(verb)

    def against(outcome):
        newest, older = undamaged[verb]
        found = outcome.out
        if verb == "inspect":  # with the digest of all parameters of the step it names
            found, newest, older = (
                {**one, "steps": None} for one in (json.loads(outcome.out), undamaged[verb][0], undamaged[verb][1])
            )
        if found == newest:
            return ""
        if found == older:
            return "" if "cannot be read" in outcome.err else "an older step without a word"
        return "a result of no step"

    return outcome, against


def run_on_damaged(path, chance, run):
    """(what was in a JSON file, what was put there instead, the Outcome of running on that)."""
    original = path.read_bytes()
    content = damaged(original, chance, as_json=True)
    with holding(path, content):
        return original, content, run()


def given_tokenizer(world, undamaged, chance):
    """A tokenizer.json of the user's own."""
    path = world.path("tokenizer.json")
    original, content, outcome = run_on_damaged(
        path, chance, lambda: world.measure("--corpus", world.path("texts.txt"), "--tokenizer", path)
    )

    def against(outcome):
        is_same = outcome.out == undamaged["tokenizer"] or parsed(content) != parsed(original)
        return "" if is_same else "other counts with the same tokenizer"

    return outcome, against


def data_manifest(world, undamaged, chance):
    """The same command again, which resumes, on a copy; it must end with the same files."""
    path = pathlib.Path("data/manifest.json")
    content = damaged((world.workdir / path).read_bytes(), chance, as_json=True)
    verb = chance.choice(("inspect", "sample", "train", "train"))
    if verb != "train":
        with holding(world.workdir / path, content):
            outcome = world.run(verb)
        return outcome, lambda outcome: "" if _is_newest(verb, outcome, undamaged) else "another result"
    workdir = world.path("copy")
    shutil.copytree(world.workdir, workdir)
    try:
        (workdir / path).write_bytes(content)
        outcome = world.run("train", workdir)
        there = kept_files(workdir)
    finally:
        shutil.rmtree(workdir)
    is_same_json = parsed(there[str(path)]) == parsed(undamaged["files"][str(path)])
    there |= {str(path): undamaged["files"][str(path)]} if is_same_json else {}
    changed = sorted(name for name, content in undamaged["files"].items() if there.get(name) != content)
    return outcome, lambda outcome: f"changed {changed}" if changed else ""


def _is_newest(verb, outcome, undamaged):
    found = json.loads(outcome.out) if verb == "inspect" else outcome.out
    return found == undamaged[verb][0]


def curve_json(world, undamaged, chance):
    path = world.path("curve.json")
    original, content, outcome = run_on_damaged(path, chance, world.plan_of_curve)

    def against(outcome):
        if outcome.out == undamaged["plan --curve"] or differ(content, original, CURVE_DECIDES):
            return "" if all(np.isfinite(json.loads(outcome.out)["sizes"])) else "no sizes"
        return "another plan of the same curve"

    return outcome, against


def plan_json(world, undamaged, chance):
    path = world.path("plan.json")
    original, content, outcome = run_on_damaged(path, chance, world.sample_with_plan)

    def against(outcome):
        is_same = outcome.out == undamaged["sample --plan"]
        return "" if is_same or differ(content, original, PLAN_DECIDES) else "other samples of the same plan"

    return outcome, against


def overrides(world, undamaged, chance):
    """A value on the command line. Valid ones end where training would begin."""
    known = [
        f"{group}.{field}" for group, fields in configs.to_dict(configs.RunConfig()).items()
        if isinstance(fields, dict) for field in fields
    ]  # fmt: skip
    unknown = ["seed", "", "model", "modle.num_layers", "train.x", "a.b.c", "data.split.x"]
    name = chance.choice(known if chance.random() < 0.8 else unknown)
    if chance.random() < 0.1:
        name = damaged_bytes(name.encode(), chance).decode("utf-8", errors="replace")
    value = chance.choice(VALUES) if chance.random() < 0.8 else str(chance.uniform(-2, 2))
    flag = chance.choice(("--config.", "--config.", "--config.", "-config.")) + name
    tail = [f"{flag}={value}"] if chance.random() < 0.9 else [flag, value]
    seen = []

    def prepare(config, workdir, **_):
        configs.check_devices(config, jax.device_count())
        seen.append(config)
        raise ValueError(f"{workdir}: nothing is trained here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "prepare", prepare)
        outcome = dlm("train", "--config", "debug", "--workdir", world.path("none"), *tail)
    changed = configs.difference(options.load_config_file("debug"), seen[0]) if seen else {}
    if not all(f"{field}.".startswith(f"{name}.") for field in changed):
        return dataclasses.replace(outcome, code=0, err=""), lambda outcome: f"{tail} changed {changed}"
    return outcome, lambda outcome: f"{tail} was trained"


def lines_of(content):
    """The lines of a corpus file with their ends, decoded; None: not UTF-8."""
    found = []
    for line in re.findall(rb"[^\n]*\n|[^\n]+", content.removeprefix(b"\xef\xbb\xbf")):
        try:
            found.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            found.append(None)
    return found


def num_skipped(err):
    found = [line for line in err.splitlines() if line.startswith("skipped ")]
    more = [int(match[1]) for line in found if (match := re.match(r"skipped (\d+) more; ", line))]
    return len(found) - len(more) + sum(more)


def _text_corpus(world, path, content, wanted):
    """Measures a corpus; `wanted` is (documents that must be kept, number of problems)."""
    with holding(path, content):
        outcome = world.measure("--corpus", path)
        report = sources.Report()
        data = configs.DataConfig(source=str(path), length=LENGTH)
        try:
            kept = packing.all_documents(data, world.path("cache"), report)
        except ValueError:
            kept = None

    def against(outcome):
        documents, dropped = wanted
        if kept != documents:
            return f"{len(kept or [])} documents were kept, not the {len(documents)} that can be read"
        if len(report.problems) != dropped or num_skipped(outcome.err) != dropped:
            return f"{dropped} were dropped; the report counts {report.problems}, {outcome.err}"
        (found,) = json.loads(outcome.out)["model_free"]
        return "" if found["num_documents"] == len(documents) else "measured on other documents"

    return outcome, against


def corpus_txt(world, undamaged, chance):
    path = world.path("texts.txt")
    content = damaged(path.read_bytes(), chance, as_json=False)
    lines = lines_of(content)
    text = "".join(line.replace("\r\n", "\n") for line in lines if line is not None)
    return _text_corpus(world, path, content, ([d for d in text.split("\n\n") if d.strip()], lines.count(None)))


def corpus_jsonl(world, undamaged, chance):
    path = world.path("texts.jsonl")
    content = path.read_bytes()
    if chance.random() < 0.5:
        content = damaged(content, chance, as_json=False)
    else:
        lines = content.split(b"\n")
        for index in chance.sample(range(len(lines) - 1), chance.choice((1, 1, 3, 20))):
            lines[index] = damaged(lines[index], chance, as_json=True).replace(b"\n", b" ")
        content = b"\n".join(lines)
    lines = lines_of(content)
    texts = [(parsed(line.encode()) if line else None) for line in lines]
    texts = [record.get("text") if isinstance(record, dict) else None for record in texts]
    texts = [t for t in texts if isinstance(t, str) and t.strip() and not re.search("[\ud800-\udfff]", t)]
    held = [line for line in lines if line is None or line.strip()]
    return _text_corpus(world, path, content, (texts, len(held) - len(texts)))


def corpus_npy(world, undamaged, chance):
    path = world.path(chance.choice(("rows.npy", "flat.npy")))
    content = path.read_bytes()
    header, elements = content[:128], content[128:]
    if chance.random() < 0.5:
        content = damaged(header, chance, as_json=False) + elements
    elif chance.random() < 0.5:
        content = damaged(content, chance, as_json=False)
    else:
        content = _other_tokens(path, chance)
    cache, said = world.path("array"), []

    def prepare():
        data = configs.DataConfig(source=str(path), length=LENGTH)
        try:
            return packing.prepare(data, cache, quiet=True, say=said.append)
        except (ValueError, OSError) as error:  # as main does
            print("dlm:", " ".join(str(error).split()), file=sys.stderr)
            return 2

    with holding(path, content):
        outcome = watched(prepare)
    if outcome.code == 0:
        tokens = np.load(io.BytesIO(content))
        kept = np.concatenate([outcome.found.train.tokens, outcome.found.validation.tokens])
    shutil.rmtree(cache, ignore_errors=True)

    def against(outcome):
        rows = tokens.ravel()[: tokens.size // LENGTH * LENGTH].reshape(-1, LENGTH)
        if sorted(map(tuple, rows.tolist())) != sorted(map(tuple, kept.tolist())):
            return "other rows than the file's"
        told = re.search(r"(\d+) tokens at the end", " ".join(said))
        dropped = int(told[1]) if told else 0
        return "" if dropped == tokens.size - rows.size else f"{tokens.size - rows.size} tokens were dropped: {said}"

    return outcome, against


def _other_tokens(path, chance):
    tokens = np.load(path)
    for _ in range(chance.choice((0, 1, 3))):
        tokens.flat[chance.randrange(tokens.size)] = chance.choice((0, 1, 255, 256, 256, 257))
    tokens = tokens[chance.randrange(3) : len(tokens) - chance.randrange(3)]
    held = io.BytesIO()
    np.save(held, chance.choice((tokens, tokens.astype(">i8"), np.asfortranarray(tokens))))
    return held.getvalue()


def terminology_csv(world, undamaged, chance):
    path = world.path("terms.csv")
    content = damaged(path.read_bytes(), chance, as_json=False)
    with holding(path, content):
        outcome = world.measure("--corpus", world.path("texts.txt"), "--terminology", path)
        clean = normalize.make_normalizer((), str(path)) if outcome.code == 0 else None

    def against(outcome):
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
        wrong = [
            row for row in rows if row and [cell.strip() for cell in row] != ["variant", "canonical"]
            and clean(row[0].strip()) != row[1].strip()
        ]  # fmt: skip
        return f"{wrong} are not replaced" if wrong else ""

    return outcome, against


VALUES = (
    "", "1", "0", "-1", "2", "3", "1.5", "1e3", "1e999", "nan", "-inf", "True", "None", "x", "(1,)", "('nfkc',)", "()",
    "[1]", "((0.5,0.5),(1,0))", "((1e400,),)", "{}", "'", '"', "(", "\x00", "\n", "é", "1" + "0" * 400, "@", "1_0",
    "1" + "0" * 5000, "[" * 500, "-" + "9" * 19, "9" * 19, "threshold:0.9", "random", "full", "0x10", "lambda: 1",
    "__import__('os')", "1,2", "(1,2", "99999999", "1e-320", "((nan,),)", "(-1,)", "(True,)", "0.3", "1e308",
    "((1" + "0" * 400 + ",0.5),(0.5,0.5))",
)  # fmt: skip
# target -> how many mutations the slow run makes of it; 2,000 in all
TARGETS = {
    config_json: 400,
    overrides: 250,
    checkpoint_json: 250,
    tokenizer_json: 150,
    given_tokenizer: 100,
    data_manifest: 100,
    curve_json: 200,
    plan_json: 150,
    corpus_txt: 100,
    corpus_jsonl: 150,
    corpus_npy: 100,
    terminology_csv: 50,
}


def survive(target, world, undamaged, seeds):
    wrong = []
    for seed in seeds:
        outcome, against = target(world, undamaged, random.Random(f"{target.__name__} {seed}"))
        reason = judge(outcome, against)
        if reason:
            wrong.append(f"{target.__name__} {seed}: {reason[:600]}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(seeds)}", *wrong])


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_damaged_inputs_are_refused_in_one_line_or_change_nothing(target, world, undamaged):
    survive(target, world, undamaged, range(10))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_two_thousand_damaged_inputs(target, world, undamaged):
    assert sum(TARGETS.values()) == 2000
    survive(target, world, undamaged, range(1000, 1000 + TARGETS[target]))


# ---------------------------------------------------------------------------------------------- variations


ONE_LINE = Outcome(2, err="reading x: 0s\nskipped x:1: not JSON\ndlm: x: must be y\n")
NOT_ACCEPTED = {
    "traceback": (Outcome(2, err='Traceback (most recent call last):\n  File "x"\ndlm: x: must be y\n'), "traceback"),
    "exception": (watched(lambda: 1 / 0), "traceback: ZeroDivisionError"),
    "no code": (Outcome(None), "traceback"),
    "two lines": (Outcome(2, err="dlm: x: must be y\ndlm: x: must be z\n"), "without exactly one line"),
    "no line": (Outcome(2, err="reading x: 0s\n"), "without exactly one line"),
    "a line that says nothing": (Outcome(2, err="dlm: 'a'\n"), "without exactly one line"),
    "something after it": (Outcome(2, err="dlm: x: must be y\nsaving: 0s\n"), "without exactly one line"),
    "code 1": (Outcome(1, err="dlm: x: must be y\n"), "exit code 1"),
    "refused and done": (Outcome(0, err="dlm: x: must be y\n"), "exit code 0 with"),
    "warning": (watched(lambda: warnings.warn("overflow", RuntimeWarning, stacklevel=1) or 0), "no message"),
    "panic": (watched(lambda: os.write(2, b"thread '<unnamed>' panicked at x\n") and 0), "no message"),
    "hang": (Outcome(2, err=ONE_LINE.err, seconds=61), "took 61 s"),
    "another result": (Outcome(0), "other samples"),
}


def test_the_judge_accepts_one_line_and_a_success():
    assert judge(ONE_LINE, lambda outcome: "other samples") == ""
    assert judge(watched(lambda: print("x") or 0), lambda outcome: "" if outcome.out == "x\n" else "no x") == ""


@pytest.mark.parametrize("name", NOT_ACCEPTED)
def test_the_judge_does_not_accept(name):
    outcome, reason = NOT_ACCEPTED[name]
    assert reason in judge(outcome, lambda outcome: "other samples")


def test_a_package_that_trusts_a_damaged_checkpoint_is_found(world, undamaged, monkeypatch):
    """Not every bit of an archive is read; of eight flipped ones some are."""
    monkeypatch.setattr(manifest, "verify", lambda folder, items=None: {})
    monkeypatch.setattr(manifest, "compare", lambda trees, fingerprints: None)
    path = max((world.workdir / "checkpoints/4/params").rglob("d/*"), key=lambda path: path.stat().st_size)
    reasons = []
    for place in range(8):
        content = bytearray(path.read_bytes())
        content[(2 * place + 1) * len(content) // 16] ^= 1
        with holding(path, bytes(content)):
            outcome = world.run("inspect")
        reasons.append(judge(outcome, lambda outcome: "" if _is_newest("inspect", outcome, undamaged) else "changed"))
    assert any(reasons)


def test_a_package_that_trips_over_its_config_is_found(world, undamaged, monkeypatch):
    monkeypatch.setattr(configs, "from_dict", lambda values: values["no such group"])
    with pytest.raises(AssertionError, match="traceback: KeyError: 'no such group'"):
        survive(config_json, world, undamaged, range(30))
