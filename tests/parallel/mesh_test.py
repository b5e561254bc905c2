"""The same training step on any mesh: masks bit for bit, losses, gradients and updates to rounding."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from dlm_jax import config as configs
from dlm_jax import rng
from dlm_jax.diffusion import objectives
from dlm_jax.kernels import cross_entropy
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.parallel import mesh as meshes
from dlm_jax.parallel import sharding
from dlm_jax.training import state as states
from dlm_jax.training.step import make_train_step, question_loss

MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]
VOCAB, LENGTH, BATCH = 64, 16, 32
MODEL = configs.ModelConfig(num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, qk_norm=True)
DENOISER = Denoiser(MODEL, VOCAB)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)


def make(shape):
    count = int(np.prod(shape))
    return meshes.make_mesh(shape, jax.devices()[:count])


def objective(masking):
    schedule = "linear" if masking == "exact_count" else "cosine"
    return objectives.make_objective(configs.DiffusionConfig(masking=masking, schedule=schedule), VOCAB)


def masks_on(shape, masking, seed=0):
    where = sharding.batch_sharding(make(shape))
    ask = jax.jit(objective(masking), in_shardings=(None, where))
    return np.asarray(ask(rng.stream(jax.random.key(seed), "mask", 3), jax.device_put(TOKENS, where)).inputs)


@pytest.mark.parametrize("masking", ["exact_count", "independent"])
def test_masks_are_bit_identical_on_any_mesh(masking):
    first, *others = (masks_on(shape, masking) for shape in MESHES)
    for other in others:
        np.testing.assert_array_equal(first, other)
    assert (first != masks_on(MESHES[0], masking, seed=1)).any()


def gradients_on(shape, seed=0, denoiser=DENOISER):
    mesh = make(shape)
    params = DENOISER.init(jax.random.key(9))
    placed = sharding.parameter_shardings(DENOISER.logical_axes, params, mesh)
    where = sharding.batch_sharding(mesh)

    def loss(params, tokens):
        question = objective("exact_count")(rng.stream(jax.random.key(seed), "mask"), tokens)
        return question_loss(denoiser, params, question) / question.normaliser

    compiled = jax.jit(jax.value_and_grad(loss), in_shardings=(placed, where), out_shardings=(None, placed))
    with sharding.on_mesh(mesh):
        return jax.device_get(compiled(jax.device_put(params, placed), jax.device_put(TOKENS, where)))


def largest_difference(first, second):
    """Over leaves, the distance relative to the leaf's norm."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12)) for a, b in pairs)


def test_loss_and_every_gradient_leaf_agree_on_any_mesh():
    (loss, grads), *others = (gradients_on(shape) for shape in MESHES)
    for other_loss, other_grads in others:
        assert abs(loss - other_loss) <= 1e-5 * abs(loss)
        assert largest_difference(grads, other_grads) <= 1e-5
    wrong_loss, wrong_grads = gradients_on(MESHES[0], seed=1)
    assert abs(loss - wrong_loss) > 1e-5 * abs(loss) and largest_difference(grads, wrong_grads) > 1e-5


def test_a_vocabulary_in_tiles_agrees_on_any_mesh(monkeypatch):
    untied = Denoiser(dataclasses.replace(MODEL, tie_embeddings=False), VOCAB)
    want_loss, want = gradients_on(MESHES[0], denoiser=untied)
    # 24 does not divide 64: the last tile is shorter, on whole vocabularies and on halves.
    monkeypatch.setattr(cross_entropy, "default_tile", lambda size: 24)
    for shape in MESHES:
        loss, grads = gradients_on(shape, denoiser=untied)
        assert abs(loss - want_loss) <= 1e-5 * abs(want_loss)
        assert largest_difference(want, grads) <= 1e-5


def step_on(shape, optimizer, state, seed=0, micro_batches=1):
    mesh = make(shape)
    train = configs.TrainConfig(batch_size=BATCH, num_steps=100, micro_batches=micro_batches)
    step = make_train_step(DENOISER, objective("exact_count"), optimizer, train, jax.random.key(seed))
    abstract, placed = states.state_shardings(DENOISER, optimizer, mesh)
    if state is None:
        state = states.init_state(DENOISER, optimizer, jax.random.key(9))
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    batch = {"tokens": sharding.batch_sharding(mesh)}
    compiled = jax.jit(step, in_shardings=(placed, batch), out_shardings=(placed, sharding.replicated(mesh)))
    return compiled, jax.device_put(state, placed), jax.device_put({"tokens": TOKENS}, batch)


