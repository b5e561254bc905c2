"""dlm measure, plan and sample --plan: what they write and go on from, and wrong input refused in one line."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import types

import jax
import numpy as np
import pytest

import dlm_jax
from dlm_jax import config as configs
from dlm_jax.cli.main import main
from dlm_jax.data import tokenizers
from dlm_jax.information import InformationCurve, Plan, error
from dlm_jax.information import distributions as d
from dlm_jax.training import checkpoint, guard, loop
from dlm_jax.training.state import TrainState

LENGTH = 8
TEXTS = [f"Text {i}、ＡＢＣ  of colour {i * 37}。" for i in range(40)]
ROWS = ("--num_rows=24",)
CURVE_KEYS = {
    "length", "counts", "raw_entropy_nats", "covariance", "entropy_nats", "stderr_nats", "num_documents",
    "tokenizer_sha256", "model_sha256", "provenance",
}  # fmt: skip
PLAN_KEYS = {"length", "num_steps", "sizes", "order", "schedule", "expected_kl_nats", "nll_nats", "stderr_nats"}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Every program here runs a few times on a tiny model: optimising it takes longer than running it."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("measure_plan")


@pytest.fixture(scope="module")
def source(place):
    path = place / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS))
    return path


def make_model(workdir, source):
    """A workdir as training leaves it, with weights that nobody trained: nothing is compiled."""
    config = configs.from_dict({
        "data": {"source": str(source), "length": LENGTH, "validation_fraction": 0.5},
        "model": {"num_layers": 1, "embed_dim": 32, "num_heads": 2},
        "train": {"num_steps": 5, "batch_size": 16},
        "optimizer": {"warmup_steps": 1},
        "eval": {"batch_size": 16, "t_steps": (4,)},
    })  # fmt: skip
    run = loop.prepare(config, workdir, say=lambda line: None, quiet=True)
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: noise.normal(0, 0.1, leaf.shape).astype(leaf.dtype), run.abstract.params)
    saves = checkpoint.Checkpoints(workdir, 1)
    saves.save(TrainState(np.int32(5), params, params, {"count": np.zeros(1, np.int32)}, guard.fresh()), {})
    saves.wait()
    saves.close()
    return workdir


@pytest.fixture(scope="module")
def model(place, source):
    return make_model(place / "model", source)


@pytest.fixture(scope="module")
def generator(model):
    return dlm_jax.load(model)


def run(*arguments):
    """Runs a command line that must succeed: (stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    assert code == 0, err.getvalue()
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def done(model):
    """measure, plan and sample, once, in this order: what they printed."""
    return types.SimpleNamespace(
        measure=run("measure", "--workdir", model, *ROWS),
        plan=run("plan", "--workdir", model, "--num_steps=4", "--orders=spaced", "--noreport", *ROWS),
        sample=run("sample", "--workdir", model, "--plan", model / "plan.json", "--num_samples=3", "--json"),
    )


@pytest.fixture(scope="module")
def before(model, done):
    return contents(model)


def contents(workdir):
    """All files but the measurements that a plan keeps, in whatever order they were asked for."""
    files = [path for path in sorted(workdir.rglob("*")) if path.is_file() and path.parent.name != "measured"]
    return {str(path): path.read_bytes() for path in files}


def refused(capsys, *arguments):
    """Runs a command line that must be refused; returns its one line."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert code == 2, captured.err
    assert captured.out == "" and "Traceback" not in captured.err
    assert lines[-1].startswith("dlm: ") and sum(line.startswith("dlm: ") for line in lines) == 1
    # Before the error only progress and what was found so far, "label: ...".
    assert all(": " in line for line in lines[:-1]), lines
    return lines[-1]


# ---------------------------------------------------------------------------------------------- what they do


def test_measure_writes_the_curve_that_it_prints(done, model, generator):
    written = json.loads((model / "curve.json").read_text())
    assert json.loads(done.measure[0]) == written
    assert written.keys() >= CURVE_KEYS
    assert written["length"] == LENGTH and written["counts"] == list(range(LENGTH))
    assert written["num_rows"] == 24 and 1 < written["num_documents"] <= 24
    assert written["tokenizer_sha256"] == tokenizers.sha256(generator.tokenizer)
    assert written["model_sha256"] == generator.sha256
    assert written["provenance"]["corpus"] == "validation rows" and written["provenance"]["seed"] == 0
    curve = InformationCurve.load(model / "curve.json")
    curve.check_fits(LENGTH, written["tokenizer_sha256"], written["model_sha256"])
    assert np.shape(curve.covariance) == (LENGTH, LENGTH) and (curve.stderr > 0).all()
    assert written["pairs"]["length"] == LENGTH and written["pairs"]["vocab_size"] == 257
    for words in ("total correlation", "calibration: ", "usually a lower estimate", "written to"):
        assert words in done.measure[1] and words not in done.measure[0]
    with pytest.raises(ValueError, match="another model"):  # variation: it does not fit others
        curve.check_fits(LENGTH, written["tokenizer_sha256"], "c" * 64)


def test_plan_writes_the_plan_that_it_prints(done, model):
    written = json.loads((model / "plan.json").read_text())
    assert json.loads(done.plan[0]) == written
    assert written.keys() >= PLAN_KEYS
    plan = Plan.load(model / "plan.json")
    assert plan.length == sum(plan.sizes) == LENGTH and plan.num_steps == len(plan.sizes) == 4
    assert plan.order in ("random", "spaced") and plan.question == "the best 4 steps" and plan.seconds > 0
    assert "answer   4 steps" in done.plan[1] and "latency  " in done.plan[1]
    assert not (model / "report").exists() and "report" not in plan.details
    assert {row["num_steps"] for row in plan.details["planned_minus_fixed"]} >= {1, 2, 4, 8}


def test_sample_uses_the_sizes_and_as_many_calls_as_the_plan_says(done, model):
    plan = Plan.load(model / "plan.json")
    records = [json.loads(line) for line in done.sample[0].splitlines()]
    assert len(records) == 3 and done.sample[1] == ""
    for record in records:
        assert record["nfe"] == plan.num_steps == 4
        assert np.bincount(record["reveal_step"]).tolist() == plan.sizes.tolist()
    assert np.bincount(records[0]["reveal_step"]).tolist() != [1] * LENGTH


def test_a_plan_of_a_fixed_order_is_followed_position_by_position(done, model, tmp_path):
    plan = Plan.load(model / "plan.json")  # its sizes: the program is there already
    order = [7, 0, 3, 1, 6, 2, 5, 4]
    dataclasses.replace(plan, order=order).save(tmp_path / "plan.json")
    out, _ = run("sample", "--workdir", model, "--plan", tmp_path / "plan.json", "--num_samples=2", "--json",
                 "--output", tmp_path / "s.jsonl")  # fmt: skip
    turns = np.repeat(np.arange(4), plan.sizes)
    for record in map(json.loads, out.splitlines()):
        assert np.asarray(record["reveal_step"])[order].tolist() == turns.tolist()
        assert np.asarray(record["reveal_step"])[order[::-1]].tolist() != turns.tolist()


def test_a_plan_is_made_of_a_curve_alone_without_a_workdir(done, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, log = run("plan", "--curve", model / "curve.json", "--num_steps=4")
    plan, curve = Plan.load("plan.json"), InformationCurve.load(model / "curve.json")
    assert json.loads(out) == json.loads((tmp_path / "plan.json").read_text()) and "asked    the best 4" in log
    assert plan.order == "random" and plan.num_steps == 4 and plan.seconds is None
    assert (plan.tokenizer_sha256, plan.model_sha256) == (curve.tokenizer_sha256, curve.model_sha256)
    nll, stderr = error.negative_log_likelihood(curve, plan.sizes)
    assert [plan.nll_nats, plan.stderr_nats] == pytest.approx([nll, stderr])
    # Variation: an exact curve makes another plan, which fits any tokenizer.
    d.Parity(LENGTH).curve().save("parity.json")
    out, log = run("plan", "--curve", "parity.json", "--max_kl=0", "--output=p.json", "--json")
    assert Plan.load("p.json").sizes.tolist() == [7, 1] and json.loads(out)["tokenizer_sha256"] == "" and log == ""


def measured(model, *arguments):
    return json.loads(run("measure", "--workdir", model, *ROWS, "--json", *arguments)[0])


def with_parts(path, change):
    """Rewrites a .rows.npz: change(list of batches, each a list of arrays) -> the batches it is to hold."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    width = int(arrays["width"])
    flat = [arrays.pop(f"part{i}") for i in range(int(arrays["count"]) * width)]
    batches = change([flat[i : i + width] for i in range(0, len(flat), width)])
    arrays |= {f"part{i}": part for i, part in enumerate(part for batch in batches for part in batch)}
    np.savez(path, **{**arrays, "count": len(batches)})


def test_a_measurement_that_is_complete_is_not_made_again(done, model, tmp_path):
    kept = tmp_path / "curve.rows.npz"
    shutil.copy(model / "curve.rows.npz", kept)
    stamp = kept.stat().st_mtime_ns
    first = json.loads((model / "curve.json").read_text())
    again = measured(model, "--output", tmp_path / "curve.json")
    assert again["raw_entropy_nats"] == first["raw_entropy_nats"] and kept.stat().st_mtime_ns == stamp
    with_parts(kept, lambda batches: [[2 * part for part in batch] for batch in batches])  # poisoned, but valid
    again = measured(model, "--output", tmp_path / "curve.json")
    np.testing.assert_allclose(again["raw_entropy_nats"], 2 * np.asarray(first["raw_entropy_nats"]), rtol=1e-12)


def test_an_interrupted_measurement_goes_on_where_it_stopped(done, model, tmp_path):
    kept = tmp_path / "curve.rows.npz"
    first = np.asarray(json.loads((model / "curve.json").read_text())["raw_entropy_nats"])
    for factor in (1, 2):
        shutil.copy(model / "curve.rows.npz", kept)
        with_parts(kept, lambda batches: [[factor * part for part in batches[0]]])  # noqa: B023, called at once
        again = np.asarray(measured(model, "--output", tmp_path / "curve.json")["raw_entropy_nats"])
        with np.load(model / "curve.rows.npz") as whole:
            rows = [whole[f"part{i}"][:, 0].sum(axis=1) / LENGTH for i in (0, int(whole["width"]))]
        assert [len(part) for part in rows] == [16, 8]
        # At 0 revealed tokens a row's loss is its mean cost: the first batch as kept, the second measured.
        np.testing.assert_allclose(again[0], np.concatenate([factor * rows[0], rows[1]]).mean(), rtol=1e-6)
        assert np.allclose(again, first, rtol=1e-6) == (factor == 1)


@pytest.mark.parametrize("change", ["seed", "rows", "damage", "empty", "foreign"])
def test_a_measurement_of_something_else_or_damaged_is_not_used(change, done, model, tmp_path):
    kept = tmp_path / "curve.rows.npz"
    shutil.copy(model / "curve.rows.npz", kept)
    with_parts(kept, lambda batches: [[100 * part for part in batch] for batch in batches])
    arguments = {"seed": ["--seed=1"], "rows": ["--num_rows=23"]}.get(change, [])
    if change == "damage":
        kept.write_bytes(kept.read_bytes()[:-300])
    elif change == "empty":
        kept.write_bytes(b"")
    elif change == "foreign":
        np.savez(kept, something=np.zeros(3))
    again = measured(model, "--output", tmp_path / "curve.json", *arguments)
    first = json.loads((model / "curve.json").read_text())
    np.testing.assert_allclose(again["raw_entropy_nats"], first["raw_entropy_nats"], rtol=0.1)
    is_same = np.allclose(again["raw_entropy_nats"], first["raw_entropy_nats"], rtol=1e-6)
    assert is_same == (change in ("damage", "empty", "foreign"))


def test_measure_compares_a_corpus_before_and_after_cleaning(done, model, source, tmp_path):
    (tmp_path / "terms.csv").write_text("colour,color\n")
    payload = measured(model, "--corpus", source, "--normalize=nfkc,whitespace", "--terminology",
                       tmp_path / "terms.csv", "--output", tmp_path / "c.json")  # fmt: skip
    assert payload == json.loads((tmp_path / "c.json").read_text())
    curves = [InformationCurve.load(tmp_path / f"c-{n}.json") for n in (1, 2)]
    found = payload["quantities"]["mutual_information"]["per_sequence"]
    assert [found["before"], found["after"]] == pytest.approx([curve.mutual_information for curve in curves])
    assert curves[0].provenance["normalize"] == [] and curves[1].provenance["normalize"] == ["nfkc", "whitespace"]
    assert {row["num_steps"] for row in payload["schedules"]} == {4, 8} and payload["warnings"]
    assert curves[0].raw_entropy.tolist() != curves[1].raw_entropy.tolist()


def test_measure_counts_pairs_where_there_is_no_model(source, tmp_path):
    payload = json.loads(run("measure", "--corpus", source, "--length=8", "--output", tmp_path / "p.json", "--json")[0])
    (found,) = payload["model_free"]
    assert found["num_documents"] == 40 and found["corpus"] == str(source) and found["length"] == 8
    assert 0 < found["one_revealed_entropy_nats"][0] < found["unigram_entropy_nats"][0] < np.log(257)
    both = json.loads(run("measure", "--corpus", source, "--normalize=nfkc", "--length=8", "--output",
                          tmp_path / "p.json", "--json")[0])["model_free"]  # fmt: skip
    assert both[0] == found and both[1]["normalize"] == ["nfkc"] and both[1]["characters"] == found["characters"]
    assert both[1]["unigram_entropy_nats"] != found["unigram_entropy_nats"]


# ---------------------------------------------------------------------------------------------- what they refuse


def damaged_files(model, folder):
    """Curves, plans, corpora and tables that cannot be used, and some that can."""
    curve, plan = (json.loads((model / f"{name}.json").read_text()) for name in ("curve", "plan"))
    made = {
        "cut.json": json.dumps(plan)[:50],
        "list.json": "[1, 2]",
        "longer-curve.json": d.Permutation(9).curve().to_dict(),
        "long-curve.json": d.Permutation(300).curve().to_dict(),
        "tokenizer-curve.json": {**curve, "tokenizer_sha256": "c" * 64},
        "model-curve.json": {**curve, "model_sha256": "c" * 64},
        "rising-curve.json": {**curve, "entropy_nats": curve["entropy_nats"][::-1]},
        "short-curve.json": {**curve, "raw_entropy_nats": curve["raw_entropy_nats"][:-1]},
        "longer-plan.json": {**plan, "length": 9, "sizes": [*plan["sizes"][:-1], plan["sizes"][-1] + 1]},
        "tokenizer-plan.json": {**plan, "tokenizer_sha256": "c" * 64},
        "sum-plan.json": {**plan, "sizes": [2, 2, 2, 3]},
        "steps-plan.json": {**plan, "num_steps": 5},
        "order-plan.json": {**plan, "order": "spiral"},
        "positions-plan.json": {**plan, "order": [0, 0, 1, 2, 3, 4, 5, 6]},
        "terms.csv": "colour,color\n",
        "conflict.csv": "a,b\na,c\n",
        "empty.txt": "",
        "table.csv": "a,b\n",
    }
    for name, content in made.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / "sjis.txt").write_bytes("吾輩は猫である\n\n名前はまだ無い\n".encode("shift-jis"))
    np.save(folder / "tokens.npy", np.zeros((9, LENGTH), np.int32))
    (folder / "folder").mkdir()
    (folder / "file").write_text("")


