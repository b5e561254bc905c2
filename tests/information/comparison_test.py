"""Two curves beside each other: what changed, how surely, and where a schedule that was kept became worse."""

import itertools
import json

import numpy as np
import pytest
from scipy import special

from dlm_jax.information import InformationCurve, error, schedules
from dlm_jax.information import distributions as d
from dlm_jax.information.comparison import compare
from dlm_jax.information.curve import QUANTITIES

M2, STICKY = [[0.9, 0.1], [0.2, 0.8]], [[0.99, 0.01], [0.02, 0.98]]
CHAIN, SLOW = d.stationary_markov_chain(M2, 16).curve(), d.stationary_markov_chain(STICKY, 16).curve()


def uniform_over(rows):
    """The exact curve of equally likely rows, by counting: f(k) from the entropies of all subsets of positions."""
    rows = np.asarray(rows)
    length = rows.shape[1]
    totals = [0.0]
    for size in range(1, length + 1):
        entropies = []
        for places in itertools.combinations(range(length), size):
            _, counts = np.unique(rows[:, places], axis=0, return_counts=True)
            entropies.append(special.entr(counts / len(rows)).sum())
        totals.append(np.mean(entropies))
    return InformationCurve.exact(np.diff(totals))


def tagged_parity(length=4):
    """Rows whose token i is 2 s + b_i: a bit of an even string, and the name s of the whole string."""
    strings = [bits for bits in itertools.product((0, 1), repeat=length) if sum(bits) % 2 == 0]
    return np.array([[2 * name + bit for bit in bits] for name, bits in enumerate(strings)])


def without_tag(tokens):
    return np.asarray(tokens) % 2


def measured(seed, scale=0.02, length=16, documents=30, steep=1.0, power=1.0, characters=0.0):
    noise = np.random.default_rng(seed)
    counts = np.array([0, 1, 2, 4, 8, 11, 13, 14, length - 1]) if length == 16 else np.arange(length)
    losses = 2 - steep * (counts / length) ** power + noise.normal(0, scale, (documents, len(counts)))
    return InformationCurve.measured(length, counts, losses, np.arange(documents), characters=characters)


def rows_of(payload):
    return {(row["num_steps"], row["schedule"]): row for row in payload["schedules"]}


@pytest.mark.parametrize("curve", [CHAIN, measured(0), d.Parity(6).curve()], ids=["chain", "measured", "parity"])
def test_a_curve_compared_with_itself_shows_no_change_and_no_warning_of_a_schedule(curve):
    payload = compare(curve, curve, (1, 2, 4))
    assert payload["quantities"].keys() == set(QUANTITIES)
    for units in payload["quantities"].values():
        for found in units.values():
            assert found["change"] == 0 and found["before"] == found["after"]
            assert found["low"] <= 0 <= found["high"] and found["low"] == -found["high"]
    assert len(payload["schedules"]) == 3 * (len(schedules.FIXED) + 2)
    assert all(row["change"] == 0 for row in payload["schedules"])
    assert len(payload["warnings"]) == 1 and "plan anew after cleaning" in payload["warnings"][0]
    # Variation: a curve that falls elsewhere does not pass the same check.
    other = compare(curve, InformationCurve.exact(curve.entropy[0] - 0.1 * np.arange(curve.length) ** 2), (1, 2, 4))
    assert any(row["change"] != 0 for row in other["schedules"])


def test_quantities_are_those_of_the_curves_per_sequence_per_token_and_per_character():
    before, after = measured(0, characters=20.0), measured(1, length=8, steep=0.5, characters=18.0)
    payload = compare(before, after, ())
    for name, units in payload["quantities"].items():
        (old, old_error), (new, new_error) = before.quantity(name), after.quantity(name)
        sizes = {"per_sequence": (1, 1), "per_token": (16, 8), "per_character": (20, 18)}
        assert units.keys() == sizes.keys()
        for unit, (old_size, new_size) in sizes.items():
            found = units[unit]
            np.testing.assert_allclose([found["before"], found["after"]], [old / old_size, new / new_size])
            np.testing.assert_allclose(found["change"], new / new_size - old / old_size)
            np.testing.assert_allclose(found["stderr"], np.hypot(old_error / old_size, new_error / new_size))
            half = 1.96 * found["stderr"]
            np.testing.assert_allclose([found["low"], found["high"]], [found["change"] - half, found["change"] + half])
            assert found["stderr"] > 0
        assert units["per_token"]["change"] != units["per_sequence"]["change"]
    for one in (measured(0), CHAIN):  # variation: without characters there is no such column
        assert "per_character" not in compare(one, after, ())["quantities"]["total_correlation"]


def test_schedules_have_their_errors_under_both_curves():
    payload = compare(CHAIN, SLOW, (2, 4, 16))
    found = rows_of(payload)
    assert {t for t, _ in found} == {2, 4, 16}
    for (steps, name), row in found.items():
        old = new = schedules.optimal_sizes(CHAIN, steps)
        if name == "planned anew":
            new = schedules.optimal_sizes(SLOW, steps)
        elif name in schedules.FIXED:
            old = new = schedules.FIXED[name](16, steps)
        else:
            assert name == "planned before"
        np.testing.assert_allclose(row["before"], error.expected_kl(CHAIN, old), atol=1e-12)
        np.testing.assert_allclose(row["after"], error.expected_kl(SLOW, new), atol=1e-12)
        np.testing.assert_allclose(row["change"], row["after"] - row["before"], atol=1e-12)
        assert row["stderr"] == 0
    for steps in (2, 4):
        assert found[steps, "planned anew"]["after"] < found[steps, "planned before"]["after"] - 1e-3
        fixed = [found[steps, name]["after"] for name in schedules.FIXED]
        assert found[steps, "planned anew"]["after"] <= min(fixed) + 1e-12


