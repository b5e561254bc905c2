"""The information curve: how much a token is still unknown once k of the L others are revealed.

f(k) is the mean entropy of a token given k revealed ones, in nats. What a corpus' tokens know of one another is in it:

  total correlation        TC  = sum_i H(X_i) - H(X)                 = L f(0) - sum_k f(k)
  dual total correlation   DTC = H(X) - sum_i H(X_i | X_-i)          = sum_k f(k) - L f(L-1)
  mutual information       MI  = sum_i I(X_i; X_-i)                  = L (f(0) - f(L-1)) = TC + DTC

A curve measured with a model holds the model's losses, f_theta(k) >= f(k): the gap is the model's error and cannot be
told from entropy by looking at losses alone. L f_theta(0) is usually close to the truth (unigrams are easy), while
f_theta(L-1) is too high, so a measured MI is usually a lower estimate; TC and DTC can err either way.
"""

import pathlib
from dataclasses import dataclass, field

import numpy as np
from scipy import interpolate, optimize

from dlm_jax import files
from dlm_jax.information import statistics

_FORMAT = 1
_LARGEST = 1e100  # whose squares and their sums are finite
QUANTITIES = {
    "total_correlation": "total correlation",
    "dual_total_correlation": "dual total correlation",
    "mutual_information": "sum of mutual informations",
}


def quantity_weights(name, length):
    """Returns float64[L], such that weights . f is the quantity, in nats per sequence.

    Args:
      name: one of QUANTITIES.
      length: int, L.
    """
    first, last, ones = np.zeros(length), np.zeros(length), np.ones(length)
    first[0] = last[-1] = length
    return {
        "total_correlation": first - ones,
        "dual_total_correlation": ones - last,
        "mutual_information": first - last,
    }[name]