NO_MODEL = {
    # measure
    "measure: nothing given": (("measure",), "--workdir, --corpus: at least one must be given"),
    "measure: no such workdir": (("measure", "--workdir", "{t}/none"), "workdir='.*none': no such folder"),
    "measure: empty workdir": (("measure", "--workdir", "{t}"), r"config\.json"),
    "measure: three corpora": (
        ("measure", "--corpus=a", "--corpus=b", "--corpus=c"), "--corpus, --workdir: at most two of each"),
    "measure: three workdirs": (
        ("measure", "--workdir=a", "--workdir=b", "--workdir=c"), "--corpus, --workdir: at most two of each"),
    "measure: cleaning without a corpus": (
        ("measure", "--workdir", "{t}", "--normalize=nfkc"), "--normalize, --terminology: need a --corpus"),
    "measure: a table without a corpus": (
        ("measure", "--workdir", "{t}", "--terminology=t.csv"), "--normalize, --terminology: need a --corpus"),
    "measure: cleaning of two corpora": (
        ("measure", "--corpus=a", "--corpus=b", "--normalize=nfkc"), "--normalize.*: compare one --corpus"),
    "measure: unknown normalisation": (
        ("measure", "--corpus=a", "--normalize=nfkc,upper"), "--normalize=upper: must be one of nfkc, casefold, white"),
    "measure: no rows": (("measure", "--corpus=a", "--num_rows=0"), "--num_rows=0: must be at least 1"),
    "measure: a single count": (("measure", "--corpus=a", "--num_counts=1"), "--num_counts=1: must be at least 2"),
    "measure: rows of one token": (("measure", "--corpus=a", "--length=1"), "--length=1: must be at least 2"),
    "measure: counts are no number": (("measure", "--corpus=a", "--num_counts=all"), "num_counts.*all"),
    "measure: negative seed": (("measure", "--corpus=a", "--seed=-1"), "--seed=-1: must be between 0 and 4294967295"),
    "measure: seed too large": (("measure", "--corpus=a", "--seed=4294967296"), "--seed=4294967296: must be between"),
    "measure: seed is no number": (("measure", "--corpus=a", "--seed=x"), "seed.*x"),
    "measure: no such corpus": (("measure", "--corpus", "{t}/no*.txt"), r"data\.source='.*no\*\.txt': no such file"),
    "measure: empty corpus": (("measure", "--corpus", "{t}/empty.txt"), r"empty\.txt': holds no document"),
    "measure: unreadable corpus": (("measure", "--corpus", "{t}/sjis.txt"), r"sjis\.txt': holds no doc.*not UTF-8"),
    "measure: a folder as corpus": (("measure", "--corpus", "{t}/folder"), "folder': no such file"),
    "measure: another kind of file": (("measure", "--corpus", "{t}/table.csv"), r"table\.csv must be \.txt or \.jsonl"),
    "measure: tokens as corpus": (
        ("measure", "--corpus", "{t}/tokens.npy", "--length=8"), r"tokens\.npy': holds tokens, not text"),
    "measure: short corpus": (
        ("measure", "--corpus", "{s}", "--length=9999"), r"data\.length=9999: .*only \d+ tokens, fewer than one row"),
    "measure: untrained tokenizer": (
        ("measure", "--corpus", "{s}", "--tokenizer=bpe"), "--tokenizer=bpe: has to be trained"),
    "measure: unknown tokenizer": (("measure", "--corpus", "{s}", "--tokenizer=byte"), "tokenizer='byte': must be one"),
    "measure: conflicting terms": (
        ("measure", "--corpus", "{s}", "--length=8", "--terminology", "{t}/conflict.csv"),
        r"conflict\.csv:2: 'a' has two canonical forms"),
    "measure: no such table": (
        ("measure", "--corpus", "{s}", "--length=8", "--terminology", "{t}/none.csv"),
        r"terminology='.*none\.csv': no such file"),
    # plan
    "plan: nothing given": (("plan",), "--workdir, --curve: at least one must be given"),
    "plan: no such workdir": (("plan", "--workdir", "{t}/none"), "workdir='.*none': no such folder"),
    "plan: no such curve": (("plan", "--curve", "{t}/none.json"), r"none\.json"),
    "plan: two questions": (
        ("plan", "--curve", "{c}", "--num_steps=4", "--max_kl=1"), "--num_steps, --max_kl: only one of them"),
    "plan: two other questions": (
        ("plan", "--curve", "{c}", "--max_latency=4", "--max_kl=1"), "--max_kl, --max_latency: only one of them"),
    "plan: no steps": (("plan", "--curve", "{c}", "--num_steps=0"), "--num_steps=0: must be at least 1"),
    "plan: T too large": (("plan", "--curve", "{c}", "--num_steps=9"), "--num_steps=9: must be at most the length 8"),
    "plan: T is no number": (("plan", "--curve", "{c}", "--num_steps=few"), "num_steps.*few"),
    "plan: negative budget": (("plan", "--curve", "{c}", "--max_kl=-1"), r"--max_kl=-1\.0: must be at least 0"),
    "plan: no budget": (("plan", "--curve", "{c}", "--max_kl=nan"), "--max_kl=nan: must be at least 0"),
    "plan: negative latency": (("plan", "--curve", "{c}", "--max_latency=-1"), r"--max_latency=-1\.0: must be at"),
    "plan: no rows": (("plan", "--workdir", "{m}", "--num_rows=0"), "--num_rows=0: must be at least 1"),
    "plan: no samples": (("plan", "--workdir", "{m}", "--num_samples=0"), "--num_samples=0: must be at least 1"),
    "plan: negative price": (("plan", "--workdir", "{m}", "--price=-2"), r"--price=-2\.0: must be at least 0"),
    "plan: no batch": (("plan", "--workdir", "{m}", "--batch_size=4,0"), "--batch_size=4,0: must be whole"),
    "plan: batches are no numbers": (("plan", "--workdir", "{m}", "--batch_size=4,x"), "--batch_size=4,x: must be"),
    "plan: a budget out of reach": (
        ("plan", "--curve", "{t}/long-curve.json", "--max_kl=0.1", "--output={t}/p.json"),
        r"max_kl=0\.1: cannot be met; the least is \d+\.\d+ nats per sequence .*, in 256 steps"),
    "plan: a latency without a workdir": (
        ("plan", "--curve", "{c}", "--max_latency=1"), "max_latency: the sampler was not timed; plan with a workdir"),
    "plan: samples without a workdir": (("plan", "--curve", "{c}", "--num_samples=9"), "--num_samples.*a --workdir"),
    "plan: positions without a workdir": (("plan", "--curve", "{c}", "--critical=3"), "--critical: needs a --workdir"),
    "plan: a curve that is a plan": (("plan", "--curve", "{m}/plan.json"), r"plan\.json: is not an information curve"),
    "plan: a curve that is cut": (("plan", "--curve", "{t}/cut.json"), r"cut\.json: not valid JSON at line 1"),
    "plan: a curve that is a list": (("plan", "--curve", "{t}/list.json"), r"list\.json: is not an information curve"),
    "plan: a curve that rises": (
        ("plan", "--curve", "{t}/rising-curve.json"), r"rising-curve\.json: entropy_nats must never rise"),
    "plan: a curve that lacks numbers": (
        ("plan", "--curve", "{t}/short-curve.json"), r"short-curve\.json: raw_entropy_nats has shape \[7\]"),
    # sample
    "sample: plan and steps": (
        ("sample", "--workdir", "{m}", "--plan=p", "--num_steps=4"), "--plan, --num_steps: only one of them"),
    "sample: plan and sizes": (
        ("sample", "--workdir", "{m}", "--plan=p", "--sizes=4,4"), "--plan, --sizes: only one of them can be given"),
    "sample: plan and order": (
        ("sample", "--workdir", "{m}", "--plan=p", "--order=spaced"), "--plan, --order: only one of them can be given"),
    "sample: plan and infill": (
        ("sample", "--workdir", "{m}", "--plan=p", "--infill=a[MASK]"), "--plan, --infill: only one of them"),
}  # fmt: skip

