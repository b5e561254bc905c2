"""Plans: what is asked is answered, sizes are judged on other documents than they were chosen on, files are checked."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from dlm_jax.information import InformationCurve, StepCosts, costs, error, orders, schedules, statistics
from dlm_jax.information import distributions as d
from dlm_jax.information import plan as plans
from dlm_jax.information.plan import Candidate, Latency, Plan, Survey

M2 = [[0.9, 0.1], [0.2, 0.8]]
LATENCY = Latency("a device", 4, np.array([1, 2, 4, 8]), np.array([1.0, 1.5, 2.0, 3.0]), np.zeros(4), {"uncached": 1.0})

# ---------------------------------------------------------------------------------------------- files

PLANS = {
    "of a family": Plan(8, 3, np.array([1, 2, 5]), "spaced", "planned", 0.25, 20.5, 0.125, 0.5, "the best 3 steps",
                        "a" * 64, "b" * 64, {"frontier": [1, 2]}),
    "of a fixed order": Plan(3, 2, np.array([1, 2]), [2, 0, 1], "cosine", -0.5, 3.5, 0.0),
    "of one token": Plan(1, 1, np.array([1]), "random", "uniform", 0.0, 1.0, 0.0),
    "without errors": Plan(8, 1, np.array([8]), "blocks:4", "uniform", math.nan, 20.0, math.nan),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_a_saved_plan_is_loaded_again_field_by_field(name, tmp_path):
    plan = PLANS[name]
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.sizes.dtype == np.int64
    for field in dataclasses.fields(Plan):
        np.testing.assert_equal(getattr(again, field.name), getattr(plan, field.name))
    assert json.dumps(again.to_dict()) == json.dumps(plan.to_dict())
    dataclasses.replace(plan, sizes=plan.sizes[::-1], nll_nats=1.5).save(tmp_path / "plan.json")
    assert json.dumps(Plan.load(tmp_path / "plan.json").to_dict()) != json.dumps(plan.to_dict())


def test_a_plan_file_holds_what_sampling_and_readers_need():
    values = PLANS["of a family"].to_dict()
    assert values.keys() == {"format", *(field.name for field in dataclasses.fields(Plan))}
    assert values["sizes"] == [1, 2, 5] and values["format"] == 1 and values["num_steps"] == 3


@pytest.mark.parametrize(
    "absent", ["expected_kl_nats", "stderr_nats", "seconds", "question", "details", "model_sha256"]
)
def test_what_sampling_does_not_need_may_be_missing(absent, tmp_path):
    values = PLANS["of a family"].to_dict()
    del values[absent]
    (tmp_path / "plan.json").write_text(json.dumps(values))
    assert Plan.load(tmp_path / "plan.json").sizes.tolist() == [1, 2, 5]


DAMAGE = {
    # field: [(what becomes of its value, or None: it is missing; what the message says)]
    "format": [(None, "format=None must be 1"), (lambda v: 2, "format=2 must be 1"), (lambda v: "1", "format='1'")],
    "length": [
        (None, "length is missing"),
        (lambda v: 8.0, r"length=8\.0 must be a whole number of at least 1"),
        (lambda v: 0, "length=0 must be"),
        (lambda v: "8", "length='8'"),
        (lambda v: None, "length=None"),
        (lambda v: 9, r"sizes=\[1, 2, 5\]: sum 8 must be the length 9"),
    ],
    "num_steps": [
        (None, "num_steps is missing"),
        (lambda v: 4, "num_steps=4 must be 3, as many as sizes"),
        (lambda v: "3", "num_steps='3' must be a whole number"),
        (lambda v: [3], r"num_steps=\[3\]"),
    ],
    "sizes": [
        (None, r"is not a plan \(no sizes\); dlm plan writes one"),
        (lambda v: [1, 2, 4], r"sizes=\[1, 2, 4\]: sum 7 must be the length 8"),
        (lambda v: [0, 3, 5], "sizes=.*every step must reveal at least 1 token, not 0"),
        (lambda v: [9, -1], "sizes=.*not -1"),
        (lambda v: [], r"sizes=\[\]: must be a list of whole numbers"),
        (lambda v: 8, "sizes=8 must be a list of whole numbers"),
        (lambda v: None, "sizes=None must be a list"),
        (lambda v: "125", "sizes='125' must be a list"),
        (lambda v: [1.0, 2.0, 5.0], "sizes=.*whole numbers"),
        (lambda v: [1, 2, "5"], "sizes=.*whole numbers"),
        (lambda v: [True] * 8, "sizes=.*whole numbers"),
        (lambda v: [[1, 2, 5]], "sizes=.*whole numbers"),
        (lambda v: {"a": 8}, "sizes=.*whole numbers"),
    ],
    "order": [
        (None, "order is missing"),
        (lambda v: "spiral", "order='spiral': must be one of spaced, .*random"),
        (lambda v: "blocks:0", "order='blocks:0': must be one of"),
        (lambda v: None, "order=None must be a name"),
        (lambda v: 5, "order=5 must be a name"),
        (lambda v: {"0": 1}, "order=.* must be a name"),
        (lambda v: list(range(7)), "order: must be a name or hold every position"),
        (lambda v: [0, *range(7)], "order: must be a name or hold every position"),
        (lambda v: list(range(1, 9)), "order: must be a name or hold every position"),
        (lambda v: [list(range(8))], "order: must be a name or hold every position"),
    ],
    "schedule": [(None, "schedule is missing")],
    "nll_nats": [
        (None, "nll_nats is missing"),
        (lambda v: None, "nll_nats=None must be a number"),
        (lambda v: "20", "nll_nats='20' must be a number"),
        (lambda v: [20], r"nll_nats=\[20\]"),
    ],
    "expected_kl_nats": [(lambda v: "much", "expected_kl_nats='much' must be a number")],
    "stderr_nats": [(lambda v: {}, "stderr_nats={} must be a number")],
}


def damaged(path, field, change):
    values = PLANS["of a family"].to_dict()
    if change is None:
        del values[field]
    else:
        values[field] = change(values[field])
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [(field, *case) for field, cases in DAMAGE.items() for case in cases],
    ids=[f"{field}-{n}" for field, cases in DAMAGE.items() for n in range(len(cases))],
)
def test_damage_of_a_field_is_refused_with_the_file_and_the_field(field, change, message, tmp_path):
    path = tmp_path / "plan.json"
    damaged(path, field, change)
    with pytest.raises(ValueError, match=message) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    damaged(path, field, lambda value: value)  # variation: the same file without the damage
    assert Plan.load(path).num_steps == 3


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("sizes", lambda v: [[1], [2, 5]]),
        ("order", lambda v: [0, 1, 2, 3, 4, 5, 6, "7"]),
        ("order", lambda v: [float(place) for place in range(8)]),
        ("order", lambda v: [False, True, *range(2, 8)]),
        ("length", lambda v: True),
        ("num_steps", lambda v: 3.0),
        ("schedule", lambda v: 5),
        ("nll_nats", lambda v: True),
        ("seconds", lambda v: "fast"),
        ("question", lambda v: ["why"]),
        ("tokenizer_sha256", lambda v: 5),
        ("model_sha256", lambda v: 5),
        ("details", lambda v: "none"),
    ],
    ids=["ragged", "mixed", "floats", "truths", "truth", "float", "number", "yes", "text", "list", "int", "int", "str"],
)
def test_damage_that_slips_through_or_is_not_named_is_refused_too(field, change, tmp_path):
    path = tmp_path / "plan.json"
    damaged(path, field, change)
    if field == "length":
        path.write_text(json.dumps({**PLANS["of one token"].to_dict(), "length": True}))
    try:
        Plan.load(path)
    except Exception as caught:
        assert isinstance(caught, ValueError) and str(path) in str(caught) and field in str(caught), repr(caught)
    else:
        raise AssertionError("not refused")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(PLANS["of a family"].to_dict())[:100], "not valid JSON at line 1"),
        ("", "not valid JSON"),
        ("[1, 2]", "is not a plan"),
        ("null", "is not a plan"),
        ('"sizes"', "is not a plan"),
        ("{}", "is not a plan"),
        (json.dumps(d.Permutation(4).curve().to_dict()), "is not a plan"),
    ],
)
def test_files_that_hold_no_plan_are_refused_by_name(text, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    path.write_bytes(b'{"sizes": "\xff"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        Plan.load(path)
    with pytest.raises(FileNotFoundError):
        Plan.load(tmp_path / "none.json")


def test_a_plan_fits_only_models_of_its_length_and_tokenizer():
    plan = PLANS["of a family"]
    plan.check_fits(8)
    plan.check_fits(8, "a" * 64)
    PLANS["of a fixed order"].check_fits(3, "c" * 64)  # made without a tokenizer: fits any
    for arguments, message in (
        ((9,), r"--plan=p\.json: its length 8 must be the model's, 9; run dlm plan on this model"),
        ((8, "c" * 64), r"--plan=p\.json: it was made for another tokenizer \(sha256 a{12}, not c{12}\); run dlm plan"),
    ):
        with pytest.raises(ValueError, match=message):
            plan.check_fits(*arguments, name="--plan=p.json")


# ---------------------------------------------------------------------------------------------- questions


def candidate(order, schedule, steps, nll, excess, stderr=0.0, seconds=None, planning=None):
    sizes = tuple(int(s) for s in schedules.uniform_sizes(16, steps))
    return Candidate(order, schedule, sizes, nll, 0.1, excess, stderr, seconds=seconds, planning_nats=planning)


CANDIDATES = [
    candidate("random", "uniform", 1, 50.0, 20.0, 0.5, seconds=1.0),
    candidate("random", "uniform", 4, 35.0, 5.0, 0.5, seconds=2.0),
    candidate("random", "planned", 4, 33.0, 3.0, 0.5, seconds=2.5),
    candidate("spaced", "planned", 4, 32.0, 2.0, 2.0, seconds=2.5),
    candidate("random", "uniform", 8, 31.0, 1.0, 0.4, seconds=4.0),
    candidate("random", "planned", 8, 30.5, 0.5, 0.1, seconds=4.5),
    candidate("random", "uniform", 16, 30.0, 0.0, 0.0, seconds=8.0),
]


def chosen(**question):
    found, asked = plans.choose(CANDIDATES, **question)
    return (found.order, found.schedule, found.num_steps), asked


@pytest.mark.parametrize(
    ("question", "want", "asked"),
    [
        ({"num_steps": 4}, ("spaced", "planned", 4), "the best 4 steps"),
        ({"num_steps": 8}, ("random", "planned", 8), "the best 8 steps"),
        ({"num_steps": 1}, ("random", "uniform", 1), "the best 1 steps"),
        ({"max_latency": 2.5}, ("spaced", "planned", 4), "the best within 2.5 s a batch"),
        ({"max_latency": 2.4}, ("random", "uniform", 4), "the best within 2.4 s a batch"),
        ({"max_latency": 100.0}, ("random", "uniform", 16), "the best within 100 s a batch"),
        ({"max_kl": 25.0}, ("random", "uniform", 1), "the fewest steps whose error is at most 25 nats per sequence"),
        ({"max_kl": 4.0}, ("random", "planned", 4), "the fewest steps whose error is at most 4 nats per sequence"),
        ({"max_kl": 2.5}, ("random", "planned", 8), "the fewest steps whose error is at most 2.5 nats per sequence"),
        ({"max_kl": 0.0}, ("random", "uniform", 16), "the fewest steps whose error is at most 0 nats per sequence"),
        ({}, ("random", "uniform", 16), "the fewest steps whose quality is within 1% of the best"),
    ],
)  # fmt: skip
def test_every_question_has_its_answer(question, want, asked):
    assert chosen(**question) == (want, asked)
    # Variation: without the candidate that was chosen another one is.
    left = [c for c in CANDIDATES if (c.order, c.schedule, c.num_steps) != want]
    try:
        assert plans.choose(left, **question)[0] in left
    except ValueError as refused:
        assert next(iter(question)) in str(refused)


@pytest.mark.parametrize(("budget", "steps"), [(3.0, 8), (3.8, 8), (3.83, 4), (5.2, 4), (5.3, 4)])
def test_a_budget_is_kept_with_a_margin_of_the_standard_error(budget, steps):
    """3 +- 0.5 nats need a budget of 3 + 1.645 0.5; 2 +- 2 nats, better on average, need more than 5."""
    found, _ = plans.choose(CANDIDATES, max_kl=budget)
    assert found.num_steps == steps and found.excess_nats + 1.645 * found.excess_stderr <= budget
    assert (found.order == "spaced") == (budget > 2 + 1.645 * 2)
    sure = [dataclasses.replace(c, excess_stderr=0.0) for c in CANDIDATES]
    assert plans.choose(sure, max_kl=budget)[0].order == "spaced"  # variation: without errors there is no margin


def test_without_a_question_one_percent_is_given_for_fewer_steps():
    near = candidate("spaced", "planned", 6, 30.29, 0.29)
    far = candidate("spaced", "planned", 6, 30.31, 0.31)
    assert plans.choose([*CANDIDATES, near])[0] is near
    assert plans.choose([*CANDIDATES, far])[0].num_steps == 16
    best = candidate("golden", "planned", 6, 30.2, 0.2)
    assert plans.choose([*CANDIDATES, near, best])[0] is best  # of as many steps the best


@pytest.mark.parametrize("question", [{"num_steps": 4}, {"max_latency": 2.5}, {}], ids=str)
def test_candidates_are_chosen_by_the_rows_that_do_not_judge_them(question):
    lucky = candidate("lucky", "planned", 4, 29.0, -1.0, seconds=2.0, planning=34.0)
    solid = candidate("solid", "planned", 4, 33.0, 3.0, seconds=2.0, planning=30.0)
    assert lucky.score == 34.0 and CANDIDATES[0].score == 50.0
    assert plans.choose([lucky, solid], **question)[0] is solid
    unsplit = [dataclasses.replace(c, planning_nats=None) for c in (lucky, solid)]
    assert plans.choose(unsplit, **question)[0].order == "lucky"  # variation: with a single set of rows


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"num_steps": 3}, "num_steps=3: must be one of 1, 4, 8, 16"),
        ({"num_steps": 0}, "num_steps=0: must be one of 1, 4, 8, 16"),
        (
            {"max_kl": -0.5},
            r"max_kl=-0\.5: cannot be met; the least is 0 nats per sequence \(with a margin of 1\.645 standard "
            r"errors\), in 16 steps",
        ),
        ({"max_latency": 0.5}, r"max_latency=0\.5: cannot be met; the fastest, 1 steps, takes 1 s"),
        ({"num_steps": 4, "max_kl": 1.0}, "num_steps, max_kl: only one of them can be given"),
        ({"max_kl": 0.0, "max_latency": 1.0}, "max_kl, max_latency: only one"),
        ({"num_steps": 4, "max_kl": 1.0, "max_latency": 1.0}, "num_steps, max_kl, max_latency: only one"),
    ],
    ids=str,
)
def test_what_cannot_be_met_is_refused_and_the_message_says_what_could_be(question, message):
    with pytest.raises(ValueError, match=message):
        plans.choose(CANDIDATES, **question)


def test_what_a_refusal_says_could_be_met_is_met():
    rest = [c for c in CANDIDATES if c.num_steps < 16]
    with pytest.raises(ValueError, match=r"the least is 0\.6645 nats per sequence .*, in 8 steps"):
        plans.choose(rest, max_kl=0.66)
    assert plans.choose(rest, max_kl=0.6645)[0].num_steps == 8
    with pytest.raises(ValueError, match="max_latency: the sampler was not timed; plan with a workdir"):
        plans.choose([dataclasses.replace(c, seconds=None) for c in rest], max_latency=9.0)
    some = [dataclasses.replace(rest[0], seconds=None), *rest[1:]]
    assert plans.choose(some, max_latency=2.0)[0].num_steps == 4  # those that were not timed are left out


# ---------------------------------------------------------------------------------------------- tables


UNTIMED = [dataclasses.replace(c, seconds=None) for c in CANDIDATES]


@pytest.mark.parametrize("pool", [CANDIDATES, UNTIMED], ids=["timed", "untimed"])
def test_the_frontier_holds_whom_no_other_beats_in_time_or_else_in_steps(pool):
    found = plans.frontier(pool)
    kept = [pool.index(c) for c in found]
    assert kept == ([0, 1, 3, 4, 5, 6] if pool is CANDIDATES else [0, 3, 5, 6])
    assert plans.frontier(pool[::-1]) == found

    def is_beaten(c):
        dear = (lambda one: one.num_steps) if c.seconds is None else (lambda one: one.seconds)
        return any(dear(o) <= dear(c) and o.nll_nats <= c.nll_nats and o is not c for o in pool)

    assert [is_beaten(c) for c in pool] == [n not in kept for n in range(len(pool))]
    worse = dataclasses.replace(pool[6], sizes=(1,) * 15 + (1,), schedule="logodds")  # as good, no faster: not better
    assert len(plans.frontier([*pool, worse])) == len(found) and plans.frontier([]) == []


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        ((100, 2.0, 10), {"batches": 10, "seconds": 20.0, "chip_hours": 20 / 3600, "money": None}),
        ((101, 2.0, 10), {"batches": 11, "seconds": 22.0, "chip_hours": 22 / 3600, "money": None}),
        ((1, 3.0, 64, 2.0), {"batches": 1, "seconds": 3.0, "chip_hours": 3 / 3600, "money": 6 / 3600}),
        ((7200, 1.0, 2, 1.5, 4), {"batches": 3600, "seconds": 3600.0, "chip_hours": 4.0, "money": 6.0}),
        ((10, 1.0, 5, 0.0), {"batches": 2, "seconds": 2.0, "chip_hours": 2 / 3600, "money": 0.0}),
    ],
)
def test_samples_cost_whole_batches_of_time_chips_and_money(arguments, want):
    assert plans.cost_of(*arguments) == pytest.approx(want)
    assert plans.cost_of(arguments[0] + arguments[2], *arguments[1:]) != pytest.approx(want)


def test_steps_saved_are_the_fewest_of_the_choice_that_are_as_good():
    assert plans.steps_saved(CANDIDATES, "random", "planned") == {1: 4, 4: 4, 8: 8, 16: None}
    assert plans.steps_saved(CANDIDATES, "spaced", "planned") == {1: 4, 4: 4, 8: None, 16: None}
    assert plans.steps_saved(CANDIDATES, "random", "uniform") == {1: 1, 4: 4, 8: 8, 16: 16}
    assert plans.steps_saved(CANDIDATES, "random", "planned", ("spaced", "planned")) == {4: 8}
    assert plans.steps_saved(CANDIDATES, "golden", "planned") == dict.fromkeys((1, 4, 8, 16))
    fixed = dataclasses.replace(CANDIDATES[3], order=[1, 0])  # a fixed order is called "computed"
    assert plans.steps_saved([*CANDIDATES, fixed], "computed", "planned")[4] == 4


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([4, 4], "2 steps of 4 tokens"),
        ([5, 4], "2 steps of 4 to 5 tokens"),
        ([1, 1, 3, 2], "the first 2 tokens one at a time, then 2 steps of 2 to 3 tokens"),
        ([3, 2, 1, 1, 1], "2 steps of 2 to 3 tokens, then the last 3 tokens one at a time"),
        (
            [1, 1, 4, 4, 1, 1],
            "the first 2 tokens one at a time, then 2 steps of 4 tokens, then the last 2 tokens one at a time",
        ),
        ([4, 1, 4], "3 steps of 1 to 4 tokens"),
        ([1, 1, 1], "the first 3 tokens one at a time"),
        ([8], "1 steps of 8 tokens"),
    ],
    ids=str,
)
def test_sizes_are_told_in_words(sizes, words):
    assert plans.in_words(sizes) == plans.in_words(np.asarray(sizes)) == words
    assert plans.in_words([2, *sizes]) != words


def test_a_step_takes_the_time_that_was_measured_for_its_size_or_between():
    assert LATENCY.of([1, 1, 2]) == pytest.approx(3.5)
    assert LATENCY.of([6]) == pytest.approx(2.5) and LATENCY.of([3, 5]) == pytest.approx(1.75 + 2.25)
    assert LATENCY.of([8]) < LATENCY.of([4, 4]) < LATENCY.of([1] * 8)
    values = json.loads(json.dumps(LATENCY.to_dict()))
    assert values["step_sizes"] == [1, 2, 4, 8] and values["batch_size"] == 4
    assert values["autoregressive"] == {"uncached": 1.0}


# ---------------------------------------------------------------------------------------------- curves

CURVES = {
    "chain": d.stationary_markov_chain(M2, 16).curve(),
    "permutation": d.Permutation(12).curve(),
    "parity": d.Parity(8).curve(),
    "independent": InformationCurve.exact(np.full(6, 0.5)),
}


@pytest.mark.parametrize("name", CURVES)
def test_candidates_of_an_exact_curve_have_its_exact_errors(name):
    curve = CURVES[name]
    steps = range(1, curve.length + 1)
    found = plans.candidates_of_curve(curve, steps)
    assert len(found) == len(steps) * (len(schedules.FIXED) + 1)
    for c in found:
        assert c.order == "random" and sum(c.sizes) == curve.length and c.num_steps == len(c.sizes) in steps
        np.testing.assert_allclose(c.excess_nats, error.expected_kl(curve, c.sizes), atol=1e-12)
        np.testing.assert_allclose(c.nll_nats, c.excess_nats + curve.entropy.sum(), atol=1e-9)
        assert c.excess_stderr == c.stderr_nats == 0 and c.seconds is None and c.planning_nats is None
        if c.schedule == "planned":
            np.testing.assert_array_equal(c.sizes, schedules.optimal_sizes(curve, c.num_steps))
        else:
            np.testing.assert_array_equal(c.sizes, schedules.FIXED[c.schedule](curve.length, c.num_steps))
    for t in steps:
        same = {c.schedule: c.nll_nats for c in found if c.num_steps == t}
        assert same["planned"] <= min(same.values()) + 1e-12
    # Variation: sizes backwards have another error, where anything depends on them.
    turned = [error.expected_kl(curve, c.sizes[::-1]) - c.excess_nats for c in found]
    assert max(map(abs, turned)) > 0.01 or name == "independent"


def test_a_plan_of_an_exact_curve_is_the_fewest_steps_within_the_budget():
    curve = CURVES["chain"]
    found = plans.candidates_of_curve(curve, range(1, 17), LATENCY)
    for budget in (0.0, 0.1, 0.5, 1.0, 5.0):
        best, _ = plans.choose(found, max_kl=budget + 1e-9)
        sizes, kl = schedules.fewest_steps(curve, budget)
        assert best.num_steps == len(sizes) and best.excess_nats <= budget + 1e-9
        np.testing.assert_allclose(best.excess_nats, kl, atol=1e-9)
        assert best.seconds == pytest.approx(LATENCY.of(best.sizes))
        fewer = [c for c in found if c.num_steps < best.num_steps]
        assert all(c.excess_nats > budget for c in fewer)
    assert plans.choose(found, max_kl=0.5)[0].num_steps != plans.choose(found, max_kl=1.0)[0].num_steps


def test_planned_sizes_of_a_measured_curve_start_where_it_was_measured():
    counts = np.array([0, 1, 3, 7, 12, 15])
    losses = np.random.default_rng(0).normal(2 - counts / 10, 0.1, (40, 6))
    curve = InformationCurve.measured(16, counts, losses, np.arange(40))
    found = plans.candidates_of_curve(curve, (2, 4, 6, 8))
    planned = {c.num_steps: c for c in found if c.schedule == "planned"}
    assert planned.keys() == {2, 4, 6}  # 8 steps would need boundaries that were not measured
    assert {c.num_steps for c in found if c.schedule == "uniform"} == {2, 4, 6, 8}
    for c in planned.values():
        assert set(np.cumsum(c.sizes) - c.sizes) <= set(counts.tolist())
        want = losses[:, np.searchsorted(counts, np.cumsum(c.sizes) - c.sizes)] @ np.asarray(c.sizes)
        np.testing.assert_allclose([c.nll_nats, c.stderr_nats], statistics.ratio(want, np.ones(40), np.arange(40)))
    uniform = next(c for c in found if c.schedule == "uniform" and c.num_steps == 8)
    assert not set(np.cumsum(uniform.sizes) - uniform.sizes) <= set(counts.tolist())


def test_a_plan_takes_over_what_its_candidate_says():
    best, asked = plans.choose(CANDIDATES, num_steps=4)
    plan = Plan.of(best, 16, question=asked, tokenizer_sha256="a" * 64)
    assert (plan.length, plan.num_steps, plan.order, plan.schedule) == (16, 4, "spaced", "planned")
    assert plan.sizes.tolist() == list(best.sizes) == [4, 4, 4, 4] and plan.question == "the best 4 steps"
    assert (plan.nll_nats, plan.stderr_nats, plan.expected_kl_nats, plan.seconds) == (32.0, 0.1, 2.0, 2.5)
    other = Plan.of(CANDIDATES[0], 16)
    assert other.to_dict() != plan.to_dict() and other.question == ""


# ---------------------------------------------------------------------------------------------- surveys

LENGTH, COUNTS = 16, np.array([0, 1, 2, 4, 5, 8, 11, 13, 15])
GAPS = np.diff(np.append(COUNTS, LENGTH))
STRUCTURED = orders._spaced(LENGTH).tolist()


def synthetic(document, seed=0, counts=COUNTS):
    """{"random", "spaced", "computed": StepCosts} of rows whose losses fall, differ by row, and by document."""
    noise = np.random.default_rng(seed)
    document = np.asarray(document)
    rows, k = len(document), len(counts)
    gaps = np.diff(np.append(counts, LENGTH))
    num_bytes = noise.integers(14, 22, rows)
    shared = noise.normal(0, 0.1, (document.max() + 1, k))[document]
    mean_losses = 3 - 2 * np.sqrt(counts / LENGTH) + shared + noise.normal(0, 0.1, (rows, k))
    found = {
        "random": StepCosts(
            "random", LENGTH, counts, costs.exchangeable(counts, LENGTH, mean_losses), document, num_bytes
        )
    }
    for name, order in (("spaced", "spaced"), ("computed", STRUCTURED)):
        by_row = mean_losses[:, :, None] * gaps * noise.uniform(0.8, 1.1, (rows, k, k))
        by_row *= np.arange(k) >= np.arange(k)[:, None]
        found[name] = StepCosts(order, LENGTH, counts, by_row, document, num_bytes)
    return found


def survey_of(document, seed=0, counts=COUNTS, latency=None):
    found = synthetic(document, seed, counts)
    random = found["random"]
    losses = random.by_row.sum(axis=2) / (LENGTH - counts)
    curve = InformationCurve.measured(LENGTH, counts, losses, random.document)
    return Survey(curve, found, latency)


DOCUMENTS = np.repeat([3, 7, 8, 20, 21, 22, 30, 31], [4, 1, 6, 2, 5, 3, 2, 4])  # sizes of documents differ
STEPS = (1, 2, 3, 4, 6, 8, 12, 16)


def is_measured(sizes, counts=COUNTS):
    return set((np.cumsum(sizes) - sizes).tolist()) <= set(counts.tolist())


@pytest.mark.parametrize("document", [DOCUMENTS, [5, 5, 9], range(10), np.random.default_rng(0).permutation(DOCUMENTS)])
def test_no_document_is_both_planned_and_judged_on(document):
    document = np.asarray(document)
    plan_on, judge_on = plans.halves(document)
    assert (plan_on ^ judge_on).all() and plan_on.any() and judge_on.any()
    assert not set(document[plan_on].tolist()) & set(document[judge_on].tolist())
    assert abs(len(set(document[plan_on].tolist())) - len(set(document[judge_on].tolist()))) <= 1
    by_row = np.arange(len(document)) % 2 == 0  # variation: halves of rows would share documents
    shared = set(document[by_row].tolist()) & set(document[~by_row].tolist())
    assert shared or len(set(document.tolist())) == len(document)


def test_interpolated_costs_are_the_direct_sums_where_all_boundaries_were_measured():
    survey, checked = survey_of(DOCUMENTS), 0
    random = survey.costs["random"]
    for picked in itertools.chain.from_iterable(itertools.combinations(COUNTS[1:], n) for n in range(len(COUNTS))):
        sizes = np.diff([0, *picked, LENGTH])
        np.testing.assert_allclose(survey.interpolated_nll(sizes), random.nll(sizes), rtol=1e-10)
        checked += 1
    assert checked == 2 ** (len(COUNTS) - 1)
    assert not np.allclose(survey.interpolated_nll(sizes), random.nll(np.diff([0, *COUNTS[1:-1], LENGTH])))


@pytest.mark.parametrize("steps", STEPS)
def test_interpolated_costs_are_those_of_the_curve_in_the_mean(steps):
    survey = survey_of(DOCUMENTS)
    for make in schedules.FIXED.values():
        sizes = make(LENGTH, steps)
        nats = survey.interpolated_nll(sizes)
        want, stderr = error.negative_log_likelihood(survey.curve, sizes)
        np.testing.assert_allclose(statistics.ratio(nats, np.ones(len(nats)), DOCUMENTS), [want, stderr], rtol=1e-8)
    if steps == 12:
        with pytest.raises(ValueError, match="which was not measured"):
            survey.costs["random"].nll(schedules.uniform_sizes(LENGTH, steps))


def test_planned_sizes_are_planned_on_one_half_and_the_optimum_of_the_other_may_be_another():
    survey = survey_of(DOCUMENTS)
    plan_on, judge_on = plans.halves(DOCUMENTS)
    found = {(c.order_name, c.schedule, c.num_steps): c for c in survey.candidates(STEPS)}
    other = 0
    for name, table in survey.costs.items():
        planned = table.select(plan_on).planned_sizes(max(STEPS))
        judged = table.select(judge_on).planned_sizes(max(STEPS))
        for steps in STEPS:
            if steps > len(COUNTS):
                assert (name, "planned", steps) not in found
                continue
            assert found[name, "planned", steps].sizes == tuple(planned[steps].tolist())
            np.testing.assert_allclose(
                found[name, "planned", steps].planning_nats, table.nll(planned[steps])[plan_on].mean(), rtol=1e-10
            )
            other += planned[steps].tolist() != judged[steps].tolist()
    assert other > 0  # variation: the judging half would have chosen others


def test_judged_numbers_are_clustered_means_of_the_judging_half():
    survey = survey_of(DOCUMENTS, latency=LATENCY)
    _, judge_on = plans.halves(DOCUMENTS)
    owner, num_bytes = DOCUMENTS[judge_on], survey.costs["random"].num_bytes[judge_on]
    ones = survey.interpolated_nll(np.ones(LENGTH, int))[judge_on]
    found = survey.candidates(STEPS)
    assert {c.order_name for c in found} == {"random", "spaced", "computed"}
    for c in found:
        sizes, count = np.asarray(c.sizes), np.ones(judge_on.sum())
        table = survey.costs[c.order_name]
        nats = (survey.interpolated_nll(sizes) if c.order == "random" else table.nll(sizes))[judge_on]
        np.testing.assert_allclose([c.nll_nats, c.stderr_nats], statistics.ratio(nats, count, owner))
        excess = statistics.ratio(nats - ones, count, owner)
        np.testing.assert_allclose([c.excess_nats, c.excess_stderr], excess, atol=1e-12)
        bits = statistics.ratio(nats / math.log(2), num_bytes, owner)
        np.testing.assert_allclose([c.bits_per_byte, c.bits_per_byte_stderr], bits)
        assert c.seconds == pytest.approx(LATENCY.of(sizes)) and c.order in ("random", "spaced", STRUCTURED)
        assert abs(c.nll_nats - statistics.ratio(survey.interpolated_nll(sizes), np.ones(27), DOCUMENTS)[0]) > 1e-4


def test_one_token_at_a_time_in_random_order_has_no_excess_and_no_error_of_it():
    every = np.arange(LENGTH)
    found = survey_of(DOCUMENTS, counts=every).candidates([4, LENGTH])
    ones = [c for c in found if c.order == "random" and c.num_steps == LENGTH]
    assert ones and all(abs(c.excess_nats) < 1e-9 and c.excess_stderr < 1e-9 for c in ones)
    assert all(c.stderr_nats > 0.01 for c in ones)
    others = [c for c in found if c.order != "random" and c.num_steps == LENGTH]
    assert others and all(abs(c.excess_nats) > 1e-3 for c in others)  # variation: in other orders it differs


def test_orders_other_than_random_are_judged_only_where_their_steps_were_measured():
    found = survey_of(DOCUMENTS).candidates(STEPS)
    for c in found:
        assert c.order == "random" or is_measured(np.asarray(c.sizes))
    # Random order is judged everywhere: its curve is smooth.
    random = {(c.schedule, c.num_steps) for c in found if c.order == "random"}
    assert {(name, t) for name in schedules.FIXED for t in STEPS} <= random
    assert any(not is_measured(np.asarray(c.sizes)) for c in found if c.order == "random")
    every = {(c.order_name, c.schedule, c.num_steps) for c in found}
    assert ("spaced", "uniform", 4) not in every  # 12 was not measured
    assert ("spaced", "uniform", 2) in every


def test_steps_beyond_the_length_are_left_out():
    found = survey_of(DOCUMENTS).candidates([2, 16, 17, 40])
    assert {c.num_steps for c in found} == {2, 16}


def test_sizes_do_not_depend_on_rows_that_judge_them_nor_judgements_on_rows_that_planned():
    survey = survey_of(DOCUMENTS)
    plan_on, judge_on = plans.halves(DOCUMENTS)
    before = {(c.order_name, c.schedule, c.num_steps): c for c in survey.candidates(STEPS)}

    def with_other(rows):
        strange = synthetic(DOCUMENTS, seed=5)
        mixed = {
            name: dataclasses.replace(
                table, by_row=np.where(rows[:, None, None], strange[name].by_row * 0.5, table.by_row)
            )
            for name, table in survey.costs.items()
        }
        found = dataclasses.replace(survey, costs=mixed).candidates(STEPS)
        return {(c.order_name, c.schedule, c.num_steps): c for c in found}

    judged_elsewhere, planned_elsewhere = with_other(judge_on), with_other(plan_on)
    for key, c in before.items():
        assert judged_elsewhere[key].sizes == c.sizes and judged_elsewhere[key].planning_nats == c.planning_nats
        assert judged_elsewhere[key].nll_nats != c.nll_nats
        if key[1] != "planned":
            assert planned_elsewhere[key].nll_nats == c.nll_nats
            assert planned_elsewhere[key].planning_nats != c.planning_nats
    assert any(planned_elsewhere[key].sizes != c.sizes for key, c in before.items() if key[1] == "planned")


def test_a_survey_of_one_document_is_refused():
    with pytest.raises(ValueError, match="rows: at least 2 documents are needed, to plan on one and to judge on"):
        survey_of([4, 4, 4]).candidates([2])
    assert survey_of([4, 4, 5]).candidates([2])


def test_planned_minus_fixed_is_paired_on_the_judging_half():
    survey = survey_of(DOCUMENTS)
    plan_on, judge_on = plans.halves(DOCUMENTS)
    planned = survey.costs["random"].select(plan_on).planned_sizes(16)
    found = survey.planned_minus_fixed([4, 2, 2, 12])
    assert [(row["num_steps"], row["schedule"]) for row in found] == [
        (t, name) for t in (2, 4) for name in schedules.FIXED
    ]  # 12 steps would need boundaries that were not measured
    for row in found:
        fixed = schedules.FIXED[row["schedule"]](LENGTH, row["num_steps"])
        apart = survey.interpolated_nll(planned[row["num_steps"]]) - survey.interpolated_nll(fixed)
        want = statistics.ratio(apart[judge_on], np.ones(judge_on.sum()), DOCUMENTS[judge_on])
        np.testing.assert_allclose([row["difference_nats"], row["stderr_nats"]], want, atol=1e-12)
        same_rows = statistics.ratio(apart[plan_on], np.ones(plan_on.sum()), DOCUMENTS[plan_on])[0]
        assert abs(same_rows - want[0]) > 1e-6 or (planned[row["num_steps"]] == fixed).all()


def test_selected_rows_cost_what_they_cost():
    table = synthetic(DOCUMENTS)["computed"]
    rows = DOCUMENTS > 10
    sizes = np.array([1, 3, 4, 8])
    np.testing.assert_array_equal(table.select(rows).nll(sizes), table.nll(sizes)[rows])
    assert table.select(rows).document.tolist() == DOCUMENTS[rows].tolist()
    assert table.select(~rows).optimal_sizes(4)[4].tolist() != sizes.tolist() or len(table.select(rows).by_row) != 27


def test_a_survey_ends_in_a_plan_that_can_be_saved(tmp_path):
    survey = survey_of(DOCUMENTS, latency=LATENCY)
    found = survey.candidates(STEPS)
    computed = [c for c in found if c.order_name == "computed"]
    best, asked = plans.choose(computed, num_steps=4)
    details = {"frontier": [dataclasses.asdict(c) for c in plans.frontier(found)], "latency": LATENCY.to_dict()}
    Plan.of(best, LENGTH, question=asked, details=details).save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.order == STRUCTURED and again.num_steps == 4 and is_measured(again.sizes)
    assert [sum(one["sizes"]) for one in again.details["frontier"]] == [LENGTH] * len(details["frontier"])
    with pytest.raises(ValueError, match=r"max_kl=-99\.0: cannot be met; the least is "):
        plans.choose(found, max_kl=-99.0)


def test_a_budget_on_two_documents_says_what_could_be_met_or_that_they_are_too_few():
    found = survey_of([4, 4, 5]).candidates([1, 2, 16])
    assert any(c.excess_nats < 99 for c in found) and math.isnan(found[0].excess_stderr)
    try:
        plans.choose(found, max_kl=99.0)
    except ValueError as refused:
        assert "nan" not in str(refused)
