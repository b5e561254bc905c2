"""Checkpoints that can be trusted: every damage is found, the newest good step is used, nothing is deleted."""

import dataclasses
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax import config as configs
from dlm_jax import files
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.parallel import mesh as meshes
from dlm_jax.training import checkpoint, manifest, optimizers
from dlm_jax.training import state as states

DENOISER = Denoiser(
    configs.ModelConfig(num_layers=2, embed_dim=64, num_heads=2, mlp_dim=8), 11
)  # arrays that orbax does not guard: above 1 KiB
OPTIMIZER = optimizers.make_optimizer(configs.OptimizerConfig(), 10, DENOISER.logical_axes)


def state_at(step):
    state = states.init_state(DENOISER, OPTIMIZER, jax.random.key(step))
    return dataclasses.replace(state, step=jnp.int32(step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    saves = checkpoint.Checkpoints(workdir, 5)
    for step in (1, 2):
        saves.save(state_at(step), {"config": {}, "fingerprint": "x"})
        saves.wait()
    saves.close()
    return workdir


def abstract():
    found, shardings = states.state_shardings(DENOISER, OPTIMIZER, meshes.make_mesh((1, 1, 1), jax.devices()[:1]))
    return states.with_shardings(found, shardings)


def restored(workdir):
    saves = checkpoint.Checkpoints(workdir, 5)
    try:
        return saves.restore(abstract())
    finally:
        saves.close()


def assert_is_step(state, step):
    assert int(state.step) == step
    for have, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(state_at(step).params), strict=True):
        np.testing.assert_array_equal(have, want)


def flip(path, chance):
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


WOUNDS = {
    "flip": flip,
    "truncate": lambda path, chance: path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)]),
    "empty": lambda path, chance: path.write_bytes(b""),
    "delete": lambda path, chance: path.unlink(),
}


def wound(workdir, chance):
    """Damages one file of step 2, the manifest included; returns what was done."""
    there = [path for path in (workdir / "checkpoints" / "2").rglob("*") if path.is_file() and path.stat().st_size]
    # The manifest one time in five: it is one file of many.
    path = workdir / "checkpoints" / "2" / manifest.NAME if chance.random() < 0.2 else chance.choice(sorted(there))
    name = chance.choice(sorted(WOUNDS))
    WOUNDS[name](path, chance)
    return f"{name} {path.relative_to(workdir)}"


def survive(saved, folder, seeds, capsys):
    for seed in seeds:
        workdir = folder / str(seed)
        shutil.copytree(saved, workdir)
        what = wound(workdir, random.Random(seed))
        state, _ = restored(workdir)
        assert_is_step(state, 1), what
        # Told, and kept aside with the reason.
        assert "moved to" in capsys.readouterr().err, what
        assert (workdir / "checkpoints_damaged" / "2" / "reason.txt").read_text().strip(), what
        assert checkpoint.steps(workdir) == [1]
        shutil.rmtree(workdir)


def test_without_damage_the_newest_step_comes_back(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "w")
    state, meta = restored(tmp_path / "w")
    assert_is_step(state, 2)
    assert meta["fingerprint"] == "x" and not (tmp_path / "w" / "checkpoints_damaged").exists()


def test_random_damage_is_found_and_the_older_step_used(saved, tmp_path, capsys):
    survive(saved, tmp_path, range(12), capsys)


@pytest.mark.slow
def test_two_hundred_damages_are_all_found(saved, tmp_path, capsys):
    survive(saved, tmp_path, range(100, 300), capsys)


def test_a_name_in_the_manifest_cannot_lead_out_of_the_checkpoint(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "w")
    path = tmp_path / "w" / "checkpoints" / "2" / manifest.NAME
    content = json.loads(path.read_text())
    content.pop("sha256")
    content["files"]["../../../outside"] = {"sha256": "0", "bytes": 0}
    path.write_text(json.dumps({**content, "sha256": files.json_sha256(content)}))
    with pytest.raises(manifest.Damaged, match="not inside the checkpoint"):
        manifest.verify(path.parent)


def test_orbax_alone_restores_a_flipped_bit_without_a_word(saved, tmp_path, monkeypatch):
    """The variation: without the manifest's check some flips come back as values that nobody saved."""
    monkeypatch.setattr(manifest, "verify", lambda folder, items=None: {})
    monkeypatch.setattr(manifest, "compare", lambda trees, fingerprints: None)
    silent = 0
    for seed in range(6):
        workdir = tmp_path / str(seed)
        shutil.copytree(saved, workdir)
        arrays = (workdir / "checkpoints/2/params").rglob("ocdbt.process_0/d/*")
        flip(max(arrays, key=lambda path: path.stat().st_size), random.Random(seed))
        state, _ = restored(workdir)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, state_at(2).params)
        silent += int(state.step) == 2 and not all(jax.tree.leaves(same))
    assert silent > 0


