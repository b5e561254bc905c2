"""dlm sample: presets, prompts, pages, windows and guidance of a tiny model, and every flag given a wrong value."""

import contextlib
import dataclasses
import json
import os
import re

import numpy as np
import pytest
from absl import flags

import dlm_jax
from dlm_jax.cli import sample as verb
from dlm_jax.cli.main import main
from dlm_jax.config import SampleConfig
from dlm_jax.information.plan import Plan
from dlm_jax.sampling import presets, viewer

LENGTH = 32
SIZES = [4, 12, 16]
TINY = (
    "--config.train.num_steps=6", "--config.train.batch_size=16", "--config.sample.num_samples=2",
    "--config.sample.num_steps=4", "--config.sample.temperature=0.5",
)  # fmt: skip
MDLM = ("--preset=mdlm", "--num_steps=6")  # compiled once, whatever the prompt
CONFIGURED = {"num_samples": 2, "num_steps": 4, "temperature": 0.5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir of a model that was trained for 6 steps, with a plan."""
    workdir = tmp_path_factory.mktemp("trained") / "model"
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        assert main(["train", "--config", "debug", "--workdir", str(workdir), *TINY]) == 0
    plan = Plan(LENGTH, len(SIZES), np.asarray(SIZES), "left_to_right", "given", 0.0, 1.0, 0.0)
    plan.save(workdir / "plan.json")
    return workdir


@pytest.fixture(scope="module")
def generator(trained):
    return dlm_jax.load(trained)


@pytest.fixture(autouse=True)
def quick(generator, monkeypatch):
    """The model is read once, and steps are one group, the least to compile."""
    monkeypatch.setattr(dlm_jax, "load", lambda workdir: generator)
    monkeypatch.setattr("dlm_jax.sampling.loop._MAX_GROUPS", 1)


@pytest.fixture
def sample(trained, tmp_path, capsys):
    """Returns a function: flags -> (records, stdout, stderr); what is written lies in tmp_path."""

    def run(*arguments):
        capsys.readouterr()
        path = tmp_path / "out.jsonl"
        code = main(["sample", "--workdir", str(trained), "--output", str(path), *map(str, arguments)])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return [json.loads(line) for line in path.read_text().split("\n") if line], captured.out, captured.err

    return run


@pytest.fixture
def asked(generator, monkeypatch, trained, tmp_path):
    """Returns a function: flags -> what Generator.sample is asked; nothing is sampled."""

    class Asked(Exception):
        pass

    def run(*arguments):
        def record(**request):
            raise Asked(request)

        with monkeypatch.context() as patch:
            patch.setattr(generator, "sample", record, raising=False)
            patch.setattr(generator, "infill", lambda template, **request: record(template=template, **request))
            with pytest.raises(Asked) as caught:
                main(["sample", "--workdir", str(trained), "--output", str(tmp_path / "out.jsonl"), *arguments])
        return caught.value.args[0]

    return run


def masks(records, generator):
    return sum(token == generator.denoiser.mask_id for record in records for token in record["tokens"])


# ------------------------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_runs_and_leaves_no_mask(name, sample, generator):
    steps = () if name in ("eb", "planned") else ("--num_steps=6",)
    records, out, _ = sample(f"--preset={name}", "--prompt=The ", *steps)
    assert len(records) == 2 and masks(records, generator) == 0
    for record in records:
        assert record["text"].startswith("The ") and viewer.printable(record["text"]) in out
        assert len(record["tokens"]) == len(record["reveal_step"]) == LENGTH
        assert record["reveal_step"][:4] == [-1] * 4 and min(record["reveal_step"][4:]) >= 0
        assert 1 <= record["nfe"] <= (LENGTH if name == "eb" else len(SIZES) if name == "planned" else 7)
    # Variation: with another seed.
    if name != "dream":  # nearly without chance in a model of a few steps
        others, *_ = sample(f"--preset={name}", "--prompt=The ", *steps, "--seed=1")
        assert [r["tokens"] for r in others] != [r["tokens"] for r in records]


def test_a_prompt_given_twice_is_a_row_for_each(sample):
    records, *_ = sample("--prompt=The", "--prompt=An old", *MDLM)
    assert records[0]["text"].startswith("The") and records[1]["text"].startswith("An old") and len(records) == 2
    assert [record["reveal_step"].count(-1) for record in records] == [3, 6]
    once, *_ = sample("--prompt=The", *MDLM)  # variation: one prompt begins as many as the config says
    assert len(once) == CONFIGURED["num_samples"] and all(r["text"].startswith("The") for r in once)


@pytest.mark.parametrize(
    "text", ["</script><!--", "\"'\\", "é€😀", "a\u2028b", "[MASK]", "$(x) `y`", " \t "], ids=ascii
)
def test_a_prompt_of_special_characters_is_kept(text, sample, tmp_path):
    page = tmp_path / "page.html"
    records, *_ = sample(f"--prompt={text}", f"--html={page}", *MDLM)
    assert records[0]["text"].startswith(text)
    assert records[0]["reveal_step"].count(-1) == len(text.encode())
    assert page.read_text().count("<script") == page.read_text().count("</script") == 1
    assert not sample("--prompt=other", *MDLM)[0][0]["text"].startswith(text)  # variation


def test_html_writes_a_page_of_the_samples(sample, generator, tmp_path):
    page = tmp_path / "folder" / "page.html"
    records, _, err = sample(f"--html={page}")
    want = viewer.page(
        [
            (f"sample {n}, {r['nfe']} denoiser calls", viewer.pieces(r["tokens"], generator.text), r["reveal_step"])
            for n, r in enumerate(records, 1)
        ]
    )
    assert page.read_text() == want
    assert str(page) in err and str(tmp_path / "out.jsonl") in err
    page.unlink()
    sample()  # variation: without the flag
    assert not page.exists()


def test_view_plays_on_a_terminal_and_shows_the_last_frame_elsewhere(sample, monkeypatch):
    plays = []
    play = viewer.play
    monkeypatch.setattr(viewer, "play", lambda *a, **o: plays.append(o) or play(*a, **o, sleep=lambda seconds: None))
    records, out, _ = sample("--view")
    assert out.count("step 4 of 4") == 2 and "step 3 of 4" not in out
    assert plays == [{"is_terminal": False}] * 2
    assert re.sub(r"\x1b\[[0-9;]*m", "", out).count(viewer.printable(records[0]["text"])) == 1
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    _, played, _ = sample("--view")
    assert [int(n) for n in re.findall(r"step (\d) of 4", played)] == [0, 1, 2, 3, 4] * 2
    assert "step" not in sample()[1]  # variation


def test_json_prints_what_is_written_and_nothing_else(sample, tmp_path):
    records, out, err = sample("--json")
    assert [json.loads(line) for line in out.split("\n") if line] == records and err == ""
    assert out == (tmp_path / "out.jsonl").read_text()
    assert sample()[1] != out  # variation


@pytest.mark.parametrize("length", [1, 33, 71])
def test_a_length_is_kept_exactly_longer_than_the_model_too(length, sample, generator):
    records, *_ = sample(f"--length={length}", "--num_samples=2", "--num_steps=1", "--temperature=1")
    assert [len(record["tokens"]) for record in records] == [length] * 2
    assert masks(records, generator) == 0
    windows = 1 + max(0, -(-(length - LENGTH) // (LENGTH // 2)))
    assert [record["nfe"] for record in records] == [windows] * 2
    assert [max(record["reveal_step"]) for record in records] == [windows - 1] * 2


def test_critical_positions_come_last_one_a_step(sample, generator):
    records, *_ = sample("--critical=5,3", "--num_steps=4")
    for record in records:
        assert [record["reveal_step"][place] for place in (5, 3)] == [4, 5]
        assert max(step for place, step in enumerate(record["reveal_step"]) if place not in (3, 5)) == 3
        assert record["nfe"] == 6
    assert masks(records, generator) == 0
    # Inside a prompt they are given already; variation.
    inside, *_ = sample("--critical=5,3", "--num_samples=2", "--num_steps=4", "--prompt=The old")
    assert all(record["reveal_step"][3] == record["reveal_step"][5] == -1 and record["nfe"] <= 4 for record in inside)


def test_a_negative_prompt_changes_what_guidance_pushes_away_from(sample, generator):
    flags_ = ("--prompt=The old", *MDLM, "--guidance=40")
    plain, other, none = (
        [record["tokens"] for record in sample(*flags_, *more)[0]]
        for more in ((), ("--negative_prompt=zzzzz",), ("--guidance=0",))
    )
    assert plain != other and plain != none and other != none
    assert all(tokens[:7] == list(b"The old") for tokens in plain + other + none)
    again = [record["tokens"] for record in sample(*flags_, "--negative_prompt=zzzzz")[0]]
    assert again == other


def test_a_template_is_filled_in(sample):
    records, *_ = sample("--infill=Dear [MASK*6], thanks", "--num_steps=4")
    assert all(r["text"].startswith("Dear ") and r["text"].endswith(", thanks") for r in records)
    assert [sum(step >= 0 for step in record["reveal_step"]) for record in records] == [6, 6]
    assert all(len(record["tokens"]) == 19 for record in records)


@pytest.mark.parametrize("name", ["llada", "dream", "eb"])
def test_critical_positions_of_a_preset_are_filled_last(name, sample, generator):
    records, *_ = sample(f"--preset={name}", *(() if name == "eb" else ("--num_steps=6",)), "--critical=3,9")
    assert masks(records, generator) == 0
    for record in records:
        steps = np.asarray(record["reveal_step"])
        assert steps[3] == steps.max() - 1 and steps[9] == steps.max() and (steps[[3, 9]] > np.sort(steps)[-3]).all()


# --------------------------------------------------------------------------------------------------- what goes first


def test_without_flags_the_config_says_how(asked):
    request = asked()
    assert {name: request[name] for name in CONFIGURED} == CONFIGURED
    assert request["preset"] is None and request["sizes"] is None and request["order"] is None
    assert request["prompt"] == "" and request["length"] is None and request["critical"] == []


def test_flags_go_before_the_config(asked):
    request = asked("--num_samples=5", "--temperature=0.25", "--num_steps=9", "--top_k=3", "--stop_at_eos")
    assert (request["num_samples"], request["temperature"], request["num_steps"], request["top_k"]) == (5, 0.25, 9, 3)
    assert request["stop_at_eos"] is True
    assert asked("--num_steps=0")["num_steps"] is None  # one token a step
    assert asked("--sizes=16,16")["num_steps"] is None and asked("--sizes=16,16")["sizes"] == [16, 16]


def test_a_transition_that_chooses_its_steps_does_not_take_the_configs(asked):
    assert asked("--transition=threshold:0.9", "--selection=confidence")["num_steps"] is None
    assert asked("--transition=first_hitting")["num_steps"] is None
    assert asked("--transition=quota_llada")["num_steps"] == CONFIGURED["num_steps"]  # variation


def test_flags_go_before_the_preset_and_the_preset_before_the_config(asked, sample, monkeypatch):
    request = asked("--preset=dream", "--top_p=0.5")
    assert request["preset"] == "dream" and request["top_p"] == 0.5
    assert request["num_samples"] == CONFIGURED["num_samples"]
    assert request["num_steps"] is None and "temperature" not in request  # those of the config are not the preset's
    # What reaches the sampler.
    made = []

    def run(denoiser, params, key, canvas, choices, **_):
        made.append(choices)
        raise InterruptedError("no samples are needed")

    monkeypatch.setattr("dlm_jax.sampling.loop.run", run)
    for arguments in (("--preset=dream", "--top_p=0.5", "--num_steps=8"), ("--preset=dream",), ()):
        with pytest.raises(AssertionError, match="no samples are needed"):
            sample(*arguments)
    both, preset, config = made
    assert (both.temperature, both.top_p, both.num_steps) == (0.2, 0.5, 8)
    assert (preset.temperature, preset.top_p, preset.num_steps) == (0.2, 0.95, LENGTH)
    assert (config.temperature, config.top_p, config.num_steps) == (0.5, 1.0, 4)
    assert both.transition == preset.transition == "quota_dream" and config.transition == "exact_count"


def test_a_plan_brings_sizes_and_order(asked, trained):
    request = asked(f"--plan={trained / 'plan.json'}")
    assert request["sizes"].tolist() == SIZES and request["order"] == "left_to_right"
    assert request["num_steps"] is None and request["selection"] == "random"


# ------------------------------------------------------------------------------------------------------ wrong values

# flag -> (value, what the line must hold), each wrong on its own
WRONG = [
    *((name, value, rf"^{name}={re.escape(value)}: ") for name in ("num_samples", "num_steps", "spacing", "top_k",
        "block_length", "length", "seed") for value in ("", "few", "1.5", "nan")),
    *((name, value, rf"^{name}={re.escape(value)}: ") for name in ("order_temperature", "temperature", "top_p",
        "guidance") for value in ("", "hot", "1,5")),
    *((name, value, rf"^{name}={value}: ") for name in ("stop_at_eos", "view", "json") for value in ("maybe", "2")),
    *((name, value, rf"^{name}={float(value)}: must be .*at least 0 and finite") for name in ("temperature",
        "order_temperature") for value in ("-1", "nan", "inf", "-inf", "1e999")),
    *(("top_p", value, rf"^top_p={float(value)}: must be above 0 and at most 1$") for value in ("0", "-1", "2", "nan")),
    *(("guidance", value, rf"^guidance={float(value)}: must be finite$") for value in ("nan", "inf", "-inf")),
    *((name, "", rf"^{name}='': must be one of ") for name in ("selection", "scores", "transition", "numerics",
        "remasking", "cache", "preset", "order")),
    *((name, "non", rf"^{name}='non': must be one of ") for name in ("selection", "scores", "transition", "numerics",
        "remasking", "cache", "preset", "order")),
    ("num_samples", "0", r"^num_samples=0: must be .*at least 1$"),
    ("num_samples", "-1", r"^num_samples=-1: must be .*at least 1$"),
    ("num_steps", "-1", r"num_steps=-1: must be at least 0$"),
    ("num_steps", "33", r"^num_steps=33: must be between 1 and the length 32$"),
    ("num_steps", "9" * 25, r"^num_steps=9+: must be between 0 and 1048576$"),
    ("spacing", "0", r"^spacing=0: must be at least 1$"),
    ("spacing", "2", r"^spacing=2: a known order is taken as it is"),
    ("order_temperature", "1", r"^order_temperature=1\.0: selection 'random' has no scores"),
    ("top_k", "-1", r"^top_k=-1: must be at least 0$"),
    ("transition", "threshold:0.9", r"^transition='threshold:0\.9': compares confidences"),
    ("transition", "threshold:x", r"^transition='threshold:x': what follows the colon"),
    ("remasking", "remdm_cap:0.1", r"^remasking='remdm_cap:0\.1': follows the clock"),
    ("remasking", "corrector:0", r"^remasking='corrector:0': its number must be at least 1"),
    ("block_length", "-1", r"^block_length=-1: must be at least 0$"),
    ("block_length", "33", r"^block_length=33: must be at most the length 32$"),
    ("cache", "prefix", r"^cache='prefix': is refreshed block by block"),
    ("guidance", "1", r"^guidance: needs a prompt"),
    ("negative_prompt", "a", r"^negative.*: needs guidance"),
    ("preset", "llama", r"^preset='llama': must be one of llada"),
    ("sizes", "", r"^sizes=\[\]: must be a list of whole numbers$"),
    ("sizes", "4,x", r"sizes=4,x: must be whole numbers separated by commas$"),
    ("sizes", "16,,16", r"sizes=16,,16: must be whole numbers separated by commas$"),
    ("sizes", "16.0,16.0", r"sizes=16\.0,16\.0: must be whole numbers separated by commas$"),
    ("sizes", "16,15", r"^sizes=\[16, 15\]: sum 31 must be the length 32$"),
    ("sizes", "33,-1", r"^sizes=\[33, -1\]: every step must reveal at least 1 token, not -1$"),
    ("plan", "{t}/none.json", r"none\.json: no such file"),
    ("plan", "{t}/damaged.json", r"damaged\.json: not valid JSON"),
    ("order", "Spaced", r"^order='Spaced': must be one of"),
    ("order", "blocks:0", r"^order='blocks:0': must be one of"),
    ("prompt", "x" * 32, r"^prompt: 32 tokens must be fewer than the length 32$"),
    ("infill", "", r"^template: must hold \[MASK\]"),
    ("infill", "no mask", r"^template: must hold \[MASK\]"),
    ("infill", "[MASK*33]", r"^template: \[MASK\*33\] must be at most the length 32$"),
    ("critical", "x", r"critical=x: must be whole numbers separated by commas$"),
    ("critical", "1.0", r"critical=1\.0: must be whole numbers separated by commas$"),
    ("critical", "-1", r"^critical=\[-1\]: must be different positions from 0 to 31$"),
    ("critical", "32", r"^critical=\[32\]: must be different positions from 0 to 31$"),
    ("critical", "1,1", r"^critical=\[1, 1\]: must be different positions from 0 to 31$"),
    ("critical", ",".join(map(str, range(32))), r"^critical: 32 positions must be fewer than the length 32$"),
    ("length", "0", r"^length=0: must be a whole number of at least 1$"),
    ("length", "-1", r"^length=-1: must be a whole number of at least 1$"),
    ("seed", "-1", r"^seed=-1: must be between 0 and 4294967295$"),
    ("seed", str(2**32), r"^seed=4294967296: must be between 0 and 4294967295$"),
    ("workdir", "", r"^--workdir: must be given$"),
    ("output", "{t}/file/s.jsonl", r"file: "),
    ("html", "{t}/file/s.html", r"file: "),
    ("html", "{t}", r"directory"),
]  # fmt: skip

TOGETHER = [
    ("--num_steps=4 --sizes=16,16", r"^--num_steps, --sizes: only one of them can be given$"),
    ("--infill=a[MASK] --prompt=b", r"^--infill, --prompt: only one of them"),
    ("--infill=a[MASK] --length=5", r"^--infill, --length: only one of them"),
    ("--infill=a[MASK] --negative_prompt=b", r"^--infill, --negative_prompt: only one of them"),
    *(
        (f"--plan={{p}} --{name}={value}", rf"^--plan, --{name}: only one of them can be given$")
        for name, value in [
            ("num_steps", "4"), ("sizes", "16,16"), ("order", "random"), ("infill", "[MASK]"), ("preset", "llada")
        ]
    ),
    ("--plan={p} --selection=drawn", r"^--plan, --selection=drawn: a plan has its own order; leave it out$"),
    ("--prompt=a --prompt=b --num_samples=3", r"^prompt: 2 prompts must be as many as num_samples=3$"),
    ("--selection=drawn --order=random", r"^order: selection='drawn' chooses its own; must be None$"),
    ("--preset=eb --num_steps=4", r"^num_steps=4: transition 'entropy_bound:0\.1' chooses its own"),
    ("--preset=mdlm --selection=drawn", r"^selection='drawn': transition 'ancestral_mdlm' reveals each token"),
    ("--preset=mdlm --block_length=8", r"^block_length=8: transition 'ancestral_mdlm' runs over the whole row"),
    ("--preset=mdlm --sizes=16,16", r"^sizes: transition 'ancestral_mdlm' has its own; must be None$"),
    ("--preset=planned --num_steps=4", r"^preset='planned': has its own sizes and order; leave them out$"),
    ("--preset=planned --order=random", r"^preset='planned': has its own sizes and order; leave them out$"),
    ("--block_length=8 --sizes=16,16", r"^sizes=\[16, 16\]: sum 32 must be .*8$"),
    ("--block_length=8 --cache=exact", r"^cache='exact': needs a model of block-causal attention"),
    ("--block_length=5 --num_steps=7 --cache=dual", r"^block_length=5: must divide the length 32 with a cache$"),
    ("--block_length=8 --cache=dual --critical=1", r"^cache='dual': critical positions lie outside the blocks"),
    ("--block_length=8 --cache=dual --guidance=1 --prompt=a", r"^cache='dual': guidance 1\.0 looks at a second canvas"),
    ("--guidance=1 --prompt=a --negative_prompt=ab", r"^negative.*: 2 tokens must be at most .* 1$"),
    ("--remasking=corrector:1 --stop_at_eos", r"^stop_at_eos=True: remasking 'corrector:1' may take the end back"),
    ("--num_steps=4 --sampels=3", r"^Unknown command line flag 'sampels'"),
    ("stray", r"^argument 'stray': dlm sample takes flags only"),
]  # fmt: skip


def refused(capsys, tmp_path, trained, arguments):
    """Runs flags that must be refused; returns (the line, what was written or changed all the same)."""
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "damaged.json").write_text("{")
    before = {path: path.read_bytes() for folder in (tmp_path, trained) for path in folder.rglob("*") if path.is_file()}
    fill = {"{t}": str(tmp_path), "{p}": str(trained / "plan.json")}
    for mark, value in fill.items():
        arguments = [argument.replace(mark, value) for argument in arguments]
    capsys.readouterr()
    code = main(["sample", "--workdir", str(trained), *arguments])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("dlm: ")]
    assert code == 2, captured.err
    assert len(lines) == 1 and captured.err.splitlines()[-1] == lines[0]
    assert "Traceback" not in captured.err + captured.out and captured.out == ""
    after = {path: path.read_bytes() for folder in (tmp_path, trained) for path in folder.rglob("*") if path.is_file()}
    return lines[0].removeprefix("dlm: "), sorted(set(after) - set(before)) + [
        p for p in before if after[p] != before[p]
    ]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=lambda part: str(part)[:24])
def test_a_wrong_value_of_a_flag_is_one_line_and_nothing_is_written(name, value, message, trained, tmp_path, capsys):
    line, written = refused(capsys, tmp_path, trained, [f"--{name}={value}"])
    assert re.search(message, line), line
    assert written == []


@pytest.mark.parametrize(("arguments", "message"), TOGETHER, ids=lambda part: str(part)[:40])
def test_flags_that_contradict_are_one_line_and_nothing_is_written(arguments, message, trained, tmp_path, capsys):
    line, written = refused(capsys, tmp_path, trained, arguments.split())
    assert re.search(message, line), line
    assert written == []


def test_every_flag_has_a_wrong_value_above():
    values = flags.FlagValues()
    verb.define_flags(values)
    assert {field.name for field in dataclasses.fields(SampleConfig)} <= set(values)
    assert set(values) - {getattr(case, "values", case)[0] for case in WRONG} == set()
    assert set(verb._HELP) == {field.name for field in dataclasses.fields(SampleConfig)}


def test_the_same_flags_with_right_values_are_taken(asked):
    """Variation: what was refused above was so for its value."""
    request = asked(
        "--num_samples=1", "--num_steps=8", "--selection=confidence", "--order_temperature=0.5", "--spacing=2",
        "--scores=filtered", "--transition=quota_llada", "--temperature=0", "--top_k=5", "--top_p=0.9",
        "--numerics=published", "--remasking=corrector:2", "--block_length=8", "--cache=none", "--guidance=0.5",
        "--nostop_at_eos", "--prompt=a", "--negative_prompt=b", "--critical=3", "--length=32", "--seed=4294967295",
    )  # fmt: skip
    assert (request["selection"], request["remasking"], request["guidance"]) == ("confidence", "corrector:2", 0.5)
    assert (request["critical"], request["length"], request["seed"]) == ([3], 32, 2**32 - 1)
    assert (request["prompt"], request["negative_prompt"]) == ("a", "b")
