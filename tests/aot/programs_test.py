"""Training steps compiled for absent hardware: they fit or say what would, and no collective is one too many."""

import json
import re
import subprocess
import sys

import pytest
from dlm_jax.launch import topologies

from dlm_jax import config as configs
from dlm_jax.aot import programs

SMALL = configs.RunConfig(
    data=configs.DataConfig(length=128),
    model=configs.ModelConfig(num_layers=3, embed_dim=512, num_heads=8, mlp_dim=512),
    train=configs.TrainConfig(batch_size=32),
)


def test_collectives_and_kernels_are_read_from_a_programs_text():
    text = """
      %all-gather.1 = bf16[8,4]{1,0} all-gather(%a), channel_id=3
      %all-gather.2 = bf16[8,4]{1,0} all-gather(%b), channel_id=3
      %ag = (f32[1], f32[2]) all-gather-start(%c), channel_id=4
      %agd = f32[2] all-gather-done(%ag)
      %psum.1 = f32[2,5]{1,0} all-reduce(%d), channel_id=1
      %psum.2 = f32[6]{0} all-reduce(%e), channel_id=1
      %unmask.3 = f32[6,8] custom-call(%f), custom_call_target="tpu_custom_call"
      %other = f32[6] custom-call(%f), custom_call_target="Sharding"
    """
    assert programs.collectives(text) == {"all-gather": 2, "all-reduce": 2}
    assert programs.kernels(text) == {"unmask": 1}


def lowered(name, **changes):
    try:
        return programs.train_step(configs.with_overrides(SMALL, changes), 16_384, topologies.parse(name))
    except programs.Unavailable as error:
        pytest.skip(f"reported as unavailable: {error}")


def test_a_mesh_that_does_not_fit_is_refused_before_compiling():
    with pytest.raises(ValueError, match=r"mesh\.tensor"):
        lowered("v5e:2x2", **{"mesh.tensor": 3})


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"mesh.tensor": 2}])
def test_the_collectives_of_a_training_step_on_tpu(changes):
    text = lowered("v5e:2x2", **changes).compile(compiler_options=programs._OPTIONS["tpu"]).as_text()
    found = programs.collectives(text)
    assert set(found) == {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"}, found
    # Widths for rows at the embedding and back; the head's gradient. 7 matrices and 2 norms a layer, in the loop and in
    # the last layer, forward and backward, tokens, head and final norm: nothing is gathered a third time.
    assert (found["all-to-all"], found["reduce-scatter"]) == (2, 1) and found["all-gather"] <= 2 * 2 * 9 + 3, found
    # Neither the embedding nor its gradient, nor any logits, cross the wire.
    wired = [line for line in text.splitlines() if re.search(r" (all-reduce|all-gather)(-start)?\(", line)]
    assert wired and not [line for line in wired if "[16385," in line.split("(")[0]]
    assert {"splash_mha_fwd_residuals", "splash_mha_dkv_no_residuals"} <= set(programs.kernels(text))


@pytest.mark.parametrize("selection", ["random", "confidence"])
def test_a_sampler_on_four_tpus_has_its_kernels_and_talks_to_nobody(selection):
    try:
        choices = configs.SampleConfig(num_steps=16, selection=selection)
        program = programs.sampler(SMALL, 16_384, topologies.parse("v5e:2x2"), choices).compile()
    except programs.Unavailable as error:
        pytest.skip(f"reported as unavailable: {error}")
    text = program.as_text()
    assert {"unmask", "splash_mha_fwd_no_residuals"} <= set(programs.kernels(text)), programs.kernels(text)
    assert programs.collectives(text) == {}
    # The logits of a device's eight rows are never there.
    assert program.memory_analysis().temp_size_in_bytes < 4 * 8 * 128 * 16_384


def compile_verb(*arguments):
    command = [sys.executable, "-m", "dlm_jax", "compile", "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def compiled(*arguments):
    done = compile_verb(*arguments)
    if "cannot compile for it here" in done.stderr:
        pytest.skip(f"reported as unavailable: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


TINY = configs.with_overrides(SMALL, {
    "model.num_layers": 1, "model.embed_dim": 128, "model.num_heads": 2, "model.mlp_dim": 512, "train.batch_size": 64,
    "model.remat": "none",
})  # fmt: skip
TINY_BYTES = 15_200_256


def test_what_does_not_fit_is_told_with_a_change_that_does(monkeypatch):
    limit = int(0.8 * TINY_BYTES)
    monkeypatch.setitem(topologies._MEMORY, "v5e", limit)
    try:
        found, suggestion = programs.fit(TINY, 512, topologies.parse("v5e:2x2"))
    except programs.Unavailable as error:
        pytest.skip(f"reported as unavailable: {error}")
    assert abs(found.peak_memory_bytes / TINY_BYTES - 1) < 0.1
    assert found.shortfall_bytes == found.peak_memory_bytes - limit > 0
    # It was compiled, and fits, or it would not be suggested.
    assert suggestion == "--config.model.remat=full --config.train.micro_batches=2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "golden"),
    [
        (("--config=owt_mdlm_small", "--topology=v5e:4x4"), 9_801_485_312),
        (("--config=llada_8b", "--topology=v5p:4x4x4"), 20_482_883_616),
        (("--config=llada_8b", "--topology=v6e:16x16"), 7_646_954_656),
        (("--config=owt_mdlm_small", "--topology=H100x8"), 22_834_777_516),
    ],
    ids=["v5e:4x4", "v5p:4x4x4", "v6e:16x16", "H100x8"],
)
def test_the_memory_of_the_shipped_configs_is_what_it_was(arguments, golden):
    found = compiled(*arguments)
    assert found["fits"] and abs(found["peak_memory_bytes"] / golden - 1) < 0.1, found["peak_memory_bytes"]
    assert found["collectives"] and found["flops_per_step"] > 0


@pytest.mark.slow
def test_the_verb_says_what_does_not_fit_and_what_would():
    have = compiled("--config=owt_mdlm_small", "--topology=v5e:2x2", "--config.model.remat=none")
    assert not have["fits"] and have["shortfall_bytes"] > 0
    assert have["peak_memory_bytes"] > have["memory_limit_bytes"] > 15 * 2**30
    flags = have["suggestion"].split()
    assert compiled("--config=owt_mdlm_small", "--topology=v5e:2x2", *flags)["fits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=debug"], "--topology: must be given"),
        (["--config=debug", "--topology=v9"], "must be written like"),
        (["--config=debug", "--topology=v5e:4x4", "--config.mesh.tensor=3"], "mesh.tensor"),
        (["--topology=v5e:4x4"], "--config: must be given"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message):
    done = compile_verb(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert [message in line for line in done.stderr.splitlines()] == [True], done.stderr