def test_errors_of_measured_curves_enter_the_comparison():
    before, after = measured(0), measured(1, power=0.3)
    for (steps, name), row in rows_of(compare(before, after, (4, 8))).items():
        if name in schedules.FIXED:
            sizes = schedules.FIXED[name](16, steps)
            (old, old_error), (new, new_error) = (error.expected_kl_with_error(c, sizes) for c in (before, after))
            np.testing.assert_allclose([row["before"], row["after"]], [old, new])
            np.testing.assert_allclose(row["stderr"], np.hypot(old_error, new_error))
            assert row["stderr"] > 0
        elif name == "planned before":  # sizes start where the curve was measured
            sizes = schedules.optimal_sizes(before, steps, counts=before.counts)
            np.testing.assert_allclose(row["after"], error.expected_kl_with_error(after, sizes)[0])
            other = schedules.optimal_sizes(after, steps, counts=after.counts)
            assert not np.array_equal(sizes, other)


def test_more_steps_than_tokens_are_left_out_and_more_than_counts_are_capped():
    assert {t for t, _ in rows_of(compare(CHAIN, SLOW, (4, 16, 17, 32)))} == {4, 16}
    short = d.stationary_markov_chain(M2, 8).curve()
    assert {t for t, _ in rows_of(compare(CHAIN, short, (4, 8, 9)))} == {4, 8}
    found = rows_of(compare(measured(0), measured(1), (12,)))  # 9 counts were measured
    sizes = schedules.optimal_sizes(measured(0), 9, counts=measured(0).counts)
    want = error.expected_kl_with_error(measured(0), sizes)[0]
    np.testing.assert_allclose(found[12, "planned anew"]["before"], want)


def test_a_plan_is_not_carried_over_to_another_length():
    short = d.stationary_markov_chain(M2, 8).curve()
    assert {name for _, name in rows_of(compare(CHAIN, short, (4,)))} == {*schedules.FIXED, "planned anew"}
    assert (4, "planned before") in rows_of(compare(CHAIN, SLOW, (4,)))


# ---------------------------------------------------------------------------------------------- warnings


def test_cleaning_never_raises_the_quantities_or_the_error_of_one_step():
    """Merging tokens (THEORY 7): any map of single tokens; here of random rows, and the one of the next test."""
    noise = np.random.default_rng(0)
    pools = [noise.integers(0, 4, (6, 4)) for _ in range(10)]
    cases = [(uniform_over(rows), uniform_over(rows // 2)) for rows in pools]
    cases.append((uniform_over(tagged_parity()), uniform_over(without_tag(tagged_parity()))))
    rises = 0
    for before, after in cases:
        payload = compare(before, after, (1, 3))
        for name in ("total_correlation", "mutual_information"):
            assert payload["quantities"][name]["per_sequence"]["change"] <= 1e-9
        assert rows_of(payload)[1, "uniform"]["change"] <= 1e-9
        rises += any(row["change"] > 1e-9 for row in payload["schedules"])
    assert rises > 0  # variation: of several steps it does rise


def test_a_fixed_schedule_whose_error_rises_after_cleaning_is_warned_of():
    """Sizes (1, 1, 2): one token of a tagged string decides the rest; without its tag only the last bit is decided."""
    before, after = uniform_over(tagged_parity()), uniform_over(without_tag(tagged_parity()))
    np.testing.assert_allclose(before.entropy, [np.log(8), 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(after.entropy, [np.log(2)] * 3 + [0], atol=1e-12)
    assert schedules.uniform_sizes(4, 3).tolist() == [1, 1, 2]
    payload = compare(before, after, (3,))
    row = rows_of(payload)[3, "uniform"]
    np.testing.assert_allclose([row["before"], row["after"]], [0, np.log(2)], atol=1e-12)
    named = [text for text in payload["warnings"] if "fixed schedule 'uniform' at T = 3 rises by 0.693" in text]
    assert len(named) == 1 and "nats per sequence" in named[0]
    # Sizes (2, 1, 1) and those planned anew are exact after cleaning: no warning of them.
    assert rows_of(payload)[3, "planned anew"]["after"] == pytest.approx(0, abs=1e-12)
    assert not any("planned anew" in text for text in payload["warnings"][:-1])
    assert payload["warnings"][-1].startswith("cleaning never raises mutual information")
    # Variation: cleaning the other way round, from clean to tagged, lowers that error.
    back = compare(after, before, (3,))
    assert not any("'uniform' at T = 3" in text for text in back["warnings"])


@pytest.mark.parametrize(("steep", "is_sure"), [(1.02, False), (1.1, False), (1.6, True)])
def test_a_rise_within_two_errors_is_no_warning(steep, is_sure):
    """The same noise twice, so that the rise is that of the slope and nothing else."""
    payload = compare(measured(0, scale=0.1), measured(0, scale=0.1, steep=steep), (2, 4))
    found = rows_of(payload)
    assert all(row["change"] > 0 and row["stderr"] > 0 for row in found.values())
    warned = {key for key in found if any(f"{key[1]!r} at T = {key[0]} rises" in w for w in payload["warnings"])}
    surely = {key for key, row in found.items() if row["change"] > 2 * row["stderr"] and key[1] != "planned anew"}
    assert warned == surely and len(payload["warnings"]) == len(surely) + 1
    assert bool(surely) == is_sure


def test_the_comparison_is_plain_values():
    payload = compare(measured(0, characters=9.0), measured(1, steep=2.0), (4, 8))
    assert json.loads(json.dumps(payload)) == payload
    assert payload != compare(measured(0), measured(2), (4, 8))