PLAN, SAMPLE = (
    ("plan", "--workdir", "{m}", *ROWS, "--output={t}/out/p.json"),
    ("sample", "--workdir", "{m}", "--output={t}/out/s.jsonl"),
)
MEASURE = ("measure", "--workdir", "{m}", *ROWS, "--output={t}/out/m.json")
WITH_MODEL = {
    "measure: no such corpus": ((*MEASURE, "--corpus={t}/none.txt"), r"none\.txt': no such file"),
    "measure: unreadable corpus": ((*MEASURE, "--corpus={t}/sjis.txt"), r"sjis\.txt': holds no document; .*not UTF-8"),
    "measure: tokens as corpus": ((*MEASURE, "--corpus={t}/tokens.npy"), r"tokens\.npy': holds tokens, not text"),
    "measure: output into a file": ((*MEASURE[:-1], "--output={t}/file/m.json"), "file"),
    "plan: T too large": ((*PLAN, "--num_steps=9"), "--num_steps=9: must be at most the length 8"),
    "plan: a curve of another length": (
        (*PLAN, "--curve={t}/longer-curve.json"), r"--curve=.*longer-curve\.json: its length 9 must be the model's, 8"),
    "plan: a curve of another tokenizer": (
        (*PLAN, "--curve={t}/tokenizer-curve.json"),
        r"--curve=.*tokenizer-curve\.json: it was measured with another tokenizer \(sha256 cccc"),
    "plan: a curve of another model": (
        (*PLAN, "--curve={t}/model-curve.json"),
        r"--curve=.*model-curve\.json: it was measured with another model \(sha256 cccc.*run dlm measure"),
    "plan: a damaged curve": ((*PLAN, "--curve={t}/rising-curve.json"), "rising-curve.*entropy_nats"),
    "plan: an unknown order": ((*PLAN, "--orders=random,spiral"), "--orders='spiral': must be one of spaced, .*random"),
    "plan: blocks of nothing": ((*PLAN, "--orders=blocks:0"), "--orders='blocks:0': must be one of"),
    "plan: positions in words": ((*PLAN, "--critical=end"), "--critical=end: must be positions a-b"),
    "plan: a position beyond the end": ((*PLAN, "--critical=8"), "--critical=8: must be positions a-b, a at most b"),
    "plan: positions beyond the end": ((*PLAN, "--critical=2,5-8"), "--critical=5-8: must be positions"),
    "plan: a negative position": ((*PLAN, "--critical=-1"), "--critical=-1: must be positions a-b"),
    "plan: no such baseline": ((*PLAN, "--baseline={t}/none"), "none': no such folder"),
    "plan: no autoregressive baseline": ((*PLAN, "--baseline={m}"), "--baseline=.*: holds no autoregressive model"),
    "plan: a latency out of reach": (
        (*PLAN, "--orders=spaced", "--max_latency=1e-9"),
        r"max_latency=1e-09: cannot be met; the fastest, \d steps, takes \d.* s"),
    "sample: no such plan": ((*SAMPLE, "--plan={t}/none.json"), r"none\.json"),
    "sample: a plan that is a curve": ((*SAMPLE, "--plan={m}/curve.json"), r"curve\.json: is not a plan \(no sizes\)"),
    "sample: a plan that is cut": ((*SAMPLE, "--plan={t}/cut.json"), r"cut\.json: not valid JSON at line 1"),
    "sample: a plan that is a list": ((*SAMPLE, "--plan={t}/list.json"), r"list\.json: is not a plan"),
    "sample: a plan of another length": (
        (*SAMPLE, "--plan={t}/longer-plan.json"), r"--plan=.*longer-plan\.json: its length 9 must be the model's, 8"),
    "sample: a plan of another tokenizer": (
        (*SAMPLE, "--plan={t}/tokenizer-plan.json"), r"--plan=.*json: it was made for another tokenizer \(sha256 cccc"),
    "sample: a plan of another sum": (
        (*SAMPLE, "--plan={t}/sum-plan.json"), r"sum-plan\.json: sizes=.*sum 9 must be the length 8"),
    "sample: a plan of other steps": ((*SAMPLE, "--plan={t}/steps-plan.json"), r"steps-plan\.json: num_steps=5 must"),
    "sample: a plan of an unknown order": ((*SAMPLE, "--plan={t}/order-plan.json"), "order-plan.*order='spiral': must"),
    "sample: a plan that repeats a position": (
        (*SAMPLE, "--plan={t}/positions-plan.json"), "positions-plan.*order: must be .* every position 0..7"),
    "sample: an unknown order": ((*SAMPLE, "--order=spiral"), "order='spiral': must be one of spaced"),
    "sample: an order and a selection": (
        (*SAMPLE, "--order=spaced", "--selection=confidence"), "order: selection='confidence' chooses its own"),
    "sample: negative seed": ((*SAMPLE, "--plan={m}/plan.json", "--seed=-1"), "seed=-1: must be between 0"),
    "sample: seed too large": ((*SAMPLE, "--plan={m}/plan.json", "--seed=4294967296"), "seed=4294967296: must be"),
}  # fmt: skip


