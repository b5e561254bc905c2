"""Counts of pairs, without a model: f(0), f(1) and pair informations within their own errors of the exact curves."""

import functools
import json
import pathlib
import runpy
import types

import numpy as np
import pytest
from scipy import special

from dlm_jax.information import distributions as d
from dlm_jax.information import pairs

golden = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("golden.py"))))

LENGTH, ROWS = 12, 3000
STICKY_6 = 0.7 * np.eye(6) + 0.3 * np.outer(np.ones(6), [0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
TOPICS = ([0.5, 0.3, 0.2], [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
BEDS = {
    "M2": d.stationary_markov_chain(golden.M2, LENGTH),
    "M3": d.stationary_markov_chain(golden.M3, LENGTH),
    "sticky of six": d.stationary_markov_chain(STICKY_6, LENGTH),
    "noisy bit": golden.noisy_bit(0.1, LENGTH),
    "mix3": golden.mix3(LENGTH),
    "topics": d.Exchangeable(*TOPICS, LENGTH),
    "independent of two": d.Independent(np.tile([0.7, 0.3], (LENGTH, 1))),
    "independent of twenty": d.Independent(np.full((LENGTH, 20), 1 / 20)),
}
HUNDRED = d.Independent(np.full((LENGTH, 100), 0.01))


def sample(bed, num_rows, seed):
    """int[N, L], drawn by numpy: nothing is compiled."""
    noise = np.random.default_rng(seed)

    def choose(law):  # float[N, V]
        return (noise.random((len(law), 1)) > law.cumsum(axis=1)[:, :-1]).sum(axis=1)

    if isinstance(bed, d.MarkovChain):
        tokens = [choose(np.tile(bed.initial, (num_rows, 1)))]
        for _ in range(bed.length - 1):
            tokens.append(choose(bed.transition[tokens[-1]]))
        return np.stack(tokens, axis=1)
    if isinstance(bed, d.Exchangeable):
        laws = bed.probs[choose(np.tile(bed.weights, (num_rows, 1)))]
    else:
        laws = np.tile(np.exp(bed.log_probs[0]), (num_rows, 1))
    return np.stack([choose(laws) for _ in range(bed.length)], axis=1)


@functools.cache
def drawn(name, num_rows=ROWS, seed=1):
    return sample(BEDS[name], num_rows, seed)


@functools.cache
def estimated(name):
    return pairs.estimate(drawn(name), np.arange(ROWS), BEDS[name].vocab_size)


def exact_information(bed, distance, classes=None):
    """I_d, nats, from the joint law of two tokens; of merged classes where a map is given."""
    if isinstance(bed, d.MarkovChain):
        joint = bed.initial[:, None] * np.linalg.matrix_power(bed.transition, distance)
    elif isinstance(bed, d.Exchangeable):
        joint = np.einsum("m,mu,mv->uv", bed.weights, bed.probs, bed.probs)
    else:
        law = np.exp(bed.log_probs[0])
        joint = np.outer(law, law)
    if classes is not None:
        merge = np.eye(max(classes) + 1)[classes]
        joint = merge.T @ joint @ merge
    return special.entr(joint.sum(0)).sum() + special.entr(joint.sum(1)).sum() - special.entr(joint).sum()


def agrees(found, want):
    """Whether (value, standard error) lies within four errors of the truth."""
    value, stderr = found
    return bool(abs(value - want) <= 4 * stderr + 1e-12)


def plug_in_information(left, right, size):
    counts = np.zeros((size, size))
    np.add.at(counts, (left.ravel(), right.ravel()), 1)
    share = counts / counts.sum()
    return special.entr(share.sum(0)).sum() + special.entr(share.sum(1)).sum() - special.entr(share).sum()


def plug_in_entropy(tokens, size):
    return special.entr(np.bincount(tokens.ravel(), minlength=size) / tokens.size).sum()


@pytest.mark.parametrize("name", BEDS)
def test_the_exact_pair_informations_of_these_tests_give_the_exact_curves(name):
    """THEORY 2.3: f(1) = f(0) - [2 / (L (L - 1))] sum_d (L - d) I_d; so both sides of the tests below are right."""
    f = BEDS[name].curve().entropy
    gaps = np.arange(1, LENGTH)
    resolved = np.array([exact_information(BEDS[name], gap) for gap in gaps]) @ (LENGTH - gaps)
    np.testing.assert_allclose(f[0] - 2 / (LENGTH * (LENGTH - 1)) * resolved, f[1], atol=1e-12)
    assert "independent" in name or abs(f[0] - 1 / (LENGTH * (LENGTH - 1)) * resolved - f[1]) > 1e-3


def misses(found, bed):
    """What an estimate is more than four errors away from: "f(0)", "f(1)", or a distance."""
    f, wrong = bed.curve().entropy, []
    for name, pair, want in (("f(0)", found.unigram_entropy, f[0]), ("f(1)", found.one_revealed_entropy, f[1])):
        wrong += [] if agrees(pair, want) else [name]
    for distance, *pair in zip(found.distances, found.pair_information, found.pair_stderr, strict=True):
        wrong += [] if agrees(pair, exact_information(bed, distance)) else [int(distance)]
    return wrong


@pytest.mark.parametrize("name", BEDS)
def test_estimates_are_within_four_errors_of_the_exact_curve_and_of_no_other(name):
    found = estimated(name)
    assert not misses(found, BEDS[name])
    assert 0 < found.one_revealed_entropy[1] < 0.02 and (found.pair_stderr < 0.02).all()
    assert all(misses(found, BEDS[other]) for other in BEDS if other != name)  # variation


@pytest.mark.parametrize("name", ["M2", "sticky of six", "topics"])
def test_dependence_that_is_destroyed_is_not_found_any_more(name):
    tokens = drawn(name)
    shuffled = np.random.default_rng(0).permutation(tokens.ravel()).reshape(tokens.shape)
    found = pairs.estimate(shuffled, np.arange(ROWS), BEDS[name].vocab_size)
    assert all(agrees(pair, 0.0) for pair in zip(found.pair_information, found.pair_stderr, strict=True))
    assert agrees(found.one_revealed_entropy, found.unigram_entropy[0])
    assert not agrees(estimated(name).one_revealed_entropy, estimated(name).unigram_entropy[0])


@pytest.mark.parametrize("num_rows", [100, 400, 1600])
def test_the_plug_in_entropy_of_tokens_fails_where_the_corrected_one_holds(num_rows):
    tokens = sample(HUNDRED, num_rows, 3)
    found = pairs.estimate(tokens, np.arange(num_rows), 100).unigram_entropy
    assert agrees(found, np.log(100))
    # A hundred equal tokens: (100 - 1) / 2N too low, many errors of an entropy that hardly varies.
    assert plug_in_entropy(tokens, 100) < np.log(100) - 2 * found[1]
    assert found[0] - plug_in_entropy(tokens, 100) == pytest.approx(99 / (2 * tokens.size))
    assert not agrees(found, np.log(50))


OVERCORRECTED = "pairs.estimate scales the unrelated information by the number of pairs: too much for few pairs"


@pytest.mark.parametrize("num_rows", [100, 400])
def test_plug_in_estimates_of_independent_tokens_fail_where_the_corrected_ones_hold(num_rows):
    tokens = sample(HUNDRED, num_rows, 3)
    found = pairs.estimate(tokens, np.arange(num_rows), 100, num_distances=100)
    assert found.num_classes == 100
    assert agrees(found.one_revealed_entropy, np.log(100))
    resolved = 0.0
    for distance, value, stderr in zip(found.distances, found.pair_information, found.pair_stderr, strict=True):
        assert agrees((value, stderr), 0.0), distance
        biased = plug_in_information(tokens[:, :-distance], tokens[:, distance:], 100)
        assert not agrees((biased, stderr), 0.0), distance
        resolved += 2 / (LENGTH * (LENGTH - 1)) * (LENGTH - distance) * biased
    assert len(found.distances) == LENGTH - 1  # all of them, so that this is the plug-in f(1)
    assert not agrees((plug_in_entropy(tokens, 100) - resolved, found.one_revealed_entropy[1]), np.log(100))


def test_the_correction_is_right_for_the_farthest_pairs_which_are_few():
    """30 corpora of rows that stick to a token, 300 rows each; at distance L - 1 there is one pair a row."""
    bed, found = BEDS["sticky of six"], []
    for seed in range(30):
        tokens = drawn("sticky of six", 300, 200 + seed)
        plug_in = plug_in_information(tokens[:, :1], tokens[:, -1:], 6)
        found.append((pairs.estimate(tokens, np.arange(300), 6).pair_information[-1], plug_in))
    want, errors = exact_information(bed, LENGTH - 1), np.std(found, axis=0) / np.sqrt(len(found))
    assert not agrees((np.mean(found, axis=0)[1], errors[1]), want)  # variation: without correction it is too high
    assert agrees((np.mean(found, axis=0)[0], errors[0]), want)


def test_four_errors_are_exceeded_about_never_and_one_error_often():
    """The jackknife is neither timid nor bold: 40 corpora of M2, of 300 rows each."""
    bed, apart = BEDS["M2"], []
    for seed in range(40):
        found = pairs.estimate(drawn("M2", 300, 100 + seed), np.arange(300), 2)
        for (value, stderr), want in (
            (found.unigram_entropy, bed.curve().entropy[0]),
            (found.one_revealed_entropy, bed.curve().entropy[1]),
            ((found.pair_information[0], found.pair_stderr[0]), exact_information(bed, 1)),
        ):
            apart.append(abs(value - want) / stderr)
    assert np.mean(np.asarray(apart) > 4) < 0.02
    assert 0.15 < np.mean(np.asarray(apart) > 1) < 0.5  # 0.34 for ten groups
    assert np.mean(np.asarray(apart) > 0.2) > 0.6  # variation: five times the error would be far too much


# ---------------------------------------------------------------------------------------------- documents


def test_rows_of_one_document_are_one_unit():
    """Every row five times: as rows of one document they add no certainty, as documents of their own they seem to."""
    tokens = drawn("M3", 300)
    repeated, owner = np.repeat(tokens, 5, axis=0), np.repeat(np.arange(300), 5)
    once = pairs.estimate(tokens, np.arange(300), 3)
    together = pairs.estimate(repeated, owner, 3)
    np.testing.assert_allclose(together.pair_stderr[0], once.pair_stderr[0], rtol=0.2)
    order = np.random.default_rng(0).permutation(1500)  # apart: copies fall into different groups
    apart = pairs.estimate(repeated[order], np.arange(1500), 3)
    assert apart.pair_stderr[0] < 0.8 * once.pair_stderr[0]


def test_names_of_documents_and_the_turn_of_the_rows_do_not_matter():
    tokens, owner = drawn("M3", 300), np.arange(300) // 3
    first = pairs.estimate(tokens, owner, 3)
    named = pairs.estimate(tokens, owner * 7 - 50, 3)
    assert named.to_dict() == first.to_dict()
    other = pairs.estimate(tokens, np.random.default_rng(0).permutation(owner), 3)  # variation: other documents
    assert other.pair_stderr[0] != first.pair_stderr[0]


def test_pairs_are_counted_inside_rows_only():
    """Rows of one repeated bit: neighbours inside a row agree, neighbours across its end do not."""
    tokens = np.tile(np.random.default_rng(0).integers(0, 2, (ROWS, 1)), (1, LENGTH))
    found = pairs.estimate(tokens, np.arange(ROWS), 2)
    np.testing.assert_allclose(found.pair_information, np.log(2), atol=5e-3)
    np.testing.assert_allclose(found.one_revealed_entropy[0], 0, atol=5e-3)
    across = pairs.estimate(np.roll(tokens.ravel(), LENGTH // 2).reshape(-1, LENGTH), np.arange(ROWS), 2)
    assert across.pair_information[-1] < 0.01  # variation: rows cut elsewhere, the ends no longer agree


# ---------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("name", ["sticky of six", "topics"])
@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_merged_classes_give_the_information_of_the_merged_tokens_which_is_never_more(name, num_classes):
    bed, whole = BEDS[name], estimated(name)
    if num_classes >= bed.vocab_size:
        num_classes = 2
    found = pairs.estimate(drawn(name), np.arange(ROWS), bed.vocab_size, num_classes=num_classes)
    frequent = np.argsort(-np.bincount(drawn(name).ravel()), kind="stable")
    classes = np.full(bed.vocab_size, num_classes - 1)
    classes[frequent[: num_classes - 1]] = np.arange(num_classes - 1)
    for place, distance in enumerate(found.distances):
        pair = found.pair_information[place], found.pair_stderr[place]
        assert agrees(pair, exact_information(bed, distance, classes)), distance
    assert found.unigram_entropy == whole.unigram_entropy  # of the tokens themselves
    noise = np.hypot(found.pair_stderr, whole.pair_stderr)
    assert (found.pair_information <= whole.pair_information + 2 * noise).all()
    assert found.pair_information[0] < whole.pair_information[0] - 4 * noise[0]
    assert found.one_revealed_entropy[0] > whole.one_revealed_entropy[0]
    # Variation: it is not an estimate of f(1) any more, but an upper one.
    assert not agrees(found.one_revealed_entropy, bed.curve().entropy[1])
    assert found.to_dict()["is_lower_estimate"] and not whole.to_dict()["is_lower_estimate"]


def test_a_single_class_knows_nothing_and_more_classes_than_tokens_are_all_tokens():
    one = pairs.estimate(drawn("M3"), np.arange(ROWS), 3, num_classes=1)
    assert np.abs(one.pair_information).max() < 1e-12
    assert one.one_revealed_entropy[0] == pytest.approx(one.unigram_entropy[0], abs=1e-12)
    many = pairs.estimate(drawn("M3"), np.arange(ROWS), 3, num_classes=1000)
    assert many.to_dict() == estimated("M3").to_dict() and many.num_classes == 3
    assert not agrees(estimated("M3").one_revealed_entropy, one.unigram_entropy[0])


def test_hundred_independent_tokens_stay_independent_when_merged():
    tokens = sample(HUNDRED, 1000, 5)
    found = pairs.estimate(tokens, np.arange(1000), 100, num_classes=16)
    assert all(agrees(pair, 0.0) for pair in zip(found.pair_information, found.pair_stderr, strict=True))
    assert agrees(found.one_revealed_entropy, np.log(100)) and not agrees(found.one_revealed_entropy, np.log(16))


def test_tokens_that_do_not_occur_change_nothing():
    found = pairs.estimate(drawn("M2") * 40 + 3, np.arange(ROWS), 50)
    plain = estimated("M2")
    np.testing.assert_allclose(found.one_revealed_entropy, plain.one_revealed_entropy, atol=1e-12)
    np.testing.assert_allclose(found.pair_information, plain.pair_information, atol=1e-12)
    other = pairs.estimate(1 - drawn("M2") * drawn("M2")[:, ::-1], np.arange(ROWS), 50)
    assert np.abs(other.pair_information - plain.pair_information).max() > 0.01


# ---------------------------------------------------------------------------------------------- distances


@pytest.mark.parametrize(("length", "num_distances"), [(2, 16), (3, 16), (12, 4), (12, 100), (64, 8), (64, 1)])
def test_distances_are_spread_from_one_to_the_length_minus_one(length, num_distances):
    tokens = sample(d.stationary_markov_chain(golden.M2, length), 50, 0)
    found = pairs.estimate(tokens, np.arange(50), 2, num_distances=num_distances)
    assert found.distances[0] == 1 and len(found.distances) <= num_distances
    assert num_distances == 1 or found.distances[-1] == length - 1
    assert (np.diff(found.distances) > 0).all()
    assert found.by_distance.shape == (length - 1,)
    np.testing.assert_allclose(found.by_distance[found.distances - 1], found.pair_information, atol=1e-12)
    weights = 2 * (length - np.arange(1, length)) / (length * (length - 1))
    np.testing.assert_allclose(weights.sum(), 1)
    want = found.unigram_entropy[0] - weights @ found.by_distance
    np.testing.assert_allclose(found.one_revealed_entropy[0], want, atol=1e-12)
    assert abs(found.unigram_entropy[0] - weights[::-1] @ found.by_distance - want) > 1e-6 or length <= 2 or (
        num_distances == 1
    )  # fmt: skip


def test_a_few_distances_are_enough_for_a_chain_whose_information_fades():
    bed = d.stationary_markov_chain(golden.STICKY, 64)
    tokens = sample(bed, 1500, 2)
    few = pairs.estimate(tokens, np.arange(1500), 2, num_distances=12)
    assert agrees(few.one_revealed_entropy, bed.curve().entropy[1])
    assert not agrees(few.one_revealed_entropy, bed.curve().entropy[0])
    near = pairs.estimate(tokens, np.arange(1500), 2, num_distances=1)  # variation: that of neighbours, taken for all
    assert not agrees(near.one_revealed_entropy, bed.curve().entropy[1])


def test_plain_values_are_plain_and_complete():
    found = estimated("M2")
    values = json.loads(json.dumps(found.to_dict()))
    assert values == found.to_dict()
    assert values["unigram_entropy_nats"] == list(found.unigram_entropy)
    assert values["one_revealed_entropy_nats"] == list(found.one_revealed_entropy)
    assert values["pair_information_nats"] == found.pair_information.tolist()
    assert (values["length"], values["vocab_size"], values["num_classes"]) == (LENGTH, 2, 2)
    assert values != json.loads(json.dumps(estimated("M3").to_dict()))


@pytest.mark.parametrize(
    ("tokens", "document", "message"),
    [
        (np.zeros((5, 8), int), [3] * 5, r"tokens: 1 documents, rows \[5, 8\]: at least 2 documents"),
        (np.zeros((0, 8), int), [], r"tokens: 0 documents, rows \[0, 8\]"),
        (np.zeros((5, 1), int), range(5), r"tokens: 5 documents, rows \[5, 1\]: .* rows of 2 tokens are needed"),
        (np.zeros(5, int), range(5), r"tokens: 5 documents, rows \[5\]"),
    ],
)
def test_too_few_documents_or_tokens_are_refused(tokens, document, message):
    with pytest.raises(ValueError, match=message):
        pairs.estimate(tokens, np.asarray(list(document)), 2)
    assert pairs.estimate(np.zeros((2, 2), int), np.arange(2), 2).one_revealed_entropy == (0.0, 0.0)
