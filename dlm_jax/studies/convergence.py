"""The convergence study: the KL error of parallel sampling against the number of steps, on data that is known exactly.

Three things for distributions of low and high dependence (Li & Cai 2505.21400; Chen, Cong & Li 2511.04647):

  sampling   the real sampler in fixed orders against the exact law of its steps (chi-square), and the mean over all
             orders of the exact error against the formula
  validity   the share of samples in the support, exp(-KL) where the error is the same for every order
  curves     the error measured on real data against T, beside the formula and the bounds, and its slope on log-log axes
"""

import functools
import itertools
import math
import pathlib

import jax
import numpy as np
from scipy import special, stats

from dlm_jax import files, rng
from dlm_jax.diffusion import schedules as noise
from dlm_jax.evaluation import dependence
from dlm_jax.information import distributions as beds
from dlm_jax.information import error, orders, schedules
from dlm_jax.progress import Progress
from dlm_jax.sampling import sample
from dlm_jax.sampling.plain import PlainDenoiser

_CHUNK = 200_000  # samples at a time
_STICKY = [[0.99, 0.01], [0.02, 0.98]]
_M2 = [[0.9, 0.1], [0.2, 0.8]]


def small_beds(length):
    """Returns {name: distribution}, small enough to count every outcome."""
    return {
        "Markov chain M2": beds.stationary_markov_chain(_M2, length),
        "noisy bit, eta 0.1": beds.Exchangeable([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], length),
        "parity": beds.Parity(length),
        "repeated token": beds.Repeated(2, length),
        "balanced bits": beds.BalancedBits(length),
    }


def large_beds(length):
    """Returns {name: distribution}, by rising mutual information; the last three do not fall as 1/T."""
    return {
        "weak chain, flip 0.4": beds.stationary_markov_chain([[0.6, 0.4], [0.4, 0.6]], length),
        "Markov chain M2": beds.stationary_markov_chain(_M2, length),
        "sticky chain": beds.stationary_markov_chain(_STICKY, length),
        "noisy bit, eta 0.1": beds.Exchangeable([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], length),
        "repeated token": beds.Repeated(4, length),
        "parity": beds.Parity(length),
        "permutation": beds.Permutation(length),
    }


VALIDITY = (
    ("repeated token, V = 4", lambda: beds.Repeated(4, 5), (2, 3), True),
    ("parity", lambda: beds.Parity(6), (3, 3), True),
    ("Reed-Solomon [4, 2] over 5", lambda: beds.ReedSolomon(5, 4, 2), (3, 1), True),
    ("Reed-Solomon [5, 3] over 5", lambda: beds.ReedSolomon(5, 5, 3), (2, 3), True),
    ("permutation of 5", lambda: beds.Permutation(5), (2, 2, 1), True),
    ("balanced bits", lambda: beds.BalancedBits(6), (3, 3), False),
)


def run(config, workdir, *, say=print):
    """Runs the study, writes convergence.json and convergence.png, and returns what was found.

    Args:
      config: the fields of configs/convergence.py.
      workdir: folder.
      say: called with lines worth knowing.
    """
    workdir = pathlib.Path(workdir)
    found = {
        "sampling": sampling(config, say),
        "validity": validity(config.num_samples, say),
        "curves": curves(config, say),
    }
    files.write_json(workdir / "convergence.json", found)
    figure(workdir / "convergence.png", found["curves"], config.length)
    say(f"figure {workdir / 'convergence.png'}")
    return found


# ---------------------------------------------------------------------------------------------- sampling


def step_law(bed, order, sizes):
    """Returns float64[V^L], the exact law of the sampler given an order, over outcomes in lexicographic order."""
    outcomes = np.indices((bed.vocab_size,) * bed.length).reshape(bed.length, -1).T
    log_p, start = np.zeros(len(outcomes)), 0
    for size in sizes:
        masked = outcomes.copy()
        masked[:, order[start:]] = bed.mask_id
        answers = bed.denoise(masked)
        chosen = np.asarray(order[start : start + size])
        picked = np.take_along_axis(answers[:, chosen], outcomes[:, chosen, None], axis=2)[..., 0]
        log_p += picked.sum(axis=1)
        start += size
    return np.exp(log_p)


def chi_square(counts, law):
    """Returns the p-value of counts under a law; impossible outcomes that occur give 0, rare ones are pooled."""
    if counts[law == 0].any():
        return 0.0
    expected = law * counts.sum()
    is_common = expected >= 5
    observed, wanted = counts[is_common], expected[is_common]
    rest = expected[~is_common].sum()
    if rest > 0:
        if rest < 5 and len(wanted):  # too few to stand alone
            observed = np.append(observed[:-1], observed[-1] + counts[~is_common].sum())
            wanted = np.append(wanted[:-1], wanted[-1] + rest)
        else:
            observed, wanted = np.append(observed, counts[~is_common].sum()), np.append(wanted, rest)
    if len(wanted) < 2:
        return 1.0
    statistic = np.sum((observed - wanted) ** 2 / wanted)
    return float(stats.chi2.sf(statistic, len(wanted) - 1))


