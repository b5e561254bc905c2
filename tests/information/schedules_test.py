"""Step sizes: golden values of THEORY 3.5, sums and errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax.information import cosine_sizes, logodds_sizes, uniform_sizes
from dlm_jax.information.schedules import check_sizes

ALL = [uniform_sizes, cosine_sizes, logodds_sizes]


@pytest.mark.parametrize(
    ("make", "length", "num_steps", "want"),
    [
        (cosine_sizes, 256, 8, (5, 14, 24, 32, 39, 44, 48, 50)),
        (logodds_sizes, 256, 8, (1, 5, 29, 93, 93, 29, 5, 1)),
        (logodds_sizes, 256, 2, (128, 128)),
        (uniform_sizes, 256, 8, (32,) * 8),
        (uniform_sizes, 8, 3, (2, 3, 3)),
        (uniform_sizes, 8, 5, (1, 2, 1, 2, 2)),
        (uniform_sizes, 8, 6, (1, 1, 2, 1, 1, 2)),
    ],
)
def test_sizes_equal_the_golden_ones(make, length, num_steps, want):
    have = make(length, num_steps)
    assert tuple(have) == want
    assert have.dtype == np.int64
    # Variation: one token moved between steps is another schedule, though its sum is the same.
    moved = np.array(want)
    moved[0], moved[1] = moved[0] + 1, moved[1] - 1
    assert tuple(have) != tuple(moved)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(ALL), st.integers(1, 700), st.data())
def test_every_size_is_at_least_one_and_they_sum_to_the_length(make, length, data):
    num_steps = data.draw(st.integers(1, length))
    sizes = make(length, num_steps)
    assert len(sizes) == num_steps
    assert sizes.min() >= 1
    assert sizes.sum() == length
    np.testing.assert_array_equal(check_sizes(sizes, length), sizes)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("num_steps", [0, -1, 9])
def test_step_counts_outside_the_length_are_refused(make, num_steps):
    with pytest.raises(ValueError, match=f"num_steps={num_steps}: must be between 1 and the length 8"):
        make(8, num_steps)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([4, 3], "sum 7 must be the length 8"),
        ([8, 0], "at least 1 token, not 0"),
        ([9, -1], "at least 1 token, not -1"),
        ([4.0, 4.0], "whole numbers"),
        ([], "whole numbers"),
        ([[4], [4]], "whole numbers"),
        (8, "whole numbers"),
    ],
)
def test_wrong_sizes_are_refused_by_name(sizes, message):
    with pytest.raises(ValueError, match=message) as error:
        check_sizes(sizes, 8, "sample.sizes")
    assert str(error.value).startswith("sample.sizes=")
