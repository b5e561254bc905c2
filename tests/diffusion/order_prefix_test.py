"""Masking the end of an order: what a sampler in that order still has to reveal, with the counts of exact_count.

Statistical checks have fixed keys; the probability that a right program fails by chance stands beside each.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax import config as configs
from dlm_jax.diffusion import masking, objectives
from dlm_jax.diffusion.schedules import make_schedule
from dlm_jax.evaluation import reveal
from dlm_jax.information import distributions, orders
from dlm_jax.sampling.plain import PlainDenoiser

MASK = 9
LINEAR = make_schedule("linear")
FAMILIES = ["random", "spaced", "golden", "blue_noise", "bisection", "left_to_right", "blocks:3"]
# One shape for all draws, uncompiled, so that every operation is compiled once. Each n is in a batch exactly once.
BATCH = LENGTH = 64
PAIRS = BATCH // 2
X0 = np.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % MASK


def draws(order, share=0.0, num_keys=1, seed=3):
    """List of Corruption of numpy arrays, one a key."""
    keys = jax.random.split(jax.random.key(seed), num_keys)
    found = [masking.order_prefix(key, jnp.asarray(X0), MASK, LINEAR, order, share) for key in keys]
    return [jax.tree.map(np.asarray, noised) for noised in found]


def masks(order, share=0.0, num_keys=1, seed=3):
    """bool[keys, B, L]."""
    return np.stack([noised.xt == MASK for noised in draws(order, share, num_keys, seed)])


def ends_of_family(family):
    """{n: set of frozensets}: the sets that the last n positions of an order of the family can be."""
    if family == "spaced":  # by its definition: the bits of the turn, read backwards
        base = np.asarray([int(format(turn, "06b")[::-1], 2) for turn in range(LENGTH)])
    else:
        base = np.asarray(orders.draw(family, jax.random.key(0), 1, LENGTH))[0]
    shifts = range(LENGTH) if family in ("spaced", "golden", "blue_noise") else [0]
    return {
        n: {frozenset(((base[LENGTH - n :] + shift) % LENGTH).tolist()) for shift in shifts}
        for n in range(1, LENGTH + 1)
    }


def are_ends(is_masked, ends):
    """bool[...]: whether each row's masked set, of bool[..., L], is among the ends of its size."""
    rows = is_masked.reshape(-1, LENGTH)
    found = [frozenset(np.flatnonzero(row).tolist()) in ends[int(row.sum())] for row in rows]
    return np.reshape(found, is_masked.shape[:-1])