def filled(arguments, model, source, folder):
    places = {"{m}": model, "{s}": source, "{t}": folder, "{c}": model / "curve.json"}
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    return arguments


@pytest.mark.parametrize("name", NO_MODEL)
def test_wrong_input_is_refused_in_one_line(name, done, model, source, before, tmp_path, capsys):
    arguments, message = NO_MODEL[name]
    damaged_files(model, tmp_path)
    line = refused(capsys, *filled(arguments, model, source, tmp_path))
    assert re.search(message, line), line
    assert not (tmp_path / "p.json").exists() and contents(model) == before


@pytest.mark.parametrize("name", WITH_MODEL)
def test_wrong_input_to_a_model_is_refused_in_one_line(name, done, model, source, before, tmp_path, capsys):
    arguments, message = WITH_MODEL[name]
    damaged_files(model, tmp_path)
    line = refused(capsys, *filled(arguments, model, source, tmp_path))
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists() and contents(model) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("measure", "--corpus", "{s}", "--length=8", "--terminology", "{t}/terms.csv", "--output={t}/p.json"),
        ("plan", "--curve", "{t}/long-curve.json", "--max_kl=300", "--output={t}/p.json"),
        ("plan", "--curve", "{c}", "--num_steps=8", "--output={t}/p.json"),
    ],
)
def test_the_same_command_lines_without_the_mistake_are_not_refused(arguments, done, model, source, tmp_path):
    damaged_files(model, tmp_path)
    run(*filled(arguments, model, source, tmp_path))
    assert (tmp_path / "p.json").exists()