def sample_counts(bed, denoise, key, order, sizes, num_samples):
    """Returns int64[V^L], how often each outcome was drawn by the real sampler."""
    weights = bed.vocab_size ** np.arange(bed.length)[::-1]
    counts = np.zeros(bed.vocab_size**bed.length, np.int64)
    for index in range(math.ceil(num_samples / _CHUNK)):
        drawn = sample(
            denoise, key=rng.stream(key, "chunk", index), num_samples=min(_CHUNK, num_samples), length=bed.length,
            mask_id=bed.mask_id, sizes=sizes, order=order,
        )  # fmt: skip
        counts += np.bincount(drawn.tokens @ weights, minlength=len(counts))
    return counts


def mean_error_over_orders(bed, sizes):
    """Returns the exact mean over all orders of the KL given the order, from the conditionals of the distribution."""
    outcomes = np.indices((bed.vocab_size,) * bed.length).reshape(bed.length, -1).T
    p = np.exp(bed.log_prob(outcomes))
    everything = frozenset(range(bed.length))

    @functools.cache
    def losses(revealed):
        """float64[L], E[-log p(x_i | x_S)]."""
        masked = outcomes.copy()
        masked[:, sorted(everything - revealed)] = bed.mask_id
        picked = np.take_along_axis(bed.denoise(masked), outcomes[..., None], axis=2)[..., 0]
        return -(p[:, None] * np.where(p[:, None] > 0, picked, 0.0)).sum(axis=0)

    @functools.cache
    def onward(revealed, step):
        """Mean loss of all steps from here on, over all ways to go on."""
        if step == len(sizes):
            return 0.0
        choices = list(itertools.combinations(sorted(everything - revealed), sizes[step]))
        return math.fsum(
            losses(revealed)[list(chosen)].sum() + onward(revealed | frozenset(chosen), step + 1) for chosen in choices
        ) / len(choices)

    return float(onward(frozenset(), 0) - special.entr(p).sum())


def sampling(config, say):
    """The real sampler in fixed orders against the exact law of its steps, T in 1, 2, 4, 8 and L."""
    length, found = config.small_length, []
    steps = sorted({t for t in (1, 2, 4, 8, length) if t <= length})
    tests = len(small_beds(length)) * len(steps) * config.num_orders
    with Progress("sampling in fixed orders", tests) as progress:
        for name, bed in small_beds(length).items():
            for num_steps in steps:
                sizes = schedules.uniform_sizes(length, num_steps)
                worst, divergences, sampled = 1.0, [], []
                denoise = bed.denoise
                outcomes = np.indices((bed.vocab_size,) * length).reshape(length, -1).T
                p = np.exp(bed.log_prob(outcomes))
                for index in range(config.num_orders):
                    key = rng.stream(jax.random.key(0), f"{name} {num_steps}", index)
                    order = np.asarray(orders.draw("random", key, 1, length)[0])
                    law = step_law(bed, order, sizes)
                    counts = sample_counts(bed, denoise, key, order, sizes, config.num_samples)
                    worst = min(worst, chi_square(counts, law))
                    divergences.append(float(special.rel_entr(p, law).sum()))
                    sampled.append(_plug_in(p, counts))
                    progress.update(progress.done + 1)
                formula = error.expected_kl(bed.curve(), sizes)
                mean = mean_error_over_orders(bed, tuple(int(s) for s in sizes))
                bound = error.upper_bound(bed.curve().mutual_information, sizes)
                found.append({
                    "distribution": name, "num_steps": num_steps, "least_p": worst,
                    "bonferroni": min(1.0, worst * tests), "formula": formula, "mean_over_all_orders": mean,
                    "mean_of_sampled_orders": float(np.mean(divergences)),
                    "from_samples": float(np.mean(sampled)), "upper_bound": bound,
                })  # fmt: skip
    say("distribution          T   formula   mean over all orders   these orders: exact   from samples   least p")
    for row in found:
        say(
            f"{row['distribution']:20} {row['num_steps']:2}  {row['formula']:.6f}   "
            f"{row['mean_over_all_orders']:.6f} ({abs(row['formula'] - row['mean_over_all_orders']):.0e})      "
            f"{row['mean_of_sampled_orders']:.6f}        "
            f"{row['from_samples']:.6f}    {row['least_p']:.4f}"
        )
    say(
        f"{tests} chi-square tests; smallest p {min(row['least_p'] for row in found):.2g}, must be above "
        f"{1e-4 / tests:.1g}"
    )
    return found


def _plug_in(p, counts):
    """KL(p || law of the samples), from counts, with the first-order bias of the logarithm taken away."""
    share = counts / counts.sum()
    used = (p > 0) & (counts > 0)
    value = np.sum(p[used] * np.log(p[used] / share[used]))
    return float(value - np.sum(p[used] * (1 - share[used]) / (2 * counts[used])))