def are_suffixes(is_masked):
    """bool[...]: whether everything after the first masked position is masked."""
    return (is_masked == np.maximum.accumulate(is_masked, axis=-1)).all(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pair_masks_exactly_n_and_its_complement_and_nothing_else_changes(family):
    for noised in draws(family, 0.3, 2):
        counts = (noised.xt == MASK).sum(-1)
        np.testing.assert_array_equal(counts[0::2] + counts[1::2], LENGTH + 1)
        assert sorted(counts) == list(range(1, LENGTH + 1))
        np.testing.assert_array_equal(np.where(noised.xt == MASK, X0, noised.xt), X0)
        np.testing.assert_allclose(noised.time, counts / LENGTH, rtol=1e-6)
        assert noised.is_masked.all()
        is_masked = (noised.xt == MASK).reshape(PAIRS, 2 * LENGTH)
        for pair, (scored, weights) in enumerate(zip(noised.scored, noised.weights, strict=True)):
            assert sorted(scored) == list(np.flatnonzero(is_masked[pair]))
            n = is_masked[pair].reshape(2, LENGTH).sum(-1)
            np.testing.assert_allclose(weights, LENGTH / n[scored // LENGTH], rtol=1e-6)
        # Variation: neighbours of two pairs do not complete one another.
        assert (counts[1:-1:2] + counts[2::2] != LENGTH + 1).any()


def test_the_counts_are_those_of_exact_count_whatever_the_order():
    first, second = jax.random.split(jax.random.key(3))
    exact = [np.asarray(masking.exact_count(key, jnp.asarray(X0), MASK, LINEAR).xt == MASK) for key in (first, second)]
    have = masks("spaced", 0.3, 2).sum(-1)
    np.testing.assert_array_equal(have, np.sum(exact, axis=-1))
    # Variation: another key, other counts.
    assert (have[0] != exact[1].sum(-1)).any()


@pytest.mark.parametrize("family", ["spaced", "golden", "blue_noise", "bisection", "left_to_right"])
def test_the_masked_set_is_the_end_of_an_order_of_the_family(family):
    ends = ends_of_family(family)
    is_masked = masks(family, num_keys=2)
    assert are_ends(is_masked, ends).all()
    # Variations: random masks are no ends, and neither are the beginnings of the same orders (but of 64 positions on a
    # circle, halved again and again, what a beginning leaves is a beginning too).
    assert not are_ends(masks("random"), ends).all()
    is_visible = ~is_masked
    assert are_ends(is_visible[is_visible.any(-1)], ends).all() == (family in ("spaced", "blue_noise"))


def test_spaced_rows_rotate_on_their_own_and_left_to_right_masks_a_suffix():
    is_masked = masks("spaced", num_keys=16)
    single = is_masked[is_masked.sum(-1) == 1].argmax(-1)
    assert len(set(single.tolist())) > 8  # of 16: rows and keys draw their own rotation
    assert are_suffixes(masks("left_to_right", num_keys=4)).all()
    # Variation: a spaced end is no suffix.
    assert not are_suffixes(is_masked).all()


def test_blocks_mask_all_later_blocks_and_a_part_of_one():
    block = np.arange(LENGTH) // 3

    def are_block_ends(is_masked):
        share = np.stack([is_masked[..., block == b].mean(-1) for b in range(block.max() + 1)], axis=-1)
        is_rising = (np.diff(share) >= 0).all(-1)
        return is_rising & (((share > 0) & (share < 1)).sum(-1) <= 1)

    is_masked = masks("blocks:3", num_keys=4)
    assert are_block_ends(is_masked).all()
    assert not are_suffixes(is_masked).all()  # random inside a block
    # Variation: other families do not.
    assert not are_block_ends(masks("spaced")).all()


def random_pairs(share, num_keys, seed=3):
    """bool[keys, P]: which pairs did not mask suffixes.

    A random pair masks two suffixes with probability 1 / 64 at n = 1 and below 1e-4 otherwise: one pair in 2000.
    """
    return ~are_suffixes(masks("left_to_right", share, num_keys, seed)).reshape(num_keys, PAIRS, 2).all(-1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.77, 1.0])
def test_as_many_pairs_as_the_share_says_take_a_random_order_up_to_one(share):
    found = random_pairs(share, 8).sum(1)

    def fits(claimed):
        # At this key no random pair looks like a suffix; with others one does in about 1 of 5 runs.
        return (np.abs(found - claimed * PAIRS) < 1).all()

    assert fits(share)
    assert not fits(share + 0.05 if share < 0.5 else share - 0.05)  # variation


def test_every_pair_is_as_likely_to_be_random_as_another():
    keys, share = 60, 0.25
    is_random = random_pairs(share, keys)

    def fits(claimed):
        # 4.5 standard errors of a pair: fails by chance with probability 2e-4 over the 32 pairs.
        return (np.abs(is_random.mean(0) - claimed) < 4.5 * np.sqrt(share * (1 - share) / keys)).all()

    assert fits(share)
    assert not fits(2 * share)  # variation


def test_the_noise_is_the_same_on_any_call_with_the_same_key_and_other_with_another():
    def draw(key, tokens=X0):
        return masking.order_prefix(key, jnp.asarray(tokens), MASK, LINEAR, "spaced", 0.5)

    first = draw(jax.random.key(7))
    for again in (draw(jax.random.key(7)), jax.jit(draw)(jax.random.key(7))):
        for have, want in zip(again, first, strict=True):
            np.testing.assert_array_equal(have, want)
    # The noise does not look at the tokens.
    other = draw(jax.random.key(7), (X0 + 1) % MASK)
    np.testing.assert_array_equal(other.xt == MASK, first.xt == MASK)
    # Variation: another key.
    assert (draw(jax.random.key(8)).xt != first.xt).any()


# --------------------------------------------------------------------------------------------- what the sum estimates


def estimates(drawn, losses_of):
    """float64[keys]: the mean over rows of the weighted sum of losses, where losses_of(xt) is float[B, L]."""
    found = []
    for noised in drawn:
        losses = np.take_along_axis(losses_of(noised.xt).reshape(PAIRS, -1), noised.scored, axis=1)
        found.append((noised.weights * losses).sum() / BATCH)
    return np.asarray(found, np.float64)


def is_estimated(have, want):
    """Whether the mean of 40 or more is within 5 standard errors: a right program fails with probability 2e-5."""
    return abs(have.mean() - want) < 5 * have.std(ddof=1) / np.sqrt(len(have)) + 1e-5 * abs(want)


def suffix_sum(losses_of):
    """What left_to_right estimates: the mean over n of L / n times the losses of the last n positions."""
    xt = np.where(np.arange(LENGTH) < LENGTH - np.arange(1, LENGTH + 1)[:, None], 0, MASK)
    return sum(row[LENGTH - n :].sum() / n for n, row in enumerate(losses_of(xt), 1))


def test_in_random_order_the_sum_is_unbiased_for_the_nelbo_like_that_of_exact_count():
    # Losses that are linear in what is visible: a_i + sum_j c_ij, of no distribution at all. Given n, another position
    # is visible with probability (L - n) / (L - 1), a half on average, so the NELBO is sum a + sum c / 2.
    random = np.random.default_rng(0)
    own, pair = random.gamma(9.0, 0.1, LENGTH), random.normal(0.0, 0.01, (LENGTH, LENGTH))
    pair += np.linspace(-0.005, 0.005, LENGTH)[:, None]  # late positions gain from what is visible: orders matter
    np.fill_diagonal(pair, 0.0)
    nelbo = own.sum() + pair.sum() / 2

    def losses_of(xt):
        return own + (xt != MASK) @ pair.T

    have = estimates(draws("random", num_keys=40), losses_of)
    assert is_estimated(have, nelbo)
    keys = jax.random.split(jax.random.key(4), 40)
    exact = [jax.tree.map(np.asarray, masking.exact_count(key, jnp.asarray(X0), MASK, LINEAR)) for key in keys]
    assert is_estimated(estimates(exact, losses_of), nelbo)
    assert is_estimated(estimates(draws("left_to_right", 1.0, num_keys=40), losses_of), nelbo)
    # Variations: a hundredth less is told apart, and so is an order that is not random.
    assert not is_estimated(have, 0.99 * nelbo)
    np.testing.assert_allclose(estimates(draws("left_to_right"), losses_of), suffix_sum(losses_of), rtol=1e-5)
    assert not is_estimated(have, suffix_sum(losses_of))


def test_for_a_structured_order_the_masked_sum_is_not_the_likelihood_and_order_losses_is():
    bed = distributions.stationary_markov_chain([[0.9, 0.1], [0.2, 0.8]], LENGTH)
    x0 = np.asarray(bed.sample(jax.random.key(2), 1))
    nats = -bed.log_prob(x0)[0]

    def losses_of(xt):
        context = np.where(xt == MASK, bed.mask_id, x0)
        return -np.take_along_axis(bed.denoise(context), np.repeat(x0, BATCH, axis=0)[..., None], axis=2)[..., 0]

    # A batch holds every n once, so that of left_to_right is a constant: far above the likelihood.
    masked_sum = estimates(draws("left_to_right"), losses_of)[0]
    np.testing.assert_allclose(masked_sum, suffix_sum(losses_of), rtol=1e-5)
    assert masked_sum > 1.2 * nats
    spaced = estimates(draws("spaced", num_keys=40), losses_of)
    assert not is_estimated(spaced, nats)
    # In random order it is the likelihood, as the conditionals are exact.
    assert is_estimated(estimates(draws("random", num_keys=40), losses_of), nats)
    # The next token of each prefix is the likelihood in any order.
    denoiser = PlainDenoiser(bed.denoise, bed.mask_id)
    names = ["left_to_right", "spaced", "bisection", "random"]
    rows = jnp.concatenate([orders.draw(name, jax.random.key(0), 1, LENGTH) for name in names])
    tokens = jnp.repeat(jnp.asarray(x0), len(names), axis=0)
    have = reveal.order_losses(denoiser, None, tokens, rows, jax.random.key(0), LENGTH, LINEAR.time_at)
    np.testing.assert_allclose(have, nats, rtol=1e-5)
    with pytest.raises(AssertionError):  # variation: the same check rejects the masked sum
        np.testing.assert_allclose(masked_sum, nats, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------ configuration


def config_of(batch_size=8, **diffusion):
    return configs.from_dict({
        "train": {"batch_size": batch_size}, "diffusion": {"masking": "order_prefix", **diffusion},
    })  # fmt: skip


@pytest.mark.parametrize("order", [*FAMILIES, "blocks:16"])
@pytest.mark.parametrize("share", [0, 0.0, 0.5, 1])
def test_every_family_and_every_share_is_accepted(order, share):
    diffusion = config_of(order=order, random_order_share=share).diffusion
    assert (diffusion.order, diffusion.random_order_share) == (order, share)
    orders.check(diffusion.order)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "spacedd"}, r"^diffusion\.order='spacedd': must be one of spaced, golden"),
        ({"order": ""}, r"^diffusion\.order='': must be one of"),
        ({"order": "blocks"}, r"^diffusion\.order='blocks': .*blocks:N with N at least 1$"),
        ({"order": "blocks:0"}, r"^diffusion\.order='blocks:0': must be one of"),
        ({"order": "blocks:-4"}, r"^diffusion\.order='blocks:-4': must be one of"),
        ({"order": "spaced\n"}, r"^diffusion\.order='spaced\\n': must be one of"),
        ({"order": 3}, r"diffusion\.order"),
        ({"random_order_share": -0.1}, r"^diffusion\.random_order_share=-0\.1: must be between 0 and 1$"),
        ({"random_order_share": 1.1}, r"^diffusion\.random_order_share=1\.1: must be between 0 and 1$"),
        ({"random_order_share": float("nan")}, r"^diffusion\.random_order_share=nan: must be between 0 and 1$"),
        ({"schedule": "cosine"}, r"^diffusion\.schedule='cosine': masking 'order_prefix' .*'independent'$"),
        ({"schedule": "polynomial"}, r"^diffusion\.schedule='polynomial': masking 'order_prefix'"),
        ({"schedule": "log_linear"}, r"^diffusion\.schedule='log_linear': masking 'order_prefix'"),
        ({"batch_size": 7}, r"^train\.batch_size=7: diffusion\.masking='order_prefix' pairs rows.*, not 7$"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        config_of(**options)
    assert "\n" not in str(caught.value)
    config_of(schedule="linear", batch_size=6)  # variation: the right ones pass


def test_the_rules_on_schedules_and_even_batches_are_those_of_pairs_only():
    free = {"masking": "independent", "schedule": "cosine"}
    assert config_of(batch_size=7, **free).train.batch_size == 7
    with pytest.raises(ValueError, match="batch_size=7"):
        config_of(batch_size=7)


def test_the_objective_of_a_config_masks_in_its_order():
    def is_masked(order, share):
        objective = objectives.make_objective(config_of(order=order, random_order_share=share).diffusion, MASK)
        return np.asarray(objective(jax.random.key(1), jnp.asarray(X0)).inputs) == MASK

    ends = ends_of_family("spaced")
    assert are_ends(is_masked("spaced", 0.0), ends).all()
    # Variations: another order, and a share of random ones.
    assert not are_ends(is_masked("left_to_right", 0.0), ends).all()
    assert not are_ends(is_masked("spaced", 1.0), ends).all()
