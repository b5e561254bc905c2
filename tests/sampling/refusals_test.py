"""What cannot be composed is refused before anything is compiled: one line that names the field, its value and why."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from dlm_jax import config as configs
from dlm_jax import sampling
from dlm_jax.api import Generator
from dlm_jax.config import SampleConfig
from dlm_jax.data.tokenizers import ByteTokenizer, CharacterTokenizer
from dlm_jax.information import distributions
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.sampling import canvas as canvases
from dlm_jax.sampling import loop, presets

INF, NAN = float("inf"), float("nan")
LENGTH = 12
BED = distributions.Independent(np.full((LENGTH, 3), 1 / 3))


def case_name(case):
    return ",".join(f"{name}={value}" for name, value in case.items()) if isinstance(case, dict) else ""


@pytest.fixture
def nothing_runs(monkeypatch):
    """A sampler that gets as far as its program fails another way."""

    def ran(*_):
        raise AssertionError("the program was built")

    monkeypatch.setattr(loop, "_program", ran)


# ----------------------------------------------------------------------------------------------------- of one field

FIELDS = [
    ({"num_samples": 0}, r"^num_samples=0: must be at least 1$"),
    ({"num_samples": -3}, r"^num_samples=-3: must be at least 1$"),
    ({"num_steps": -1}, r"^num_steps=-1: must be at least 0$"),
    ({"selection": "best"}, r"^selection='best': must be one of random, confidence, margin, entropy, drawn$"),
    ({"selection": ""}, r"^selection='': must be one of random, "),
    ({"selection": "Random"}, r"^selection='Random': .*\(did you mean 'random'\?\)$"),
    *(
        ({name: value}, rf"^{name}={value}: must be at least 0 and finite$")
        for name in ("temperature", "order_temperature")
        for value in (-0.1, INF, -INF, NAN)
    ),
    ({"spacing": 0}, r"^spacing=0: must be at least 1$"),
    ({"spacing": -2}, r"^spacing=-2: must be at least 1$"),
    ({"scores": "filter"}, r"^scores='filter': .*\(did you mean 'filtered'\?\)$"),
    ({"top_k": -1}, r"^top_k=-1: must be at least 0$"),
    *(({"top_p": value}, rf"^top_p={value}: must be above 0 and at most 1$") for value in (0.0, -0.5, 1.01, INF, NAN)),
    ({"numerics": "fast"}, r"^numerics='fast': must be one of exact, published$"),
    ({"block_length": -1}, r"^block_length=-1: must be at least 0$"),
    ({"cache": "kv"}, r"^cache='kv': must be one of none, exact, prefix, dual$"),
    *(({"guidance": value}, rf"^guidance={value}: must be finite$") for value in (INF, -INF, NAN)),
    ({"transition": "treshold:0.9"}, r"^transition='treshold': .*\(did you mean 'threshold'\?\)$"),
    ({"transition": ""}, r"^transition='': must be one of exact_count, "),
    ({"transition": "exact_count:3"}, r"^transition='exact_count:3': exact_count takes no number; must be "),
    ({"transition": "threshold"}, r"^transition='threshold': needs a number, for example 'threshold:0\.5'$"),
    *(
        ({"transition": f"threshold:{number}"}, rf"^transition='threshold:{number}': what follows the colon must be a")
        for number in ("", "x", "nan", "inf", "1e999", "0.5:0.5")
    ),
    ({"transition": "threshold:1.5"}, r"^transition='threshold:1\.5': its number must be at least 0 and at most 1$"),
    ({"transition": "threshold:-0.1"}, r"^transition='threshold:-0\.1': its number must be at least 0 and at most 1$"),
    *(
        ({"transition": f"{name}:-1"}, rf"^transition='{name}:-1': its number must be at least 0$")
        for name in ("factor", "entropy_bound", "entropy_sum")
    ),
    ({"remasking": "remask"}, r"^remasking='remask': must be one of none, remdm_cap, "),
    ({"remasking": ""}, r"^remasking='': must be one of none, remdm_cap, "),
    *(
        ({"remasking": f"{name}:1.5"}, rf"^remasking='{name}:1\.5': its number must be at least 0 and at most 1$")
        for name in ("remdm_cap", "remdm_rescale", "remdm_confidence", "remdm_loop")
    ),
    ({"remasking": "remdm_cap"}, r"^remasking='remdm_cap': needs a number, for example 'remdm_cap:0\.5'$"),
    ({"remasking": "none:1"}, r"^remasking='none:1': none takes no number; must be 'none'$"),
    ({"remasking": "forward_backward:1"}, r"^remasking='forward_backward:1': forward_backward takes no number; must"),
    ({"remasking": "corrector"}, r"^remasking='corrector': needs a number, for example 'corrector:1'$"),
    ({"remasking": "corrector:0"}, r"^remasking='corrector:0': its number must be at least 1 and at most "),
    ({"remasking": "corrector:1.5"}, r"^remasking='corrector:1\.5': its number must be whole"),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------- of several fields

MDLM = {"transition": "ancestral_mdlm", "num_steps": 4}
COMPOSITIONS = {
    "_steps_follow_from_transition": [
        ({"transition": name, "selection": selection, "num_steps": 4}, rf"^num_steps=4: transition '{name}' chooses")
        for name, selection in [
            ("first_hitting", "random"), ("threshold:0.9", "confidence"), ("factor:1", "drawn"),
            ("entropy_bound:0.1", "entropy"), ("entropy_sum:0.1", "random"),
        ]
    ],
    "_thresholds_need_confidence": [
        ({"transition": name, "selection": selection}, rf"^transition='{name}': compares .* not '{selection}'$")
        for name in ("threshold:0.9", "factor:1")
        for selection in ("random", "margin", "entropy")
    ],
    "_entropies_are_of_marginals": [
        ({"transition": name, "selection": "drawn"}, rf"^transition='{name}': looks at entropies before a token")
        for name in ("entropy_bound:0.1", "entropy_sum:0.1")
    ],
    "_ancestral_picks_positions": [
        ({"transition": name, "num_steps": 4, field: value}, rf"^{field}={value!r}: transition '{name}' {why}")
        for name in ("ancestral_md4", "ancestral_md4_cosine", "ancestral_mdlm")
        for field, value, why in [
            ("selection", "confidence", "reveals each token on its own; must be 'random'$"),
            ("selection", "drawn", "reveals each token on its own; must be 'random'$"),
            ("block_length", 4, "runs over the whole row; must be 0$"),
        ]
    ],
    "_first_hitting_is_random": [
        ({"transition": "first_hitting", "selection": name}, rf"^selection='{name}': transition 'first_hitting' hits a")
        for name in ("confidence", "margin", "entropy", "drawn")
    ],
    "_known_orders_have_no_scores": [
        ({"order_temperature": 0.5}, r"^order_temperature=0\.5: selection 'random' has no scores; must be 0$"),
        ({"spacing": 2}, r"^spacing=2: a known order is taken as it is \(order 'spaced' spreads tokens\); must be 1$"),
    ],
    "_remasking_needs_a_clock": [
        *(
            ({"remasking": name, **other}, rf"^remasking='{name}': follows the clock of transition 'ances")
            for name in ("remdm_cap:0", "remdm_rescale:0", "remdm_confidence:0", "remdm_loop:0", "forward_backward")
            for other in ({}, {"transition": "ancestral_md4", "num_steps": 4}, {"transition": "first_hitting"})
        ),
        (
            {**MDLM, "remasking": "remdm_cap:0.1", "numerics": "published"},
            r"^numerics='published': remasking 'remdm_cap:0\.1' was published with exact draws; must be 'exact'$",
        ),
    ],
    "_revised_rows_have_no_end": [
        ({"remasking": "corrector:1", "stop_at_eos": True}, r"^stop_at_eos=True: remasking 'corrector:1' may take the"),
        (
            {**MDLM, "remasking": "forward_backward", "stop_at_eos": True},
            r"^stop_at_eos=True: remasking 'forward_backward' may take the end back; must be False$",
        ),
        (
            {"remasking": "corrector:1", "cache": "dual", "block_length": 4},
            r"^cache='dual': remasking 'corrector:1' changes tokens that are cached; must be 'none'$",
        ),
    ],
    "_caches_need_blocks": [
        *(
            ({"cache": name}, rf"^cache='{name}': is refreshed block by block; block_length must be at least 1$")
            for name in ("exact", "prefix", "dual")
        ),
        (
            {"cache": "prefix", "block_length": 4, "guidance": 1.0},
            r"^cache='prefix': guidance 1\.0 looks at a second canvas, which is not cached; must be 'none'$",
        ),
    ],
    "_published_has_published_parts": [
        (
            {"numerics": "published", "transition": name, "selection": "confidence"},
            rf"^numerics='published': transition '{name}' has no old sampler to compare with; must be 'exact'$",
        )
        for name in ("threshold:0.9", "factor:1", "entropy_bound:0.1", "entropy_sum:0.1")
    ],
}  # fmt: skip
ALL_COMPOSITIONS = [pair for pairs in COMPOSITIONS.values() for pair in pairs]
# One change away from something refused.
ACCEPTED = [
    {},
    {"num_samples": 1, "num_steps": 0, "temperature": 0.0, "top_k": 0, "top_p": 1.0},
    {"top_p": 1e-6, "guidance": -2.0, "numerics": "published"},
    {"transition": "threshold:0", "selection": "confidence"},
    {"transition": "threshold:1", "selection": "drawn"},
    {"transition": "factor:0", "selection": "confidence"},
    {"transition": "entropy_bound:0", "selection": "margin"},
    {"transition": "entropy_sum:5", "selection": "random"},
    {"transition": "first_hitting"},
    {"transition": "first_hitting", "block_length": 4},
    {"transition": "quota_llada", "num_steps": 4, "selection": "drawn", "block_length": 4, "cache": "dual"},
    {"selection": "margin", "order_temperature": 0.5, "spacing": 3, "scores": "filtered"},
    {**MDLM, "remasking": "remdm_cap:0"},
    {**MDLM, "remasking": "remdm_loop:1"},
    {**MDLM, "remasking": "forward_backward"},
    {**MDLM, "numerics": "published"},
    {**MDLM, "stop_at_eos": True},
    {"remasking": "corrector:1"},
    {"remasking": "corrector:3", "selection": "drawn", "block_length": 4},
    {"cache": "prefix", "block_length": 4, "stop_at_eos": True},
    {"guidance": 1.0, "block_length": 4},
]


@pytest.mark.parametrize(("choices", "message"), FIELDS + ALL_COMPOSITIONS, ids=case_name)
def test_a_broken_rule_is_one_line_that_begins_with_the_field_and_its_value(choices, message):
    with pytest.raises(ValueError, match=message) as caught:
        loop.make_choices(**choices)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(ValueError) as of_config:  # a config file says the same, with its group in front
        SampleConfig(**choices)
    assert str(of_config.value) == f"sample.{caught.value}"


@pytest.mark.parametrize("choices", ACCEPTED, ids=case_name)
def test_what_lies_next_to_the_rules_is_accepted(choices):
    made = loop.make_choices(**choices)
    assert {name: getattr(made, name) for name in choices} == choices


def test_every_rule_is_broken_by_the_cases_under_its_name_and_by_no_accepted_ones():
    assert list(COMPOSITIONS) == [rule.__name__ for rule in configs._SAMPLER_RULES]
    for rule in configs._SAMPLER_RULES:
        for choices, _ in COMPOSITIONS[rule.__name__]:
            unchecked = object.__new__(SampleConfig)
            for field in dataclasses.fields(SampleConfig):
                object.__setattr__(unchecked, field.name, choices.get(field.name, field.default))
            assert rule(unchecked), (rule.__name__, choices)
        assert not [choices for choices in ACCEPTED if rule(loop.make_choices(**choices))]


def test_every_value_of_every_table_is_known_to_the_sampler():
    assert set(configs.TRANSITIONS) == {name for name in configs.TRANSITIONS if name.startswith("ancestral")} | set(
        loop.transitions.COUNTS
    )
    assert set(configs.REMASKINGS) == {"none", "corrector"} | set(loop.remasking.SIGMAS)
    assert set(configs.SELECTIONS) == {"random"} | set(loop.selections.SCORES)
    assert set(loop.transitions.ADAPTIVE) == {n for n, bounds in configs.TRANSITIONS.items() if bounds is not None}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"temprature": 1.0}, r"^temprature: unknown; must be one of num_samples, .*stop_at_eos$"),
        ({"Temperature": 1.0}, r"^Temperature: unknown; must be one of "),
        ({"": 1.0}, r"^: unknown; must be one of "),
    ],
    ids=case_name,
)
def test_an_unknown_choice_is_named(choices, message):
    with pytest.raises(ValueError, match=message):
        loop.make_choices(**choices)


# ---------------------------------------------------------------------------------------- with a canvas and a denoiser


def plain(**options):
    return sampling.sample(
        BED.denoise, key=jax.random.key(0), mask_id=BED.mask_id,
        **{"num_samples": 2, "length": LENGTH, **options},
    )  # fmt: skip


PROMPTED = np.where(np.arange(LENGTH) < 2, 0, BED.mask_id)[None]
QUOTA = {"transition": "quota_llada"}
RUNS = [
    ({"num_samples": None}, r"^num_samples, length: both must be given where there is no canvas$"),
    ({"length": None}, r"^num_samples, length: both must be given where there is no canvas$"),
    ({"num_steps": 0}, r"^num_steps=0: must be between 1 and the length 12$"),
    ({"num_steps": -1}, r"^num_steps=-1: must be between 1 and the length 12$"),
    ({"num_steps": 13}, r"^num_steps=13: must be between 1 and the length 12$"),
    ({"sizes": [6, 5]}, r"^sizes=\[6, 5\]: sum 11 must be the length 12$"),
    ({"sizes": [12, 0]}, r"^sizes=\[12, 0\]: every step must reveal at least 1 token, not 0$"),
    ({"sizes": [14, -2]}, r"^sizes=\[14, -2\]: every step must reveal at least 1 token, not -2$"),
    ({"sizes": []}, r"^sizes=\[\]: must be a list of whole numbers$"),
    ({"sizes": 12}, r"^sizes=12: must be a list of whole numbers$"),
    ({"sizes": [6.0, 6.0]}, r"^sizes=\[6\.0, 6\.0\]: must be a list of whole numbers$"),
    ({"sizes": [6, 6], "num_steps": 3}, r"^num_steps=3: must be 2, the number of sizes, or None$"),
    *(
        ({"sizes": [6, 6], "transition": name, **more}, rf"^sizes: transition '{name}' has its own; must be None$")
        for name, more in [
            ("quota_llada", {"num_steps": 2}), ("quota_dream", {"num_steps": 2}), ("ancestral_mdlm", {"num_steps": 2}),
            ("first_hitting", {}), ("threshold:0.5", {"selection": "confidence"}), ("entropy_sum:1", {}),
        ]
    ),
    *(
        ({"transition": name}, rf"^num_steps=0: transition '{name}' needs a number of steps, at least 1$")
        for name in configs._FIXED_STEPS
    ),
    ({"block_length": 13}, r"^block_length=13: must be at most the length 12$"),
    ({"block_length": 4, "num_steps": 4}, r"^num_steps=4: must be a multiple of 3, the number of blocks$"),
    ({"block_length": 5, "num_steps": 2}, r"^num_steps=2: must be a multiple of 3, the number of blocks$"),
    ({"block_length": 4, "num_steps": 4, **QUOTA}, r"^num_steps=4: must be a multiple of 3, the number of blocks$"),
    ({"block_length": 4, "sizes": [6, 6]}, r"^sizes=\[6, 6\]: sum 12 must be the .*4$"),
    ({"critical": [12]}, r"^critical=\[12\]: must be different positions from 0 to 11$"),
    ({"critical": [-1]}, r"^critical=\[-1\]: must be different positions from 0 to 11$"),
    ({"critical": [3, 3]}, r"^critical=\[3, 3\]: must be different positions from 0 to 11$"),
    ({"critical": range(12)}, r"^critical: 12 positions must be fewer than the length 12$"),
    ({"critical": [3], "sizes": [6, 6]}, r"^sizes=\[6, 6\]: sum 12 must be .*11$"),
    *(
        ({"order": order, **more}, rf"^order: {what} chooses its own; must be None$")
        for order in ("spaced", list(range(LENGTH)))
        for more, what in [
            ({"selection": "drawn"}, "selection='drawn'"),
            ({"selection": "confidence", "transition": "threshold:0.5"}, "selection='confidence'"),
            (MDLM, "transition='ancestral_mdlm'"),
        ]
    ),
    ({"stop_at_eos": True}, r"^stop_at_eos=True: there is no end-of-text token; must be False$"),
    ({"guidance": 1.0}, r"^guidance: needs a prompt or another frozen position to be guided by$"),
    ({"negative": [0]}, r"^negative.*: needs guidance, which is 0$"),
    ({"canvas": PROMPTED, "negative": [0]}, r"^negative.*: needs guidance, which is 0$"),
    ({"canvas": PROMPTED, "negative": [0] * 3, "guidance": 1.0}, r"^negative.*: 3 tokens must be at most .* 2$"),
    *(
        ({"cache": name, "block_length": 4}, rf"^cache='{name}': this denoiser keeps no keys and values; must be")
        for name in ("exact", "prefix", "dual")
    ),
    ({"selection": "best"}, r"^selection='best': must be one of "),
    ({"temprature": 1.0}, r"^temprature: unknown; must be one of "),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), RUNS, ids=case_name)
def test_what_cannot_be_run_is_refused_before_a_program_is_built(options, message, nothing_runs):
    with pytest.raises(ValueError, match=message) as caught:
        plain(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 12}, {"num_steps": 1}, {"sizes": [6, 6], "num_steps": 2}, {"block_length": 12, "num_steps": 5},
        {"block_length": 4, "num_steps": 3}, {"block_length": 4, "sizes": [2, 2]}, {"critical": [11, 0]},
        {"critical": [3], "sizes": [6, 5]}, {"canvas": PROMPTED, "guidance": 1.0, "negative": [0, 0]},
        {**QUOTA, "num_steps": 20}, {"order": list(range(LENGTH))[::-1]},
    ],
    ids=case_name,
)  # fmt: skip
def test_what_lies_next_to_that_is_not_refused(options, nothing_runs):
    with pytest.raises(AssertionError, match="the program was built"):
        plain(**options)


def test_adaptive_and_ancestral_transitions_have_no_sizes_and_ancestral_ones_no_critical_positions():
    layout, plain = canvases.make_layout(LENGTH, 0, (3,)), canvases.make_layout(LENGTH)
    for choices in ({"transition": "entropy_sum:1"}, {"transition": "threshold:0.5", "selection": "drawn"}):
        assert loop.resolve_stage_sizes(layout, SampleConfig(**choices)) is None
    assert loop.resolve_stage_sizes(plain, SampleConfig(**MDLM)) is None
    with pytest.raises(
        ValueError, match=r"^critical: transition 'ancestral_mdlm' runs over the whole row; must be empty$"
    ):
        loop.resolve_stage_sizes(layout, SampleConfig(**MDLM))
    found = loop.resolve_stage_sizes(layout, SampleConfig(num_steps=2))  # variation
    assert [sizes.tolist() for sizes in found] == [[5, 6], [1]]


# --------------------------------------------------------------------------------------------------------- with a model


def tiny(tokenizer=None, **model):
    """A Generator of a network that was never trained; nothing here runs it."""
    model = {"num_layers": 1, "embed_dim": 8, "num_heads": 1, **model}
    causal = {"objective": "autoregressive"} if model.get("attention") == "causal" else {}
    run = configs.RunConfig(
        data=configs.DataConfig(length=LENGTH), model=configs.ModelConfig(**model), eval=configs.EvalConfig(t_steps=()),
        diffusion=configs.DiffusionConfig(**causal),
    )  # fmt: skip
    tokenizer = tokenizer or ByteTokenizer()
    return Generator(run, tokenizer, Denoiser(run.model, tokenizer.vocab_size), None, 0)


BLOCKS = {"cache": "exact", "block_length": 4}
TWO_WAYS, IN_BLOCKS = {}, {"attention": "block_causal", "block_length": 4}
CACHES = [
    (TWO_WAYS, BLOCKS, r"^cache='exact': needs a model of block-causal attention with blocks of 4, not bidirectional$"),
    (IN_BLOCKS, {**BLOCKS, "block_length": 6}, r"^cache='exact': .* with blocks of 6, not of blocks of 4$"),
    (IN_BLOCKS, {**BLOCKS, "cache": "prefix"}, r"^cache='prefix': is made for bidirectional models; .*: 'exact'$"),
    (IN_BLOCKS, {**BLOCKS, "cache": "dual"}, r"^cache='dual': is made for bidirectional models; .*: 'exact'$"),
    (IN_BLOCKS, {**BLOCKS, "critical": [3]}, r"^cache='exact': critical positions lie outside the blocks; must be 'n"),
    (TWO_WAYS, {"cache": "dual", "block_length": 5}, r"^block_length=5: must divide the length 12 with a cache$"),
    (TWO_WAYS, {"cache": "dual", "block_length": 4, "length": 10}, r"^block_length=4: must divide the length 10 with"),
]


@pytest.mark.parametrize(("model", "options", "message"), CACHES, ids=case_name)
def test_a_cache_that_does_not_fit_the_model_is_refused(model, options, message, nothing_runs):
    with pytest.raises(ValueError, match=message):
        tiny(**model).sample(num_samples=1, **options)


@pytest.mark.parametrize(("model", "cache"), [(IN_BLOCKS, "exact"), (TWO_WAYS, "prefix"), (TWO_WAYS, "dual")], ids=str)
def test_a_cache_that_fits_the_model_is_not_refused(model, cache, nothing_runs):
    with pytest.raises(AssertionError, match="the program was built"):
        tiny(**model).sample(num_samples=1, cache=cache, block_length=4)


SAMPLES = [
    ({"num_samples": 0}, r"^num_samples=0: must be a whole number of at least 1$"),
    ({"num_samples": 1.5}, r"^num_samples=1\.5: must be a whole number of at least 1$"),
    ({"num_samples": "2"}, r"^num_samples='2': must be a whole number of at least 1$"),
    ({"num_steps": 0}, r"^num_steps=0: must be between 1 and the length 12$"),
    ({"num_steps": 13}, r"^num_steps=13: must be between 1 and the length 12$"),
    ({"prompt": []}, r"^prompt=\[\]: must be a text, or a list of at least one$"),
    ({"prompt": ["a", "b"], "num_samples": 3}, r"^prompt: 2 prompts must be as many as num_samples=3$"),
    ({"prompt": ["a"], "num_samples": 2}, r"^prompt: 1 prompts must be as many as num_samples=2$"),
    ({"prompt": "x" * 12}, r"^prompt: 12 tokens must be fewer than the length 12$"),
    ({"prompt": ["a", "x" * 12]}, r"^prompt: 12 tokens must be fewer than the length 12$"),
    ({"prompt": "abcd", "length": 4}, r"^prompt: 4 tokens must be fewer than the length 4$"),
    ({"prompt": "\udcff"}, r"^prompt: is no valid Unicode at character 0$"),
    ({"length": 0}, r"^length=0: must be a whole number of at least 1$"),
    ({"length": -5}, r"^length=-5: must be a whole number of at least 1$"),
    ({"seed": -1}, r"^seed=-1: must be between 0 and 4294967295$"),
    ({"seed": 2**32}, r"^seed=4294967296: must be between 0 and 4294967295$"),
    ({"preset": "llama"}, r"^preset='llama': must be one of llada, dream, mdlm, md4, remdm, eb, planned$"),
    ({"preset": ""}, r"^preset='': must be one of llada, "),
    ({"preset": "eb", "num_steps": 4}, r"^num_steps=4: transition 'entropy_bound:0\.1' chooses its own number"),
    ({"preset": "mdlm", "selection": "drawn"}, r"^selection='drawn': transition 'ancestral_mdlm' reveals each token"),
    ({"preset": "llada", "order": "spaced"}, r"^order: selection='drawn' chooses its own; must be None$"),
    ({"preset": "planned"}, r"^plan: must be given, as this model was not loaded from a workdir$"),
    *(
        ({"preset": "planned", **more}, r"^preset='planned': has its own sizes and order; leave them out$")
        for more in ({"sizes": [12]}, {"order": "spaced"}, {"num_steps": 4})
    ),
    ({"negative_prompt": "a"}, r"^negative.*: needs guidance, which is 0$"),
    ({"negative_prompt": "ab", "prompt": "a", "guidance": 1.0}, r"^negative.*: 2 tokens must be at most .* 1$"),
    ({"guidance": 1.0}, r"^guidance: needs a prompt or another frozen position to be guided by$"),
    ({"critical": [12]}, r"^critical=\[12\]: must be different positions from 0 to 11$"),
    ({"block_length": 13}, r"^block_length=13: must be at most the length 12$"),
    ({"block_length": 5, "length": 4}, r"^block_length=5: must be at most the length 4$"),
    ({"order": "zigzag"}, r"^order='zigzag': must be one of "),
    ({"temprature": 1.0}, r"^temprature: unknown; must be one of "),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), SAMPLES, ids=case_name)
def test_what_a_model_cannot_sample_is_refused_in_one_line(options, message, nothing_runs):
    with pytest.raises(ValueError, match=message) as caught:
        tiny().sample(**options)
    assert "\n" not in str(caught.value)


INFILLS = [
    ({"template": "no mask"}, r"^template: must hold \[MASK\] or \[MASK\*n\] with n at least 1$"),
    ({"template": ""}, r"^template: must hold \[MASK\]"),
    ({"template": "a[MASK*0]b"}, r"^template: must hold \[MASK\]"),
    ({"template": "[MASK*13]"}, r"^template: \[MASK\*13\] must be at most the length 12$"),
    ({"template": "a[MASK*12]"}, r"^template: 13 tokens must be at most the length 12$"),
    ({"template": "a[MASK*3]", "num_samples": 0}, r"^num_samples=0: must be a whole number of at least 1$"),
    ({"template": "a[MASK*3]", "num_steps": 5}, r"^num_steps=5: must be between 1 and the length 4$"),
    ({"template": "a[MASK*3]", "sizes": [3]}, r"^sizes=\[3\]: sum 3 must be the length 4$"),
    ({"template": "a[MASK*3]", "critical": [4]}, r"^critical=\[4\]: must be different positions from 0 to 3$"),
    ({"template": "a[MASK*3]", "block_length": 5}, r"^block_length=5: must be at most the length 4$"),
]


@pytest.mark.parametrize(("options", "message"), INFILLS, ids=case_name)
def test_what_a_model_cannot_fill_in_is_refused_in_one_line(options, message, nothing_runs):
    with pytest.raises(ValueError, match=message) as caught:
        tiny().infill(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"num_steps": 12}, {"prompt": "x" * 11}, {"length": 1}, {"seed": 2**32 - 1}, {"preset": "llada", "num_steps": 50}]
    + [{"preset": name} for name in presets.PRESETS if name != "planned"],
    ids=case_name,
)
def test_what_a_model_can_sample_is_not_refused(options, nothing_runs):
    with pytest.raises(AssertionError, match="the program was built"):
        tiny().sample(**options)


def test_other_models_refuse_what_they_cannot_do(nothing_runs):
    causal = tiny(attention="causal")
    for call in (causal.sample, functools.partial(causal.infill, "[MASK]")):
        with pytest.raises(ValueError, match=r"^\w+: this workdir holds an autoregressive baseline"):
            call()
    letters = tiny(CharacterTokenizer("letters", "abc"))
    with pytest.raises(ValueError, match=r"^stop_at_eos=True: there is no end-of-text token; must be False$"):
        letters.sample(stop_at_eos=True)
    with pytest.raises(ValueError, match=r"^prompt: character 'd' at 1: tokenizer 'letters' knows only 'abc'$"):
        letters.sample(prompt="ad")
    with pytest.raises(ValueError, match=r"^negative_prompt: character 'd' at 0: "):
        letters.sample(prompt="a", negative_prompt="d", guidance=1.0)
    with pytest.raises(AssertionError, match="the program was built"):  # variation
        letters.sample(prompt="abc")


def test_a_plan_of_another_length_is_refused(nothing_runs, monkeypatch):
    monkeypatch.setattr(Generator, "plan", lambda self: types.SimpleNamespace(sizes=[6, 6], order="spaced", length=12))
    with pytest.raises(ValueError, match=r"^preset='planned': its plan is for 12 tokens, not 10$"):
        tiny().sample(preset="planned", length=10)
    with pytest.raises(AssertionError, match="the program was built"):  # variation
        tiny().sample(preset="planned")