@dataclass(frozen=True)
class InformationCurve:
    """f(k) of a distribution (exact) or of a corpus (measured), with the covariance of what was measured.

    Args:
      entropy: float64[L], nats per token, non-increasing; isotonic and interpolated where it was measured.
      counts: int64[K], the numbers of revealed tokens that were measured; all of them for an exact curve.
      raw_entropy: float64[K], the means as measured.
      covariance: float64[K, K] of these means, clustered by document; None for an exact curve.
      predictive_entropy: float64[K] or None, mean entropy of the model's predictions: another estimate of f, with less
        noise, right where the model is calibrated.
      calibration_stderr: float64[K] or None, of raw_entropy - predictive_entropy.
      num_rows, num_documents: int; 0 for an exact curve.
      characters: float, of text per row; 0 where tokens are no text.
      tokenizer_sha256, model_sha256: hex, of what measured it; "" for an exact curve.
      provenance: dict of plain values.
    """

    entropy: np.ndarray
    counts: np.ndarray
    raw_entropy: np.ndarray
    covariance: np.ndarray | None = None
    predictive_entropy: np.ndarray | None = None
    calibration_stderr: np.ndarray | None = None
    num_rows: int = 0
    num_documents: int = 0
    characters: float = 0.0
    tokenizer_sha256: str = ""
    model_sha256: str = ""
    provenance: dict = field(default_factory=dict)

    @classmethod
    def exact(cls, entropy):
        """Returns the curve of a known distribution.

        Args:
          entropy: float64[L], f(k).
        """
        entropy = np.asarray(entropy, np.float64)
        return cls(entropy, np.arange(len(entropy)), entropy)

    @classmethod
    def measured(cls, length, counts, losses, document, *, predictive_entropies=None, **about):
        """Returns the curve of per-row losses.

        Args:
          length: int, L.
          counts: int64[K], from 0 to L - 1.
          losses: float64[N, K], mean loss of a row's hidden tokens, nats.
          document: int[N], the cluster of each row.
          predictive_entropies: float64[N, K] or None.
          about: further fields (characters, tokenizer_sha256, ...).
        Raises:
          ValueError: if the counts or losses cannot make a curve.
        """
        counts, losses = np.asarray(counts, np.int64), np.asarray(losses, np.float64)
        _check_counts(counts, length)
        if losses.ndim != 2 or losses.shape[1] != len(counts) or not len(losses):
            raise ValueError(f"losses: shape {list(losses.shape)} must be [N, {len(counts)}] with at least one row")
        if not np.isfinite(losses).all():
            raise ValueError("losses: must be finite; a token was given probability 0")
        raw, covariance = statistics.mean_and_covariance(losses, document)
        predictive = stderr = None
        if predictive_entropies is not None:
            predictive = predictive_entropies.mean(axis=0)
            _, gap = statistics.mean_and_covariance(losses - predictive_entropies, document)
            stderr = np.sqrt(np.diag(gap))
        return cls(
            entropy=monotone(length, counts, raw, covariance),
            counts=counts,
            raw_entropy=raw,
            covariance=covariance,
            predictive_entropy=predictive,
            calibration_stderr=stderr,
            num_rows=len(losses),
            num_documents=len(np.unique(document)),
            **about,
        )

    @property
    def length(self):
        return len(self.entropy)

    @property
    def stderr(self):
        """float64[L], standard error of f(k), or None for an exact curve."""
        if self.covariance is None:
            return None
        basis = interpolation(self.length, self.counts)
        return np.sqrt(np.maximum(np.einsum("lk,kj,lj->l", basis, self.covariance, basis), 0.0))

    def linear(self, weights):
        """Returns (value, standard error) of sum_k weights[k] f(k); the error is 0 for an exact curve.

        Args:
          weights: float64[L].
        """
        pulled = np.asarray(weights) @ interpolation(self.length, self.counts)
        error = 0.0 if self.covariance is None else float(np.sqrt(max(pulled @ self.covariance @ pulled, 0.0)))
        return float(pulled @ self.raw_entropy), error

    def quantity(self, name):
        """Returns (nats per sequence, standard error) of one of QUANTITIES."""
        return self.linear(quantity_weights(name, self.length))

    @property
    def total_correlation(self):
        """float, nats per sequence."""
        return self.quantity("total_correlation")[0]

    @property
    def dual_total_correlation(self):
        """float, nats per sequence."""
        return self.quantity("dual_total_correlation")[0]

    @property
    def mutual_information(self):
        """float, nats per sequence: the sum over tokens of their mutual information with all the others."""
        return self.quantity("mutual_information")[0]

    def summary(self):
        """Returns {quantity: {"nats", "stderr", "low", "high" (95 %), "per_token", "per_character", "calibrated"}}.

        "calibrated" is the same quantity from the predictive entropies: the two agree where the model is calibrated.
        """
        found = {}
        for name in QUANTITIES:
            value, error = self.quantity(name)
            found[name] = {
                "nats": value,
                "stderr": error,
                "low": value - 1.96 * error,
                "high": value + 1.96 * error,
                "per_token": value / self.length,
                "per_character": value / self.characters if self.characters else None,
                "calibrated": None,
            }
            if self.predictive_entropy is not None:
                pulled = quantity_weights(name, self.length) @ interpolation(self.length, self.counts)
                found[name]["calibrated"] = float(pulled @ self.predictive_entropy)
        return found

    def check_fits(self, length, tokenizer_sha256=None, model_sha256=None, name="curve"):
        """Checks that the curve was measured for this model.

        Raises:
          ValueError: naming what differs and what to do.
        """
        if self.length != length:
            raise ValueError(f"{name}: its length {self.length} must be the model's, {length}; measure this model")
        for what, mine, wanted in (
            ("tokenizer", self.tokenizer_sha256, tokenizer_sha256),
            ("model", self.model_sha256, model_sha256),
        ):
            if mine and wanted and mine != wanted:
                raise ValueError(
                    f"{name}: it was measured with another {what} (sha256 {mine[:12]}, not {wanted[:12]}); run "
                    "dlm measure on this workdir"
                )

    def to_dict(self):
        """Returns the curve as plain values, the content of curve.json."""

        def plain(array):
            return None if array is None else np.asarray(array).tolist()

        return {
            "format": _FORMAT,
            "length": self.length,
            "counts": plain(self.counts),
            "raw_entropy_nats": plain(self.raw_entropy),
            "covariance": plain(self.covariance),
            "entropy_nats": plain(self.entropy),
            "stderr_nats": plain(self.stderr),
            "predictive_entropy_nats": plain(self.predictive_entropy),
            "calibration_stderr_nats": plain(self.calibration_stderr),
            "num_rows": self.num_rows,
            "num_documents": self.num_documents,
            "characters_per_row": self.characters,
            "tokenizer_sha256": self.tokenizer_sha256,
            "model_sha256": self.model_sha256,
            "provenance": self.provenance,
            "summary": self.summary(),
        }

    def save(self, path):
        """Writes curve.json, atomically."""
        files.write_json(path, self.to_dict())

    @classmethod
    def load(cls, path):
        """Reads a curve written by `save`.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is damaged or not a curve; the message names the file and the field.
        """
        path = pathlib.Path(path)
        values = files.read_record(path, "entropy_nats", _FORMAT, ("an information curve", "dlm measure"))
        length = _whole(path, values, "length", at_least=1)
        counts = _numbers(path, values, "counts", (None,))
        if np.any((counts != np.round(counts)) | (np.abs(counts) > 2**53)):
            raise ValueError(f"{path}: counts must be whole numbers")
        counts = counts.astype(np.int64)
        k = len(counts)
        try:
            _check_counts(counts, length)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        for name in ("covariance", "num_rows", "num_documents", "provenance"):
            if name not in values:
                raise ValueError(f"{path}: {name} is missing")
        if not isinstance(values["provenance"], dict):
            raise ValueError(f"{path}: provenance={values['provenance']!r} must be a group of values")
        for name in ("tokenizer_sha256", "model_sha256"):
            if not isinstance(values.get(name, ""), str):
                raise ValueError(f"{path}: {name}={values[name]!r} must be text")
        characters = values.get("characters_per_row", 0.0)
        if isinstance(characters, bool) or not isinstance(characters, (int, float)) or not 0 <= characters <= _LARGEST:
            raise ValueError(f"{path}: characters_per_row={characters!r} must be a number of at least 0")
        covariance = None
        if values["covariance"] is not None:
            covariance = _numbers(path, values, "covariance", (k, k), may_be_nan=True)
            if np.any(np.diag(covariance) < 0):
                raise ValueError(f"{path}: covariance has a negative variance")

        def optional(name, may_be_nan=False):
            return None if values.get(name) is None else _numbers(path, values, name, (k,), may_be_nan)

        curve = cls(
            entropy=_numbers(path, values, "entropy_nats", (length,)),
            counts=counts,
            raw_entropy=_numbers(path, values, "raw_entropy_nats", (k,)),
            covariance=covariance,
            predictive_entropy=optional("predictive_entropy_nats"),
            calibration_stderr=optional("calibration_stderr_nats", may_be_nan=True),
            num_rows=_whole(path, values, "num_rows"),
            num_documents=_whole(path, values, "num_documents"),
            characters=float(characters),
            tokenizer_sha256=values.get("tokenizer_sha256", ""),
            model_sha256=values.get("model_sha256", ""),
            provenance=values["provenance"],
        )
        if np.any(np.diff(curve.entropy) > 1e-9) or curve.entropy.min() < -1e-9:
            raise ValueError(f"{path}: entropy_nats must never rise and never be negative")
        return curve


