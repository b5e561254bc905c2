"""Curves of a corpus: what is linear stays linear, errors are clustered, damaged files are refused by field."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax.information import curve as curves
from dlm_jax.information import distributions as d
from dlm_jax.information import error, statistics, uniform_sizes
from dlm_jax.information.curve import InformationCurve

M2 = [[0.9, 0.1], [0.2, 0.8]]


def spaced_counts(length, most):
    """`most` counts from 0 to length - 1, evenly spaced in the log-odds of the revealed share."""
    for num in range(most, 8 * most):
        odds = np.linspace(-1, 1, num) * math.log(2 * length - 1)
        counts = np.unique(np.clip(np.round(length / (1 + np.exp(-odds)) - 0.5), 0, length - 1).astype(int))
        if len(counts) == most:
            return counts
    raise ValueError(f"{most} counts of {length}")


def losses_of(counts, length=8, rows=60, documents=17, seed=0):
    """Losses that fall with the counts, correlated within a row and within a document."""
    noise = np.random.default_rng(seed)
    document = noise.integers(0, documents, rows)
    shared = noise.normal(size=(documents, len(counts)))[document]
    losses = 2 - np.asarray(counts) / length + 0.1 * noise.normal(size=(rows, len(counts))) + 0.2 * shared
    return losses, document


def measured(counts=(0, 1, 3, 5, 6, 7), length=8, **about):
    losses, document = losses_of(counts, length)
    about = {"predictive_entropies": losses * 0.99 + 0.01, "characters": 30.5, "provenance": {"rows": "test"}} | about
    return InformationCurve.measured(
        length, counts, losses, document, tokenizer_sha256="a" * 64, model_sha256="b" * 64, **about
    )


CURVES = {
    "measured": measured(),
    "exact": d.Permutation(8).curve(),
    "of_one_token": InformationCurve.exact([0.5]),
    "of_one_document": InformationCurve.measured(4, [0, 2, 3], np.ones((3, 3)), [5, 5, 5]),
    "without_predictions": measured(predictive_entropies=None),
}


@pytest.mark.parametrize("name", CURVES)
def test_a_saved_curve_is_loaded_again_number_by_number(name, tmp_path):
    curve = CURVES[name]
    curve.save(tmp_path / "curve.json")
    again = InformationCurve.load(tmp_path / "curve.json")
    for field in ("entropy", "counts", "raw_entropy", "covariance", "predictive_entropy", "calibration_stderr"):
        np.testing.assert_array_equal(getattr(again, field), getattr(curve, field), strict=True)
    for field in ("num_rows", "num_documents", "characters", "tokenizer_sha256", "model_sha256", "provenance"):
        assert getattr(again, field) == getattr(curve, field)
    assert json.dumps(again.summary()) == json.dumps(curve.summary())
    # Variation: another curve is told from it.
    InformationCurve.exact(curve.entropy + 0.1).save(tmp_path / "curve.json")
    assert np.abs(InformationCurve.load(tmp_path / "curve.json").entropy - curve.entropy).max() > 0.09


DAMAGE = {
    # field: [(what becomes of its value, or None: it is missing; what the message says)]
    "format": [(None, "format=None must be 1"), (lambda v: 2, "format=2"), (lambda v: "1", "format='1'")],
    "length": [
        (None, "length=None"),
        (lambda v: 8.0, "length=8.0"),
        (lambda v: 0, "length=0"),
        (lambda v: 9, "counts="),
        (lambda v: "8", "length='8'"),
    ],
    "counts": [
        (None, "counts must be a list of numbers"),
        (lambda v: "all", "counts must be a list of numbers"),
        (lambda v: [v], r"counts has shape \[1, 6\]"),
        (lambda v: v[::-1], "counts=.* must increase from 0 to 7"),
        (lambda v: [0, 3, 1, 5, 6, 7], "counts=.* must increase"),
        (lambda v: [0, 1, 1, 5, 6, 7], "counts=.* must increase"),
        (lambda v: v[1:], "counts=.* must increase from 0"),
        (lambda v: v[:-1], "counts=.* must increase from 0 to 7"),
        (lambda v: [], "counts=.* must increase"),
        (lambda v: [*v[:-1], float("nan")], "counts holds numbers that are not finite"),
    ],
    "entropy_nats": [
        (None, "no entropy_nats"),
        (lambda v: v[:-1], r"entropy_nats has shape \[7\], must be \[8\]"),
        (lambda v: 1.0, r"entropy_nats has shape \[\]"),
        (lambda v: {"a": 1}, "entropy_nats must be a list of numbers"),
        (lambda v: [*v[:-1], float("nan")], "entropy_nats holds numbers that are not finite"),
        (lambda v: [*v[:-1], float("inf")], "entropy_nats holds numbers that are not finite"),
        (lambda v: [*v[:-1], None], "entropy_nats must be a list of numbers"),
        (lambda v: [*v[:-1], "much"], "entropy_nats must be a list of numbers"),
        (lambda v: [v[7], *v[1:]], "entropy_nats must never rise"),
        (lambda v: [*v[:-1], -0.1], "entropy_nats must never rise and never be negative"),
    ],
    "raw_entropy_nats": [
        (None, "raw_entropy_nats must be a list of numbers"),
        (lambda v: v[:-1], r"raw_entropy_nats has shape \[5\], must be \[6\]"),
        (lambda v: [float("nan")] * 6, "raw_entropy_nats holds numbers that are not finite"),
    ],
    "covariance": [
        (lambda v: v[:-1], r"covariance has shape \[5, 6\], must be \[6, 6\]"),
        (lambda v: v[0], r"covariance has shape \[6\]"),
        (lambda v: [v[0], v[0][:2]], "covariance must be a list of numbers"),
        (lambda v: "none", "covariance must be a list of numbers"),
    ],
    "predictive_entropy_nats": [
        (lambda v: v[:-1], r"predictive_entropy_nats has shape \[5\]"),
        (lambda v: [float("inf")] * 6, "predictive_entropy_nats holds numbers that are not finite"),
    ],
    "calibration_stderr_nats": [(lambda v: [v], r"calibration_stderr_nats has shape \[1, 6\]")],
    "num_rows": [(lambda v: -1, "num_rows=-1"), (lambda v: "60", "num_rows='60'"), (lambda v: 1.5, "num_rows=1.5")],
    "num_documents": [(lambda v: None, "num_documents=None"), (lambda v: [17], r"num_documents=\[17\]")],
}


def damaged(path, field, change):
    values = measured().to_dict()
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
def test_damage_of_any_field_is_refused_with_the_file_and_the_field(field, change, message, tmp_path):
    path = tmp_path / "curve.json"
    damaged(path, field, change)
    with pytest.raises(ValueError, match=message) as caught:
        InformationCurve.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    damaged(path, field, lambda value: value)  # variation: the same file without the damage
    assert InformationCurve.load(path).length == 8


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("counts", lambda v: [0, 1.5, 3, 5, 6, 7]),
        ("characters_per_row", lambda v: "many"),
        ("characters_per_row", lambda v: [30.5]),
        ("characters_per_row", lambda v: float("nan")),
        ("characters_per_row", lambda v: 10**400),
        ("counts", lambda v: [0, 1e300, 3, 5, 6, 7]),
        ("raw_entropy_nats", lambda v: [1e308] * len(v)),
        ("provenance", lambda v: "test"),
        ("covariance", None),
        ("num_rows", None),
    ],
    ids=[
        "fractional_counts",
        "text",
        "list",
        "nan",
        "huge",
        "huge_count",
        "huge_losses",
        "text_of_provenance",
        "no_covariance",
        "no_num_rows",
    ],
)
def test_damage_that_slips_through_or_is_not_named_is_refused_too(field, change, tmp_path):
    path = tmp_path / "curve.json"
    damaged(path, field, change)
    try:
        InformationCurve.load(path)
    except Exception as caught:
        assert isinstance(caught, ValueError) and str(path) in str(caught) and field in str(caught), repr(caught)
    else:
        raise AssertionError("not refused")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(measured().to_dict())[:200], "not valid JSON at line 1"),
        ("", "not valid JSON"),
        ("[1, 2]", "is not an information curve"),
        ("null", "is not an information curve"),
        ('"entropy_nats"', "is not an information curve"),
        ("{}", "is not an information curve"),
    ],
)
def test_files_that_hold_no_curve_are_refused_by_name(text, message, tmp_path):
    path = tmp_path / "curve.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        InformationCurve.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    path.write_bytes(b'{"entropy_nats": "\xff"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        InformationCurve.load(path)
    with pytest.raises(FileNotFoundError):
        InformationCurve.load(tmp_path / "none.json")


def test_a_curve_fits_only_the_model_it_was_measured_with():
    curve = measured()
    curve.check_fits(8)
    curve.check_fits(8, tokenizer_sha256="a" * 64, model_sha256="b" * 64)
    d.Permutation(8).curve().check_fits(8, "c" * 64, "d" * 64)  # of no tokenizer and no model: fits any
    for arguments, message in (
        ((9,), "study.curve: its length 8 must be the model's, 9; measure this model"),
        ((8, "c" * 64), r"study.curve: it was measured with another tokenizer \(sha256 a{12}, not c{12}\); run dlm"),
        ((8, "a" * 64, "d" * 64), r"study.curve: it was measured with another model \(sha256 b{12}, not d{12}\)"),
    ):
        with pytest.raises(ValueError, match=message):
            curve.check_fits(*arguments, name="study.curve")


def clustered_error(values, document):
    """Independently of the package: the spread of the sums of documents, G / (G - 1) for the mean that was taken."""
    sums = {}
    for value, name in zip(values, document, strict=True):
        sums[name] = sums.get(name, 0.0) + value - np.mean(values)
    return math.sqrt(len(sums) / (len(sums) - 1) * sum(s * s for s in sums.values())) / len(values)


def test_quantities_of_a_completely_measured_curve_are_plain_means_with_clustered_errors():
    losses, document = losses_of(range(8))
    curve = InformationCurve.measured(8, np.arange(8), losses, document)
    sizes = uniform_sizes(8, 3)
    by_row = {
        "total_correlation": 8 * losses[:, 0] - losses.sum(axis=1),
        "dual_total_correlation": losses.sum(axis=1) - 8 * losses[:, 7],
        "mutual_information": 8 * (losses[:, 0] - losses[:, 7]),
    }
    found = {name: curve.quantity(name) for name in by_row}
    by_row |= {
        "nll": 2 * losses[:, 0] + 3 * losses[:, 2] + 3 * losses[:, 5],
        "kl": 2 * losses[:, 0] + 3 * losses[:, 2] + 3 * losses[:, 5] - losses.sum(axis=1),
    }
    found |= {"nll": error.negative_log_likelihood(curve, sizes), "kl": error.expected_kl_with_error(curve, sizes)}
    for name, (value, stderr) in found.items():
        np.testing.assert_allclose(value, by_row[name].mean(), rtol=1e-10)
        np.testing.assert_allclose(stderr, clustered_error(by_row[name], document), rtol=1e-8)
        np.testing.assert_allclose([value, stderr], statistics.ratio(by_row[name], np.ones(60), document), rtol=1e-8)
        # Variation: rows taken for documents of their own have another error.
        assert abs(clustered_error(by_row[name], range(60)) / stderr - 1) > 0.02
    np.testing.assert_allclose(curve.stderr, [clustered_error(losses[:, k], document) for k in range(8)], rtol=1e-8)
    assert (curve.num_rows, curve.num_documents) == (60, len(set(document.tolist())))


def test_rows_repeated_within_their_documents_do_not_shrink_the_error():
    counts = [0, 1, 3, 5, 6, 7]
    losses, document = losses_of(counts)
    once = InformationCurve.measured(8, counts, losses, document)
    twice = InformationCurve.measured(8, counts, np.tile(losses, (2, 1)), np.tile(document, 2))
    np.testing.assert_allclose(twice.covariance, once.covariance, rtol=1e-10)
    np.testing.assert_allclose(twice.quantity("total_correlation"), once.quantity("total_correlation"), rtol=1e-10)
    # Variation: as documents of their own they would.
    fresh = InformationCurve.measured(8, counts, np.tile(losses, (2, 1)), np.concatenate([document, document + 100]))
    assert fresh.quantity("total_correlation")[1] < 0.75 * once.quantity("total_correlation")[1]


def test_a_single_document_has_no_error_that_could_be_told():
    curve = InformationCurve.measured(4, [0, 2, 3], np.random.default_rng(0).random((5, 3)), [7] * 5)
    assert math.isnan(curve.quantity("total_correlation")[1])
    assert np.all(np.isfinite(curve.entropy)) and np.all(np.diff(curve.entropy) <= 0)
    assert math.isnan(statistics.ratio(np.ones(5), np.ones(5), [7] * 5)[1])


def test_the_error_covers_the_truth_as_often_as_it_says():
    noise = np.random.default_rng(5)
    document = np.repeat(np.arange(40), 3)
    inside = naive = 0
    for _ in range(300):
        losses = 2 - np.arange(4) / 4 + noise.normal(size=(40, 4))[document] + 0.3 * noise.normal(size=(120, 4))
        value, stderr = InformationCurve.measured(4, range(4), losses, document).quantity("total_correlation")
        inside += abs(value - (8 - 6.5)) < 1.96 * stderr
        naive += abs(value - (8 - 6.5)) < 1.96 * clustered_error(4 * losses[:, 0] - losses.sum(axis=1), range(120))
    assert 270 < inside < 299
    assert naive < 260  # variation: without clusters it does not


@pytest.mark.parametrize("length", [1, 2, 3, 8, 40])
def test_interpolation_of_all_counts_is_the_identity(length):
    np.testing.assert_array_equal(curves.interpolation(length, np.arange(length)), np.eye(length))


@pytest.mark.parametrize("counts", [[0, 7], [0, 3, 7], [0, 1, 3, 5, 6, 7]], ids=str)
def test_interpolation_keeps_what_was_measured_and_is_linear(counts):
    basis = curves.interpolation(8, counts)
    np.testing.assert_allclose(basis[counts], np.eye(len(counts)), atol=1e-12)
    np.testing.assert_allclose(basis.sum(axis=1), 1, atol=1e-12)  # constants stay constants
    odds = np.log((np.arange(8) + 0.5) / (7.5 - np.arange(8)))
    np.testing.assert_allclose(basis @ odds[counts], odds, atol=1e-12)  # straight lines in the log-odds stay straight
    assert np.abs(basis @ np.exp(odds[counts]) - np.exp(odds)).max() > 1e-3  # variation: others do not


def test_interpolation_of_three_counts_is_the_natural_spline_by_hand():
    x = np.log((np.arange(8) + 0.5) / (7.5 - np.arange(8)))
    y = np.array([2.0, 0.5, 0.1])
    (left, right), (down, flat) = np.diff(x[[0, 3, 7]]), np.diff(y) / np.diff(x[[0, 3, 7]])
    bend = 3 * (flat - down) / (left + right)  # the second derivative in the middle; none at the ends
    t, u = x[:4] - x[0], x[7] - x[3:]
    want = y[0] + down * t + bend / (6 * left) * (t**3 - left**2 * t)
    np.testing.assert_allclose((curves.interpolation(8, [0, 3, 7]) @ y)[:4], want, atol=1e-12)
    want = y[2] - flat * u + bend / (6 * right) * (u**3 - right**2 * u)
    np.testing.assert_allclose((curves.interpolation(8, [0, 3, 7]) @ y)[3:], want, atol=1e-12)
    assert bend > 0.01  # variation: straight lines would miss


@pytest.mark.parametrize("bed", [d.stationary_markov_chain(M2, 64), d.Permutation(64)])
def test_sixteen_counts_are_enough_for_a_thousandth_of_a_nat(bed):
    f, counts = bed.curve().entropy, spaced_counts(64, 16)
    assert np.abs(curves.interpolation(64, counts) @ f[counts] - f).max() < 1e-3
    assert np.abs(curves.monotone(64, counts, f[counts]) - f).max() < 1e-3
    curve = InformationCurve.measured(64, counts, np.tile(f[counts], (4, 1)), range(4))
    np.testing.assert_allclose(curve.total_correlation, bed.curve().total_correlation, atol=0.02)
    few = spaced_counts(64, 5)  # variation: five are not
    assert np.abs(curves.interpolation(64, few) @ f[few] - f).max() > 1e-3


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.data())
def test_the_monotone_curve_never_rises_and_keeps_falling_means(length, data):
    inner = data.draw(st.sets(st.integers(0, length - 1)))
    counts = np.array(sorted(inner | {0, length - 1}))
    raw = np.array(data.draw(st.lists(st.integers(-100, 500), min_size=len(counts), max_size=len(counts)))) / 100
    variance = np.array(data.draw(st.lists(st.integers(0, 20), min_size=len(counts), max_size=len(counts)))) / 10
    for covariance in (None, np.diag(variance), np.full((len(counts),) * 2, np.nan)):
        f = curves.monotone(length, counts, raw, covariance)
        assert f.shape == (length,) and np.all(np.isfinite(f))
        assert np.all(np.diff(f) <= 0) and f.min() > -1e-12
    falling = np.sort(np.maximum(raw, 0))[::-1]
    np.testing.assert_allclose(curves.monotone(length, counts, falling)[counts], falling, atol=1e-12)


def test_precise_means_pull_the_monotone_curve_more_than_noisy_ones():
    raw = np.array([1.0, 2.0, 0.0])
    np.testing.assert_allclose(curves.monotone(3, range(3), raw), [1.5, 1.5, 0.0])
    weighted = curves.monotone(3, range(3), raw, np.diag([0.1, 0.9, 0.1]))
    np.testing.assert_allclose(weighted, [1.1, 1.1, 0.0])  # variation: (0.9 1 + 0.1 2) / 1, not the plain mean


def test_the_summary_names_every_quantity_with_its_interval_and_its_calibrated_twin():
    curve = measured()
    for name, entry in curve.summary().items():
        value, stderr = curve.quantity(name)
        assert entry["nats"] == value and entry["stderr"] == stderr > 0
        np.testing.assert_allclose([entry["low"], entry["high"]], [value - 1.96 * stderr, value + 1.96 * stderr])
        np.testing.assert_allclose([entry["per_token"], entry["per_character"]], [value / 8, value / 30.5])
        np.testing.assert_allclose(entry["calibrated"], 0.99 * value, rtol=1e-9)  # a constant adds nothing
    losses, document = losses_of([0, 1, 3, 5, 6, 7])
    gaps = [clustered_error(0.01 * losses[:, k], document) for k in range(6)]
    np.testing.assert_allclose(curve.calibration_stderr, gaps, rtol=1e-8)
    exact = d.Permutation(8).curve().summary()["total_correlation"]
    assert exact["stderr"] == 0 and exact["calibrated"] is None and exact["per_character"] is None
    assert d.Permutation(8).curve().stderr is None


@pytest.mark.parametrize(
    ("length", "counts", "losses", "message"),
    [
        (8, [0, 3], np.ones((2, 2)), r"counts=\[0, 3\]: must increase from 0 to 7"),
        (8, [1, 7], np.ones((2, 2)), r"counts=\[1, 7\]: must increase from 0"),
        (8, [0, 7, 7], np.ones((2, 3)), "counts=.* must increase"),
        (8, [], np.ones((2, 0)), "counts=.* must increase"),
        (8, [0, 7], np.ones((2, 3)), r"losses: shape \[2, 3\] must be \[N, 2\] with at least one row"),
        (8, [0, 7], np.ones((0, 2)), "at least one row"),
        (8, [0, 7], np.array([[1.0, np.inf]]), "losses: must be finite; a token was given probability 0"),
    ],
)
def test_losses_that_make_no_curve_are_refused(length, counts, losses, message):
    with pytest.raises(ValueError, match=message):
        InformationCurve.measured(length, counts, losses, np.arange(len(losses)))
