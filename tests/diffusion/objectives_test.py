"""What each objective asks, and which combinations the configuration refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax import config
from dlm_jax.diffusion import masking, schedules
from dlm_jax.diffusion.objectives import make_objective, shift_right

V = 7
X0 = (jnp.arange(24) % V).reshape(4, 6)
KEY = jax.random.key(0)


def ask(**fields):
    return jax.jit(make_objective(config.DiffusionConfig(**fields), V))(KEY, X0, None)


def test_nelbo_of_exact_counts_scores_the_masked_tokens_and_normalises_by_all():
    question = ask(objective="nelbo")
    want = masking.exact_count(KEY, X0, V, schedules.linear())
    np.testing.assert_array_equal(question.inputs, want.xt)
    np.testing.assert_array_equal(question.scored, want.scored)
    np.testing.assert_allclose(question.weights, want.weights)
    np.testing.assert_array_equal(
        question.targets, np.take_along_axis(np.asarray(X0).reshape(2, 12), np.asarray(want.scored), 1)
    )
    assert question.normaliser == 24
    assert question.constant == 0
    # Variation: the inputs at scored positions are masks, never the targets.
    read = np.take_along_axis(np.asarray(question.inputs).reshape(2, 12), np.asarray(question.scored), 1)
    assert (read == V).all()


def test_nelbo_of_independent_masks_adds_the_constant():
    question = ask(objective="nelbo", masking="independent", time_epsilon=0.1)
    np.testing.assert_allclose(question.constant, 0.1 * np.log(V), rtol=1e-5)
    np.testing.assert_array_equal(question.targets, X0)
    assert question.normaliser == 24
    np.testing.assert_array_equal(question.weights > 0, question.inputs == V)


@pytest.mark.parametrize("how", ["exact_count", "independent"])
def test_cross_entropy_is_an_unweighted_mean_over_masked_tokens(how):
    question = ask(objective="cross_entropy", masking=how)
    num_masked = (question.inputs == V).sum()
    assert set(np.unique(question.weights)) <= {0.0, 1.0}
    assert question.weights.sum() == question.normaliser == num_masked
    assert question.constant == 0


def test_autoregressive_reads_the_previous_token_and_scores_all():
    question = ask(objective="autoregressive")
    np.testing.assert_array_equal(question.inputs[:, 1:], X0[:, :-1])
    np.testing.assert_array_equal(question.inputs[:, 0], [V] * 4)
    np.testing.assert_array_equal(question.targets, X0)
    np.testing.assert_array_equal(question.weights, np.ones((4, 6)))
    assert question.normaliser == 24


def test_shift_right_starts_every_segment_with_the_mask():
    tokens = jnp.array([[1, 2, 3, 4, 5, 6]])
    segments = jnp.array([[0, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(shift_right(tokens, V, segments), [[V, 1, V, 3, 4, V]])
    np.testing.assert_array_equal(shift_right(tokens, V), [[V, 1, 2, 3, 4, 5]])  # variation


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"diffusion": {"schedule": "cosine"}}, "diffusion.schedule='cosine'.*exact_count"),
        ({"diffusion": {"objective": "autoregressive"}}, "'autoregressive' and 'causal' go together"),
        ({"model": {"attention": "causal"}}, "'autoregressive' and 'causal' go together"),
        ({"diffusion": {"objective": "elbo"}}, "did you mean 'nelbo'"),
        ({"diffusion": {"time_epsilon": 0.0}}, "diffusion.time_epsilon=0.0: must be above 0"),
        ({"train": {"batch_size": 3}}, "train.batch_size=3.*even number of rows"),
        (
            {
                "diffusion": {"objective": "autoregressive"},
                "model": {"attention": "causal", "time_conditioning": True},
            },
            "a causal model has no diffusion time",
        ),
    ],
)
def test_impossible_combinations_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        config.from_dict(values)


def test_the_neighbours_of_the_refused_combinations_are_allowed():
    config.from_dict({"diffusion": {"schedule": "cosine", "masking": "independent"}})
    config.from_dict({"diffusion": {"objective": "autoregressive"}, "model": {"attention": "causal"}})
    config.from_dict({"diffusion": {"masking": "independent"}, "train": {"batch_size": 3}})