@pytest.mark.slow  # every leaf of the gradient is compared by default
def test_the_sgd_update_agrees_on_any_mesh():
    def update(shape, seed=0, micro_batches=1):
        step, state, batch = step_on(shape, optax.sgd(0.1), None, seed, micro_batches)
        before = jax.device_get(state.params)
        after = jax.device_get(step(state, batch)[0].params)
        return after, jax.tree.map(np.subtract, after, before)

    after, change = update(MESHES[0])
    for shape in MESHES[1:]:
        other_after, other_change = update(shape)
        assert largest_difference(after, other_after) <= 1e-5
        assert largest_difference(change, other_change) <= 1e-4  # a difference of parameters carries their rounding
    wrong_after, wrong_change = update(MESHES[0], seed=1)
    assert largest_difference(after, wrong_after) > 1e-5 and largest_difference(change, wrong_change) > 1e-2
    split = [update(shape, micro_batches=2)[0] for shape in (MESHES[0], MESHES[2])]
    assert largest_difference(*split) <= 1e-5 and largest_difference(split[0], after) > 1e-5


@pytest.mark.slow
def test_the_adamw_update_agrees_after_20_common_steps():
    optimizer = optax.adamw(1e-3, eps=1e-3)
    step, state, batch = step_on(MESHES[0], optimizer, None)
    for _ in range(20):
        state, _ = step(state, batch)
    common = jax.device_get(state)

    def params(shape, seed=0):
        step, state, batch = step_on(shape, optimizer, common, seed)
        return jax.device_get(step(state, batch)[0].params)

    first, *others = (params(shape) for shape in MESHES)
    assert all(largest_difference(first, other) <= 1e-5 for other in others)
    assert largest_difference(first, params(MESHES[0], seed=1)) > 1e-5


def test_every_parameter_is_split_as_its_logical_axes_say():
    mesh = make((2, 2, 2))
    abstract = jax.eval_shape(DENOISER.init, jax.random.key(0))
    specs = jax.tree.map(lambda s: s.spec, sharding.parameter_shardings(DENOISER.logical_axes, abstract, mesh))
    P = jax.sharding.PartitionSpec
    assert specs["blocks"]["attention"]["query"] == P(None, "fsdp", "tensor", None)
    assert specs["blocks"]["mlp"]["down"] == P(None, "tensor", "fsdp")
    assert specs["stem"]["head"] == P("tensor", "fsdp")
    assert specs["stem"]["embedding"] == P(None, "fsdp")


def test_a_vocabulary_that_does_not_divide_stays_whole_and_anything_else_is_refused():
    mesh = make((1, 1, 2)) if jax.device_count() < 8 else make((2, 2, 2))
    assert sharding.spec(("vocab", "embed"), (257, 32), mesh) == jax.sharding.PartitionSpec(None, "fsdp")
    with pytest.raises(ValueError, match="'mlp' of size 33 must be divisible by 2"):
        sharding.spec(("embed", "mlp"), (32, 33), mesh, "w")
    with pytest.raises(ValueError, match="unknown logical axis 'width'"):
        sharding.spec(("width",), (32,), mesh, "w")


def test_optimizer_moments_lie_where_their_parameters_lie():
    config = configs.OptimizerConfig(name="adamw")
    from dlm_jax.training import optimizers

    optimizer = optimizers.make_optimizer(config, 100, DENOISER.logical_axes)
    _, placed = states.state_shardings(DENOISER, optimizer, make((2, 2, 2)))
    found = [
        leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(placed.opt_state)
        if "'query'" in jax.tree_util.keystr(path) and "scale" not in jax.tree_util.keystr(path)
    ]
    assert found and all(spec == placed.params["blocks"]["attention"]["query"].spec for spec in found)


def test_the_config_decides_the_mesh():
    assert configs.MeshConfig(replica=2, tensor=2).shape(8) == (2, 2, 2)
    run = configs.RunConfig(train=configs.TrainConfig(batch_size=32), mesh=configs.MeshConfig(replica=8, fsdp=1))
    assert configs.check_devices(run, 8) == (8, 1, 1)
    with pytest.raises(ValueError, match="must multiply to the number of devices, 8"):
        configs.check_devices(dataclasses.replace(run, mesh=configs.MeshConfig(replica=3)), 8)