def test_loading_an_item_verifies_it_and_takes_the_older_step(saved, tmp_path, capsys):
    shutil.copytree(saved, tmp_path / "w")
    for path in (tmp_path / "w" / "checkpoints/2/ema").rglob("*"):
        if path.is_file():
            flip(path, random.Random(0))
            break
    step, _, _ = checkpoint.load_item(tmp_path / "w", "ema")
    assert step == 1 and "is not what was written" in capsys.readouterr().err
    assert checkpoint.load_item(tmp_path / "w", "params")[0] == 2  # what is not read is not judged
    with pytest.raises(ValueError, match="is not what was written"):
        checkpoint.load_item(tmp_path / "w", "ema", step=2)


def test_leaves_have_fingerprints_that_any_bit_and_any_exchange_changes():
    tree = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones(5, jnp.bfloat16), "c": jnp.int32(7)}
    want = manifest.fingerprints_of(tree)
    assert all(len(words) == 16 for words in want.values()) and len(set(want.values())) == 3
    for change in (
        {"a": tree["a"].at[1, 2].set(np.nextafter(np.float32(6), np.float32(7)))},
        {"a": tree["a"][::-1]},
        {"b": tree["b"].at[0].set(-1)},
        {"c": jnp.int32(8)},
    ):
        with pytest.raises(manifest.Damaged, match="restored with other values"):
            manifest.compare({**tree, **change}, want)
    # The same on eight devices.
    where = jax.sharding.NamedSharding(meshes.make_mesh((8, 1, 1)), jax.sharding.PartitionSpec("replica"))
    wide = {"x": jnp.arange(64.0).reshape(16, 4)}
    assert manifest.fingerprints_of(jax.device_put(wide, where)) == manifest.fingerprints_of(wide)


def test_a_manifest_cannot_be_exchanged_for_that_of_another_step(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "w")
    shutil.copy(tmp_path / "w/checkpoints/1" / manifest.NAME, tmp_path / "w/checkpoints/2" / manifest.NAME)
    with pytest.raises(manifest.Damaged):
        manifest.verify(tmp_path / "w/checkpoints/2")


def test_empty_and_foreign_folders_never_become_the_newest_step(saved, tmp_path, capsys):
    shutil.copytree(saved, tmp_path / "w")
    (tmp_path / "w/checkpoints/9").mkdir()
    (tmp_path / "w/checkpoints/8").mkdir()
    (tmp_path / "w/checkpoints/8/notes.txt").write_text("mine")
    (tmp_path / "w/checkpoints/notes").mkdir()
    assert_is_step(restored(tmp_path / "w")[0], 2)
    assert (tmp_path / "w/checkpoints_damaged/8/notes.txt").read_text() == "mine"
    assert (tmp_path / "w/checkpoints/notes").is_dir()


def test_two_writers_of_one_workdir_are_refused_and_the_lock_dies_with_its_owner(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "w")
    first = checkpoint.Checkpoints(tmp_path / "w", 5)
    with pytest.raises(BlockingIOError, match=r"another run writes into it \(process \d+ on"):
        checkpoint.Checkpoints(tmp_path / "w", 5)
    first.close()
    checkpoint.Checkpoints(tmp_path / "w", 5).close()


def test_a_disk_without_room_is_told_before_anything_is_written(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "w")
    saves = checkpoint.Checkpoints(tmp_path / "w", 5)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OSError, match=r"a save needs 1 MiB, 0 are free"):
        saves.save(state_at(3), {})
    saves.close()
    assert checkpoint.steps(tmp_path / "w") == [1, 2]


def test_the_manifest_names_every_file_and_every_leaf(saved):
    content = json.loads((saved / "checkpoints/2" / manifest.NAME).read_text())
    there = {
        p.relative_to(saved / "checkpoints/2").as_posix() for p in (saved / "checkpoints/2").rglob("*") if p.is_file()
    }
    assert set(content["files"]) == there - {manifest.NAME}
    state = state_at(2)
    assert len(content["leaves"]) == len(jax.tree.leaves((state.params, state.ema, state.opt_state)))