def test_an_autoregressive_model_is_neither_measured_nor_planned_nor_sampled(done, model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "causal")
    values = json.loads((tmp_path / "causal" / "config.json").read_text())
    values["model"]["attention"], values["diffusion"]["objective"] = "causal", "autoregressive"
    (tmp_path / "causal" / "config.json").write_text(json.dumps(values))
    for verb in ("measure", "plan", "sample"):
        line = refused(capsys, verb, "--workdir", tmp_path / "causal")
        assert "this workdir holds an autoregressive baseline" in line, line


def test_a_stale_curve_of_the_workdir_is_named_and_not_used(done, model, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    values = json.loads((copy / "curve.json").read_text())
    stale = {**values, "model_sha256": "c" * 64, "raw_entropy_nats": [9.0] * 8, "entropy_nats": [9.0] * 8}
    (copy / "curve.json").write_text(json.dumps(stale))
    from dlm_jax.cli.plan import load_curve

    generator = dlm_jax.load(copy)
    assert load_curve(generator, None) is None
    assert "curve.json: not used: curve: it was measured with another model" in capsys.readouterr().err
    (copy / "curve.json").write_text(json.dumps(values))
    assert load_curve(generator, None).to_dict()["entropy_nats"] == values["entropy_nats"]
    (copy / "curve.json").unlink()
    assert load_curve(generator, None) is None


# ---------------------------------------------------------------------------------------------- rows from Python

EOS = 256


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1, 2, 3, 4, 5, 6, EOS, EOS]], "corpus: row 0 holds 256 at position 7, which is padding or no token"),
        ([[EOS] * 8], "corpus: row 0 holds 256 at position 1"),
        ([[1] * 8, [2, 2, 2, EOS, EOS, EOS, EOS, EOS]], "corpus: row 1 holds 256 at position 4.*rows must be full"),
        ([[1] * 7 + [257]], "corpus: row 0 holds 257 at position 7"),
        ([[-1] + [1] * 7], "corpus: row 0 holds -1 at position 0"),
        ([[1] * 9], r"corpus: int64\[1, 9\] must be whole numbers \[N, 8\]"),
        ([1] * 8, r"corpus: int64\[8\] must be whole numbers \[N, 8\]"),
        ([[1.0] * 8], r"corpus: float64\[1, 8\] must be whole numbers"),
        ([["1"] * 8], "must be whole numbers"),
    ],
)
def test_padded_and_unfitting_rows_of_tokens_are_refused(tokens, message, generator):
    with pytest.raises(ValueError, match=message):
        generator.rows(np.array(tokens))