def _check_counts(counts, length):
    is_ordered = len(counts) > 0 and counts[0] == 0 and counts[-1] == length - 1 and np.all(np.diff(counts) > 0)
    if not is_ordered:
        raise ValueError(f"counts={counts.tolist()[:12]}: must increase from 0 to {length - 1}, the length minus 1")


def _numbers(path, values, name, shape, may_be_nan=False):
    try:
        array = np.asarray(values[name])
    except (KeyError, ValueError):
        array = np.asarray("")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {name} must be a list of numbers")
    is_shaped = array.ndim == len(shape)
    is_shaped = is_shaped and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not is_shaped:
        raise ValueError(f"{path}: {name} has shape {list(array.shape)}, must be {list(shape)}")
    if not np.all((np.abs(array) <= _LARGEST) | (may_be_nan & np.isnan(array))):
        raise ValueError(f"{path}: {name} holds numbers that are not finite")
    return array.astype(np.float64)


def _whole(path, values, name, at_least=0):
    value = values.get(name)
    if type(value) is not int or value < at_least:
        raise ValueError(f"{path}: {name}={value!r} must be a whole number of at least {at_least}")
    return value


def _log_odds(k, length):
    return np.log((np.asarray(k) + 0.5) / (length - np.asarray(k) - 0.5))


def interpolation(length, counts):
    """Returns float64[L, K], such that interpolation @ raw_entropy is f at every k: linear, so that errors carry over.

    A natural cubic spline in the log-odds of the revealed share, in which curves of text and of the exact test beds
    are smooth at both ends. Exact, the identity, where all counts were measured.
    """
    counts = np.asarray(counts)
    if len(counts) == length:
        return np.eye(length)
    where, everywhere = _log_odds(counts, length), _log_odds(np.arange(length), length)
    if len(counts) == 2:
        return interpolate.make_interp_spline(where, np.eye(2), k=1)(everywhere)
    return interpolate.CubicSpline(where, np.eye(len(counts)), bc_type="natural")(everywhere)


def monotone(length, counts, raw, covariance=None):
    """Returns float64[L], non-increasing: isotonic regression of the means, then monotone cubics in the log-odds.

    Args:
      raw: float64[K].
      covariance: float64[K, K] of the means; they are weighted by 1 / variance.
    """
    weights = None
    if covariance is not None and np.isfinite(covariance).all():
        variance = np.diag(covariance)
        weights = 1.0 / np.maximum(variance, 1e-9 * max(variance.max(), 1e-12))
    falling = np.maximum(optimize.isotonic_regression(raw, weights=weights, increasing=False).x, 0.0)
    if len(counts) == length:
        return falling
    where, everywhere = _log_odds(counts, length), _log_odds(np.arange(length), length)
    return np.minimum.accumulate(np.maximum(interpolate.PchipInterpolator(where, falling)(everywhere), 0.0))


def smoothed(length, counts, means, spread, num_knots=5):
    """Returns float64[K], non-increasing: the least-squares natural cubic spline of few knots in the log-odds.

    For planning: what is left of noisy means when only their broad shape is believed.

    Args:
      length: int, L.
      counts: int64[K].
      means, spread: float64[K], what was measured and its standard deviation, by which errors are weighted.
      num_knots: int.
    """
    if len(counts) <= num_knots:
        return optimize.isotonic_regression(means, increasing=False).x
    reach = _log_odds(length - 1, length)
    share = 1 / (1 + np.exp(-np.linspace(-reach, reach, num_knots)))
    knots = np.unique(np.clip(np.round(length * share - 0.5), 0, length - 1).astype(np.int64))
    basis = interpolation(length, knots)[np.asarray(counts)]
    weights = 1.0 / np.maximum(spread, 1e-3 * max(np.max(spread), 1e-12))
    fitted = basis @ np.linalg.lstsq(basis * weights[:, None], means * weights, rcond=None)[0]
    return optimize.isotonic_regression(fitted, increasing=False).x