def validity(num_samples, say):
    """The share of samples in the support against exp(-KL)."""
    found = []
    for name, make, sizes, is_exact in VALIDITY:
        bed = make()
        lower = error.valid_share_lower_bound(error.expected_kl(bed.curve(), sizes))
        valid = drawn = 0
        for index in range(math.ceil(num_samples / _CHUNK)):
            out = sample(
                bed.denoise, key=rng.stream(jax.random.key(1), name, index), num_samples=min(_CHUNK, num_samples),
                length=bed.length, mask_id=bed.mask_id, sizes=sizes,
            )  # fmt: skip
            valid += int((bed.log_prob(out.tokens) > -np.inf).sum())
            drawn += len(out.tokens)
        share = valid / drawn
        stderr = math.sqrt(max(share * (1 - share), 1e-12) / drawn)
        z = (share - lower) / stderr
        found.append({"family": name, "sizes": list(sizes), "share": share, "stderr": stderr, "exp_minus_kl": lower,
                      "z": z, "is_exact": is_exact})  # fmt: skip
        relation = "equal" if is_exact else "at least"
        say(f"valid share {name:27} {sizes}: {share:.5f} +- {stderr:.5f}, must be {relation} {lower:.5f} (z {z:+.2f})")
    return found


# ---------------------------------------------------------------------------------------------- curves


def curves(config, say):
    """The error on real data against T, the formula, the bounds, and the slope against log(1/T - 1/L)."""
    length, steps = config.length, np.asarray([t for t in config.num_steps if t < config.length])
    found = {}
    for name, bed in large_beds(length).items():
        curve = bed.curve()
        sizes = [schedules.uniform_sizes(length, int(t)) for t in steps]
        formula = np.asarray([error.expected_kl(curve, s) for s in sizes])
        entry = {
            "num_steps": steps.tolist(),
            "mutual_information": curve.mutual_information,
            "formula": formula.tolist(),
            "optimal": [error.expected_kl(curve, schedules.optimal_sizes(curve, int(t))) for t in steps],
            "upper_bound": [error.li_cai_upper_bound(curve.mutual_information, s) for s in sizes],
            "sharper_upper_bound": [error.upper_bound(curve.mutual_information, s) for s in sizes],
            "lower_bound": [error.li_cai_lower_bound(curve, int(s.max())) for s in sizes],
            "slope_of_formula": _slope(steps, length, formula),
        }
        if bed.vocab_size <= 4:
            entry |= _measured(name, bed, sizes, steps, config, formula)
        found[name] = entry
        measured = ""
        if "slope" in entry:
            low, high = entry["slope_interval"]
            measured = f"; measured {entry['slope']:.3f} [{low:.3f}, {high:.3f}], largest |z| {entry['largest_z']:.1f}"
        slope = "none: it does not fall" if entry["slope_of_formula"] is None else f"{entry['slope_of_formula']:.4f}"
        say(f"{name:22} MI {curve.mutual_information:8.2f} nats, slope of the formula {slope}{measured}")
    return found


def _measured(name, bed, sizes, steps, config, formula):
    """The error of every row of real data under the exact denoiser, with a bootstrap interval of the slope."""
    key = rng.stream(jax.random.key(2), name)
    tokens = np.asarray(bed.sample(rng.stream(key, "rows"), config.num_rows))
    counts = np.unique(np.concatenate([np.cumsum(s) - s for s in sizes]))
    rows = _Rows(tokens)
    costs, _ = dependence.measure(
        PlainDenoiser(bed.denoise, bed.mask_id), None, noise.linear(), rows, order="random", counts=counts,
        batch_size=100, key=rng.stream(key, "order"), quiet=True,
    )  # fmt: skip
    log_p = bed.log_prob(tokens)
    errors = np.stack([costs.nll(s) + log_p for s in sizes])  # [T, N]
    mean, stderr = errors.mean(axis=1), errors.std(axis=1, ddof=1) / math.sqrt(errors.shape[1])
    z = np.abs(mean - formula) / np.where(stderr > 1e-6, stderr, np.inf)
    found = {"measured": mean.tolist(), "stderr": stderr.tolist(), "largest_z": float(z.max())}
    slope = _slope(steps, config.length, mean)
    if slope is not None and (stderr > 1e-6).all():
        draws = np.random.default_rng(0).integers(0, errors.shape[1], (500, errors.shape[1]))
        resampled = [_slope(steps, config.length, errors[:, chosen].mean(axis=1)) for chosen in draws]
        resampled = [value for value in resampled if value is not None]
        found["slope"] = slope
        found["slope_interval"] = np.quantile(resampled, [0.025, 0.975]).tolist()
    return found


class _Rows:
    segment_ids = None

    def __init__(self, tokens):
        self.tokens, self.document = tokens, np.arange(len(tokens))
        self.num_bytes = np.full(len(tokens), tokens.shape[1])


def _slope(steps, length, errors):
    """Least-squares slope of log error against log(1/T - 1/L); None where the error is zero or does not fall."""
    if np.min(errors) <= 0 or np.ptp(errors) < 1e-9:
        return None
    return float(np.polyfit(np.log(1 / steps - 1 / length), np.log(errors), 1)[0])


def figure(path, found, length):
    """Draws the error against T for every distribution, with measurements and bounds."""
    from dlm_jax.information import report

    report.figure_convergence(path, found, length)