def test_full_rows_of_tokens_are_taken_as_they_are(generator):
    tokens = np.array([[72, 105, EOS, 72, 111, 33, EOS, 65], [227, 129, 130, 32, 227, 129, 132, EOS]])
    rows = generator.rows(tokens)
    assert rows.tokens.tolist() == tokens.tolist() and rows.tokens.dtype == np.int32
    assert rows.num_bytes.tolist() == [6, 7] and rows.document.tolist() == [0, 1]
    assert len(generator.rows(tokens, num_rows=1)) == 1
    assert generator.rows(tokens[::-1]).tokens.tolist() != tokens.tolist()


def test_rows_of_texts_and_files_are_the_same_and_normalised_alike(generator, source):
    plain, cleaned = generator.rows(TEXTS), generator.rows(TEXTS, normalize=("nfkc", "whitespace"))
    np.testing.assert_array_equal(generator.rows(str(source)).tokens, plain.tokens)
    again = generator.rows(str(source), normalize=("nfkc", "whitespace"))
    np.testing.assert_array_equal(again.tokens, cleaned.tokens)
    assert len(cleaned) < len(plain)  # full-width letters are three bytes each
    assert len(generator.rows(TEXTS, num_rows=5)) == 5
    assert len(set(generator.rows(TEXTS, num_rows=5).document.tolist())) == 5  # spread over the texts


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.rows(["abc"]), "data.length=8: .* hold only 4 tokens, fewer than one row"),
        (lambda g: g.rows([]), "fewer than one row"),
        (lambda g: g.rows("no/such/*.txt"), "no/such/.*: no such file"),
        (lambda g: g.rows(TEXTS, terminology="no.csv"), r"data\.terminology='no\.csv': no such file"),
        (lambda g: g.measure(TEXTS, num_counts=1), "num_counts=1: must be a whole number of at least 2"),
        (lambda g: g.measure(TEXTS, num_counts=2.5), r"num_counts=2\.5: must be a whole number"),
    ],
)
def test_a_wrong_argument_is_named(call, message, generator):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(generator)


