"""Choices compose: whatever is combined, promises about frozen tokens, counts, batches, devices and programs hold."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax import config, sampling
from dlm_jax.information import distributions, schedules
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.parallel.mesh import make_mesh
from dlm_jax.sampling import loop, presets, transitions

L, V, EOS = 8, 5, 0
BED = distributions.stationary_markov_chain(0.6 * np.eye(V) + 0.08, L)


@st.composite
def choices(draw):
    """A valid SampleConfig, as keyword arguments, and what else it is given."""
    found = {
        "temperature": draw(st.sampled_from([1.0, 0.0, 0.7])),
        "top_k": draw(st.sampled_from([0, 3])),
        "top_p": draw(st.sampled_from([1.0, 0.8])),
        "selection": draw(st.sampled_from(config.SELECTIONS)),
        "transition": draw(st.sampled_from([
            "exact_count", "quota_llada", "quota_dream", "ancestral_md4", "ancestral_mdlm", "first_hitting",
            "threshold:0.6", "factor:1", "entropy_bound:0.5", "entropy_sum:1.5",
        ])),
        "remasking": draw(st.sampled_from(
            ["none", "none", "corrector:1", "corrector:2", "remdm_cap:0.2", "remdm_confidence:0.5", "forward_backward"]
        )),
        "block_length": draw(st.sampled_from([0, 0, 4, 3])),
        "spacing": draw(st.sampled_from([1, 1, 2])),
        "order_temperature": draw(st.sampled_from([0.0, 0.0, 0.5])),
        "scores": draw(st.sampled_from(["marginals", "filtered"])),
        "numerics": draw(st.sampled_from(["exact", "exact", "published"])),
        "stop_at_eos": draw(st.booleans()),
        "guidance": draw(st.sampled_from([0.0, 0.0, 1.0])),
        "num_steps": draw(st.sampled_from([0, 6])),
    }  # fmt: skip
    given_beside = {"order": draw(st.sampled_from([None, "spaced"])), "critical": draw(st.sampled_from([(), (2, 7)]))}
    return found, given_beside


def canvases(batch):
    """Prompts of different lengths, an infilling row, an empty one and a full one, again and again."""
    canvas = np.full((batch, L), V, np.int32)
    canvas[1::5, :2], canvas[2::5, :5], canvas[3::5, [0, 4, 6]], canvas[4::5] = 1, 2, 3, 4
    return canvas


def draw_samples(found, beside, batch=10, key=0, **more):
    return sampling.sample(
        BED.denoise, key=jax.random.key(key), mask_id=V, canvas=canvases(batch), eos_id=EOS, **found, **beside, **more
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(choices())
def test_any_valid_composition_keeps_every_promise(composition):
    found, beside = composition
    try:
        out = draw_samples(found, beside)
    except ValueError as refused:
        assert "\n" not in str(refused) and len(str(refused)) > 20
        return
    canvas = canvases(10)
    is_frozen = canvas != V
    np.testing.assert_array_equal(out.tokens[is_frozen], canvas[is_frozen])
    assert ((out.tokens >= 0) & (out.tokens < V)).all()
    assert (out.reveal_step[is_frozen] == -1).all()
    assert (out.nfe[4::5] == 0).all()  # nothing to do in a full row
    revealed = out.reveal_step >= 0
    if not found["stop_at_eos"]:
        np.testing.assert_array_equal(revealed, ~is_frozen)
    else:  # what was not revealed follows an end-of-text
        assert (out.tokens[~revealed & ~is_frozen] == EOS).all()
    if found["remasking"] == "none" and not found["stop_at_eos"]:
        np.testing.assert_array_equal(out.nfe, [len(set(row[row >= 0])) for row in out.reveal_step])
    # The same seed gives the same tokens, and a row does not depend on the others.
    few = draw_samples(found, beside, batch=5)
    np.testing.assert_array_equal(few.tokens, out.tokens[:5])
    np.testing.assert_array_equal(few.nfe, out.nfe[:5])


def test_most_random_compositions_are_refused_and_many_are_not():
    """Otherwise the test above would say little."""
    accepted = refused = 0

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(choices())
    def look(composition):
        nonlocal accepted, refused
        found, beside = composition
        try:
            made = loop.make_choices(**found)
            loop.resolve_stage_sizes(loop.canvases.make_layout(L, made.block_length, beside["critical"]), made)
            accepted += 1
        except ValueError:
            refused += 1

    look()
    assert accepted >= 20 and refused >= 20


def test_another_seed_and_another_choice_give_other_tokens():
    plain = draw_samples({}, {}).tokens
    assert (plain != draw_samples({}, {}, key=1).tokens).any()
    for other in ({"selection": "entropy"}, {"temperature": 0.0}, {"top_k": 1}, {"remasking": "corrector:2"}):
        assert (plain != draw_samples(other, {}).tokens).any()


@pytest.mark.parametrize("selection", ["random", "confidence"])
def test_sizes_are_kept_block_by_block_and_critical_positions_come_last_one_by_one(selection):
    empty = np.full((4, L), V, np.int32)
    ask = functools.partial(sampling.sample, BED.denoise, key=jax.random.key(0), mask_id=V, canvas=empty)
    out = ask(block_length=4, sizes=[3, 1], selection=selection)
    for first in (0, 4):
        steps = np.sort(out.reveal_step[:, first : first + 4], axis=1)
        assert (steps == first // 2 + np.asarray([0, 0, 0, 1])).all()
    out = ask(critical=(5, 1), sizes=[2, 4], selection=selection)
    assert (out.reveal_step[:, [5, 1]] == [2, 3]).all() and (out.nfe == 4).all()
    assert (ask(sizes=[2, 6], selection=selection).reveal_step[:, [5, 1]] != [2, 3]).any()  # variation


def test_positions_revealed_together_are_apart_where_that_is_possible():
    empty = np.full((64, L), V, np.int32)
    ask = functools.partial(sampling.sample, BED.denoise, key=jax.random.key(0), mask_id=V, canvas=empty, num_steps=4)

    def nearest(out):
        pairs = [np.diff(np.flatnonzero(row == step)) for row in out.reveal_step for step in range(4)]
        return min(pair.min() for pair in pairs if len(pair))

    assert nearest(ask(selection="confidence")) == 1  # variation: without the constraint they cluster
    first_two = ask(selection="confidence", spacing=3).reveal_step
    for row in first_two:
        for step in range(2):  # later the room runs out
            assert np.diff(np.flatnonzero(row == step)).min() >= 3


# ------------------------------------------------------------------------------------------ batches, devices, programs


@functools.cache
def network(**fields):
    made = Denoiser(
        config.ModelConfig(num_layers=2, embed_dim=16, num_heads=2, mlp_dim=16, dtype="float32", **fields), V
    )
    noise = np.random.default_rng(0)
    abstract = jax.eval_shape(made.init, jax.random.key(0))
    return made, jax.tree.map(lambda leaf: jnp.asarray(0.7 * noise.normal(size=leaf.shape), jnp.float32), abstract)


def run(batch=16, mesh=None, key=3, choices=(), **options):
    denoiser, params = network()
    return loop.run(
        denoiser, params, jax.random.key(key), canvases(batch), config.SampleConfig(**dict(choices)), mesh=mesh,
        eos_id=EOS, **options,
    )  # fmt: skip


WAYS = {
    "random": {"num_steps": 4},
    "confidence": {"num_steps": 4, "selection": "confidence"},
    "entropy bound": {"selection": "entropy", "transition": "entropy_bound:0.5"},
    "ancestral": {"transition": "ancestral_mdlm", "num_steps": 4},
    "remasking": {"transition": "ancestral_mdlm", "num_steps": 8, "remasking": "remdm_cap:0.2"},
    "guided blocks": {"num_steps": 4, "block_length": 4, "guidance": 1.0},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_network_gives_the_same_tokens_alone_in_a_batch_and_over_eight_devices(way, capsys):
    """Float ties may decide otherwise where sums run in another order; the number of such rows is printed."""
    choices = tuple(WAYS[way].items())
    alone = run(choices=choices)
    spread = run(choices=choices, mesh=make_mesh((1, 8, 1)))
    few = run(batch=6, choices=choices)
    other = run(choices=choices, key=4)
    apart = (spread.tokens != alone.tokens).any(axis=1).sum() + (few.tokens != alone.tokens[:6]).any(axis=1).sum()
    with capsys.disabled():
        print(f"\n{way}: {apart} of 22 rows differ", end=" ")
    assert apart == 0
    assert (other.tokens != alone.tokens).any(axis=1).sum() > 4  # variation


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if name != "planned"])
def test_a_preset_is_one_program_without_callbacks_or_transfers(name, monkeypatch):
    fields = presets.preset(name)
    made = config.SampleConfig(**fields)
    if made.needs_num_steps:
        made = dataclasses.replace(made, num_steps=4)
    denoiser, params = network()
    loop._program.cache_clear()  # programs of other tests
    programs, make = [], loop._program

    def watched(*static):
        program = make(*static)
        programs.append(program)

        def guarded(*arguments):
            arguments = jax.device_put(arguments)
            assert "callback" not in program.lower(*arguments).as_text()
            with jax.transfer_guard("disallow"):
                return jax.block_until_ready(program(*arguments))

        return guarded

    monkeypatch.setattr(loop, "_program", watched)
    for seed, temperature in ((0, made.temperature), (1, 0.9)):  # numbers change without compiling
        choices = dataclasses.replace(made, temperature=temperature)
        loop.run(denoiser, params, jax.random.key(seed), canvases(6), choices)
    assert programs[0] is programs[1] and programs[0]._cache_size() == 1


def test_adaptive_budgets_and_thresholds_share_a_program_and_sizes_of_a_profile_do():
    denoiser, params = network()
    empty = np.full((4, L), V, np.int32)
    for budget in (0.1, 0.5, 2.0):
        made = config.SampleConfig(selection="entropy", transition=f"entropy_bound:{budget}")
        loop.run(denoiser, params, jax.random.key(0), empty, made)
    for sizes in ([2, 2, 2, 2], [1, 3, 3, 1], [2, 1, 2, 3]):
        loop.run(denoiser, params, jax.random.key(0), empty, config.SampleConfig(), sizes=sizes)
    info = loop._program.cache_info()
    before = info.misses
    loop.run(denoiser, params, jax.random.key(0), empty, config.SampleConfig(selection="entropy",
             transition="entropy_bound:0.7"))  # fmt: skip
    assert loop._program.cache_info().misses == before
    assert [len(loop.group_steps(sizes)) for sizes in ([2, 2, 2, 2], [2, 1, 2, 2])] == [1, 1]


def test_steps_of_planned_sizes_are_those_given():
    sizes = schedules.cosine_sizes(L, 3)
    out = sampling.sample(BED.denoise, key=jax.random.key(0), mask_id=V, num_samples=3, length=L, sizes=sizes)
    assert [(out.reveal_step == step).sum() // 3 for step in range(3)] == sizes.tolist()
    made = transitions.make_steps(config.SampleConfig(), loop.canvases.make_layout(L), [sizes])
    assert made.filled.tolist() == np.cumsum(sizes).tolist()


@pytest.mark.parametrize("selection", ["random", "entropy"])
def test_everything_after_end_of_text_is_end_of_text_whatever_the_order(selection):
    empty = np.full((200, L), V, np.int32)
    ask = functools.partial(sampling.sample, BED.denoise, key=jax.random.key(0), mask_id=V, canvas=empty)
    out = ask(selection=selection, stop_at_eos=True, eos_id=EOS)
    ended = np.cumsum(out.tokens == EOS, axis=1) > 0
    assert (out.tokens[ended] == EOS).all() and ended.any() and not ended.all()
    plain = ask(selection=selection).tokens
    assert (plain[np.cumsum(plain == EOS, axis=1) > 0] != EOS).any()  # variation: without it rows go on