def test_critical_positions_are_revealed_last_and_one_at_a_time(done, model, tmp_path):
    arguments = ("--critical=5-6", "--num_steps=4", "--noreport", "--json", "--output", tmp_path / "p.json")
    plan = json.loads(run("plan", "--workdir", model, *ROWS, *arguments)[0])
    assert plan["order"][-2:] == [5, 6] and sorted(plan["order"]) == list(range(LENGTH))
    assert plan["sizes"][-2:] == [1, 1]


@pytest.mark.parametrize("seed", [-1, 2**32, 10**20])
def test_a_seed_of_a_plan_out_of_range_is_refused(seed, done, model, tmp_path, capsys):
    arguments = filled((*PLAN, "--orders=spaced", "--noreport", f"--seed={seed}"), model, "", tmp_path)
    assert "seed" in refused(capsys, *arguments)


@pytest.mark.parametrize("argument", ["--batch_size=", "--critical=3-1", "--critical=²", "--critical=1-"])
def test_empty_and_odd_values_of_a_plan_are_refused_by_name(argument, done, model, tmp_path, capsys):
    arguments = filled((*PLAN, "--orders=spaced", "--noreport", argument), model, "", tmp_path)
    assert argument.partition("=")[0] in refused(capsys, *arguments)


@pytest.mark.parametrize("argument", ["--orders=spiral", "--orders=spaced", "--baseline=b", "--price=2"])
def test_arguments_that_need_a_model_are_refused_with_a_curve_alone(argument, done, model, tmp_path, capsys):
    line = refused(capsys, "plan", "--curve", model / "curve.json", "--output", tmp_path / "p.json", argument)
    assert argument.partition("=")[0] in line


def test_a_plan_and_a_selection_are_refused(done, model, tmp_path, capsys):
    arguments = ("--plan", model / "plan.json", "--selection=confidence", "--num_samples=3")
    arguments += ("--output", tmp_path / "s.jsonl")
    assert "--selection" in refused(capsys, "sample", "--workdir", model, *arguments)


def test_a_plan_whose_tokenizer_is_a_number_is_refused(done, model, tmp_path, capsys):
    values = json.loads((model / "plan.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps({**values, "tokenizer_sha256": 5}))
    assert "tokenizer_sha256" in refused(capsys, "sample", "--workdir", model, "--plan", tmp_path / "p.json")


@pytest.mark.parametrize("table", ["conflict.csv", "none.csv"])
def test_a_table_that_cannot_be_used_is_refused_before_anything_is_measured(
    table, done, model, source, tmp_path, capsys
):
    damaged_files(model, tmp_path)
    arguments = filled((*MEASURE, "--corpus={s}", f"--terminology={{t}}/{table}"), model, source, tmp_path)
    assert table in refused(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_the_curve_of_a_single_document_can_be_loaded_again(generator, done, tmp_path):
    curve = generator.measure(["one document " * 20])
    assert curve.num_documents == 1 and curve.num_rows > 16
    curve.save(tmp_path / "curve.json")
    assert InformationCurve.load(tmp_path / "curve.json").num_documents == 1


def test_an_unknown_normalisation_of_texts_is_named(generator):
    with pytest.raises(ValueError, match=r"normalize.*upper"):
        generator.rows(TEXTS, normalize=("upper",))


def test_texts_that_become_empty_are_dropped_from_rows(generator):
    texts = [text for pair in zip(TEXTS, ["　"] * len(TEXTS), strict=True) for text in pair]
    np.testing.assert_array_equal(
        generator.rows(texts, normalize=("whitespace",)).tokens, generator.rows(TEXTS, normalize=("whitespace",)).tokens
    )


@pytest.mark.parametrize("name", ["text8", "letters"])
def test_rows_of_a_doubled_first_letter_are_no_padding(name, generator):
    tokenizer = tokenizers.make_tokenizer(name, num_letters=3)
    denoiser = dataclasses.replace(generator.denoiser, vocab_size=tokenizer.vocab_size)
    other = dlm_jax.api.Generator(generator.config, tokenizer, denoiser, None, 0)
    tokens = np.array([[0, 1, 0, 2, 0, 1, 0, 2], [1, 0, 0, 2, 1, 2, 1, 2]])
    assert len(other.rows(tokens[:1])) == 1
    assert other.rows(tokens).tokens.tolist() == tokens.tolist()


def test_after_all_of_this_the_workdir_is_unchanged(model, before):
    assert contents(model) == before
    assert any("checkpoints" in path for path in before) and any(path.endswith("plan.json") for path in before)
