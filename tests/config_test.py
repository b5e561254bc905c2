"""The configuration: every rule, its message, the round trips, and that no field is dead."""

import dataclasses
import inspect
import json
import pathlib
import re

import pytest

from dlm_jax import config as configs
from dlm_jax.cli import options
from dlm_jax.config import RunConfig, check_devices, check_rows, from_dict, to_dict

ROOT = pathlib.Path(__file__).parents[1]
SHIPPED = sorted(
    path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "convergence")
)  # the latter: of a study
GROUPS = {item.name: item.type for item in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(item.type)}
INF, NAN = float("inf"), float("nan")
CAUSAL = {"model.attention": "causal", "diffusion.objective": "autoregressive"}

# (overrides that break exactly one rule, what the message must hold: field, value, what is allowed)
FIELD_RULES = [
    ({"seed": -1}, r"^seed=-1: must be between 0 and 4294967295$"),
    ({"seed": 2**32}, r"^seed=4294967296: must be between 0 and 4294967295$"),
    ({"data.split": "random"}, r"^data\.split='random': must be one of hash, last$"),
    ({"data.length": 1}, r"^data\.length=1: must be at least 2$"),
    ({"data.max_document_bytes": -1}, r"^data\.max_document_bytes=-1: must be at least 0$"),
    ({"data.num_documents": 1}, r"^data\.num_documents=1: must be at least 2$"),
    ({"data.validation_fraction": 0.0}, r"^data\.validation_fraction=0\.0: must be above 0 and below 1$"),
    ({"data.validation_fraction": 1.0}, r"^data\.validation_fraction=1\.0: must be above 0 and below 1$"),
    ({"data.validation_fraction": NAN}, r"^data\.validation_fraction=nan: must be above 0"),
    ({"data.source": ""}, r"^data\.source='': must name a corpus"),
    ({"data.tokenizer": "bpe", "data.vocab_size": 256}, r"^data\.vocab_size=256: must be at least 257$"),
    ({"data.transition": ((0.5, 0.5), (1.0,))}, r"^data\.transition=\(\(0\.5, 0\.5\), \(1\.0,\)\): must be a square"),
    ({"data.transition": ((10**400, 0.5), (0.5, 0.5))}, r"^data\.transition: row \(10*, 0\.5\) must be probabilities"),
    ({"data.transition": (0.5, 0.5)}, r"^data\.transition=\(0\.5, 0\.5\): must be a square table$"),
    ({"data.transition": ()}, r"^data\.transition=\(\): must be a square table"),
    ({"data.transition": ((0.5, 0.4), (0.5, 0.5))}, r"^data\.transition: row \(0\.5, 0\.4\) must be probabilities"),
    ({"data.transition": ((1.5, -0.5), (0.5, 0.5))}, r"^data\.transition: row \(1\.5, -0\.5\) must be probabilities"),
    ({"data.transition": (("a", "b"), (0.5, 0.5))}, r"^data\.transition: row \('a', 'b'\) must be probabilities"),
    ({"data.transition": ((NAN, 0.5), (0.5, 0.5))}, r"^data\.transition: row \(nan, 0\.5\) must be probabilities"),
    (
        {"model.attention": "sideways"},
        r"^model\.attention='sideways': must be one of bidirectional, block_causal, causal",
    ),
    ({"model.dtype": "float16"}, r"^model\.dtype='float16': must be one of auto, float32, bfloat16"),
    (
        {"model.remat": "dot"},
        r"^model\.remat='dot': must be one of none, elementwise, dots, full \(did you mean 'dots'\?\)$",
    ),
    ({"model.num_layers": 0}, r"^model\.num_layers=0: must be at least 1$"),
    ({"model.embed_dim": 0}, r"^model\.embed_dim=0: must be at least 1$"),
    ({"model.num_heads": 0}, r"^model\.num_heads=0: must be at least 1$"),
    ({"model.time_dim": 0}, r"^model\.time_dim=0: must be at least 1$"),
    ({"model.time_dim": 7}, r"^model\.time_dim=7: must be even$"),
    ({"model.num_kv_heads": -1}, r"^model\.num_kv_heads=-1: must be at least 0$"),
    ({"model.mlp_dim": -32}, r"^model\.mlp_dim=-32: must be at least 0$"),
    ({"model.rope_theta": 0.0}, r"^model\.rope_theta=0\.0: must be above 0$"),
    ({"model.dropout": 1.0}, r"^model\.dropout=1\.0: must be at least 0 and below 1$"),
    ({"model.dropout": -0.1}, r"^model\.dropout=-0\.1: must be at least 0 and below 1$"),
    ({"model.num_heads": 7}, r"^model\.num_heads=7: must divide model\.embed_dim=256$"),
    ({"model.embed_dim": 24}, r"^model\.embed_dim=24: embed_dim / num_heads = 3 must be even"),
    ({"model.num_kv_heads": 3}, r"^model\.num_kv_heads=3: must divide model\.num_heads=8$"),
    ({"diffusion.objective": "elbo"}, r"^diffusion\.objective='elbo': .*\(did you mean 'nelbo'\?\)$"),
    (
        {"diffusion.masking": "exact"},
        r"^diffusion\.masking='exact': must be one of exact_count, order_prefix, independent",
    ),
    ({"diffusion.schedule": "cos"}, r"^diffusion\.schedule='cos': must be one of linear, cosine, polynomial"),
    ({"diffusion.schedule_power": 0.0}, r"^diffusion\.schedule_power=0\.0: must be above 0$"),
    ({"diffusion.time_epsilon": 0.0}, r"^diffusion\.time_epsilon=0\.0: must be above 0 and below 1$"),
    ({"diffusion.time_epsilon": 1.0}, r"^diffusion\.time_epsilon=1\.0: must be above 0 and below 1$"),
    ({"diffusion.schedule": "cosine"}, r"^diffusion\.schedule='cosine': masking 'exact_count' .*'independent'$"),
    ({"optimizer.name": "adam"}, r"^optimizer\.name='adam': must be one of adamw, muon, sgd \(did you mean 'adamw'"),
    ({"optimizer.lr_schedule": "step"}, r"^optimizer\.lr_schedule='step': must be one of cosine, linear, constant"),
    ({"optimizer.learning_rate": 0.0}, r"^optimizer\.learning_rate=0\.0: must be above 0 and finite$"),
    ({"optimizer.learning_rate": INF}, r"^optimizer\.learning_rate=inf: must be above 0 and finite$"),
    ({"optimizer.learning_rate": NAN}, r"^optimizer\.learning_rate=nan: must be above 0 and finite$"),
    ({"optimizer.final_lr_fraction": 1.5}, r"^optimizer\.final_lr_fraction=1\.5: must be between 0 and 1$"),
    ({"optimizer.warmup_steps": -1}, r"^optimizer\.warmup_steps=-1: must be at least 0$"),
    ({"optimizer.weight_decay": -0.1}, r"^optimizer\.weight_decay=-0\.1: must be at least 0$"),
    ({"optimizer.clip_norm": NAN}, r"^optimizer\.clip_norm=nan: must be at least 0$"),
    ({"optimizer.beta1": 1.0}, r"^optimizer\.beta1=1\.0: must be at least 0 and below 1$"),
    ({"optimizer.beta2": -0.1}, r"^optimizer\.beta2=-0\.1: must be at least 0 and below 1$"),
    ({"optimizer.weight_decay": INF}, r"^optimizer\.weight_decay=inf: must be finite$"),
    ({"optimizer.weight_decay": 10**400}, r"^optimizer\.weight_decay: a number of 401 digits is too large$"),
    ({"model.embed_dim": 10**400}, r"^model\.embed_dim: a number of 401 digits is too large$"),
    ({"optimizer.eps": 0.0}, r"^optimizer\.eps=0\.0: must be above 0$"),
    ({"train.num_steps": 0}, r"^train\.num_steps=0: must be at least 1$"),
    ({"train.batch_size": 0}, r"^train\.batch_size=0: must be at least 1$"),
    ({"train.micro_batches": 0}, r"^train\.micro_batches=0: must be at least 1$"),
    ({"train.ema_decay": 1.0}, r"^train\.ema_decay=1\.0: must be at least 0 and below 1$"),
    ({"sample.num_samples": 0}, r"^sample\.num_samples=0: must be at least 1$"),
    ({"sample.num_steps": -1}, r"^sample\.num_steps=-1: must be at least 0$"),
    ({"sample.selection": "best"}, r"^sample\.selection='best': must be one of random, confidence"),
    ({"sample.temperature": -1.0}, r"^sample\.temperature=-1\.0: must be at least 0 and finite$"),
    ({"eval.every_steps": -1}, r"^eval\.every_steps=-1: must be at least 0$"),
    ({"eval.num_rows": -1}, r"^eval\.num_rows=-1: must be at least 0$"),
    ({"eval.t_step_rows": -1}, r"^eval\.t_step_rows=-1: must be at least 0$"),
    ({"eval.batch_size": 0}, r"^eval\.batch_size=0: must be at least 1$"),
    ({"eval.num_orders": 0}, r"^eval\.num_orders=0: must be at least 1$"),
    ({"eval.t_steps": (8, 0)}, r"^eval\.t_steps=0: must be at least 1$"),
    ({"eval.t_steps": ("many",)}, r"^eval\.t_steps='many': must be whole numbers$"),
    ({"eval.t_steps": (1.5,)}, r"^eval\.t_steps=1\.5: must be whole numbers$"),
    ({"checkpoint.every_steps": 0}, r"^checkpoint\.every_steps=0: must be at least 1$"),
    ({"checkpoint.max_to_keep": 1}, r"^checkpoint\.max_to_keep=1: must be at least 2$"),
    ({"mesh.replica": 0}, r"^mesh\.replica=0: must be at least 1$"),
    ({"mesh.fsdp": -1}, r"^mesh\.fsdp=-1: must be at least 0$"),
    ({"mesh.tensor": 0}, r"^mesh\.tensor=0: must be at least 1$"),
    ({"log.every_steps": 0}, r"^log\.every_steps=0: must be at least 1$"),
    ({"log.peak_flops": -1.0}, r"^log\.peak_flops=-1\.0: must be at least 0$"),
    ({"log.progress_seconds": 0.0}, r"^log\.progress_seconds=0\.0: must be above 0$"),
]
CROSS_RULES = [
    ({"model.attention": "causal"}, r"objective='nelbo' with model\.attention='causal': 'autoregressive' and 'causal'"),
    ({"diffusion.objective": "autoregressive"}, r"objective='autoregressive' with model\.attention='bidirectional'"),
    ({**CAUSAL, "model.time_conditioning": True}, r"^model\.time_conditioning=True: a causal model has no diffusion"),
    ({"train.micro_batches": 3}, r"^train\.micro_batches=3: must divide train\.batch_size=32$"),
    ({"train.batch_size": 31}, r"^train\.batch_size=31: .*'exact_count' pairs rows.*even number of rows, not 31$"),
    ({"train.micro_batches": 32}, r"^train\.batch_size=32: .* even number of rows, not 1$"),
    ({"sample.num_steps": 129}, r"^sample\.num_steps=129: must be at most data\.length=128$"),
    ({"eval.t_steps": (8, 129)}, r"^eval\.t_steps=129: must be at most data\.length=128$"),
    ({"optimizer.warmup_steps": 1001}, r"^optimizer\.warmup_steps=1001: must be at most train\.num_steps=1000$"),
    ({"data.source": "markov"}, r"^data\.source='markov' with data\.tokenizer='bytes': 'markov' and 'letters'"),
    ({"data.tokenizer": "letters"}, r"^data\.source='embedded' with data\.tokenizer='letters': 'markov' and 'letters'"),
]
# The nearest values that every rule accepts: a rule that refuses these is too strict.
ACCEPTED = [
    {"seed": 2**32 - 1},
    {"data.length": 2, "eval.t_steps": (1, 2)},
    {"data.tokenizer": "bpe", "data.vocab_size": 257},
    {"data.transition": ((1.0,),)},
    {"model.embed_dim": 32, "model.num_heads": 16, "model.num_kv_heads": 16},
    {"model.num_kv_heads": 1, "model.dropout": 0.0, "model.time_dim": 2},
    {"diffusion.masking": "independent", "diffusion.schedule": "cosine", "train.batch_size": 31},
    {**CAUSAL, "train.batch_size": 31},
    {"optimizer.beta1": 0.0, "optimizer.final_lr_fraction": 1.0, "optimizer.clip_norm": 0.0},
    {"optimizer.warmup_steps": 1000},
    {"train.micro_batches": 16, "train.ema_decay": 0.0},
    {"sample.num_steps": 128, "sample.temperature": 0.0},
    {"eval.t_steps": (128,)},
    {"eval.t_steps": ()},
    {"data.source": "markov", "data.tokenizer": "letters"},
]


def nested(overrides):
    values = {}
    for name, value in overrides.items():
        *groups, last = name.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return values


def build(**overrides):
    return from_dict(nested(overrides))


def name_of(case):
    return ",".join(f"{name}={value}" for name, value in case.items()) if isinstance(case, dict) else ""


@pytest.mark.parametrize(("overrides", "message"), FIELD_RULES + CROSS_RULES, ids=name_of)
def test_a_broken_rule_is_named_with_its_field_and_value(overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("overrides", ACCEPTED, ids=name_of)
def test_the_values_next_to_the_rules_are_accepted(overrides):
    run = build(**overrides)
    flat = configs._flat(to_dict(run))
    for name, value in overrides.items():
        assert flat[name] == (json.loads(json.dumps(value)) if isinstance(value, tuple) else value)


def test_every_cross_rule_has_a_case_of_its_own():
    failing = dict.fromkeys(configs._CROSS_RULES, 0)
    for overrides, _ in CROSS_RULES:
        values = nested(overrides)
        run = RunConfig()
        for group, fields in values.items():
            object.__setattr__(run, group, dataclasses.replace(getattr(run, group), **fields))
        for rule in failing:
            try:
                rule(run)
            except ValueError:
                failing[rule] += 1
    assert [rule.__name__ for rule, count in failing.items() if not count] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"num_layer": 2}}, r"^model\.num_layer: unknown field; did you mean 'num_layers'\?$"),
        ({"modle": {}}, r"^modle: unknown field; did you mean 'model'\?$"),
        ({"batch_size": 8}, r"^batch_size: unknown field; did you mean 'train\.batch_size'\?$"),
        ({"train": {"weight_decay": 0.1}}, r"^train\.weight_decay: .*'optimizer\.weight_decay'\?$"),
        ({"mesh": {"zzz": 1}}, r"^mesh\.zzz: unknown field; known: replica, fsdp, tensor$"),
        ({"model": 3}, r"^model=3: must be a group of fields$"),
        (7, r"^config=7: must be a group of fields$"),
    ],
)
def test_an_unknown_field_is_answered_with_the_closest_name(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(values)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.num_steps": 1.5}, r"^train\.num_steps=1\.5: must be int, not float$"),
        ({"train.num_steps": True}, r"^train\.num_steps=True: must be int, not bool$"),
        ({"train.num_steps": "10"}, r"^train\.num_steps='10': must be int, not str$"),
        ({"model.qk_norm": 1}, r"^model\.qk_norm=1: must be bool, not int$"),
        ({"data.source": 3}, r"^data\.source=3: must be str, not int$"),
        ({"optimizer.learning_rate": "fast"}, r"^optimizer\.learning_rate='fast': must be float, not str$"),
        ({"eval.t_steps": 8}, r"^eval\.t_steps=8: must be tuple, not int$"),
    ],
    ids=name_of,
)
def test_a_value_of_the_wrong_type_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(**overrides)


def test_a_whole_number_is_accepted_where_a_float_is_wanted():
    rate = build(**{"optimizer.learning_rate": 1}).optimizer.learning_rate
    assert rate == 1.0 and type(rate) is float


@pytest.mark.parametrize("overrides", ACCEPTED, ids=name_of)
def test_dict_and_file_round_trips_are_exact(overrides, tmp_path):
    run = build(**overrides)
    assert from_dict(to_dict(run)) == run
    configs.save(run, tmp_path / "config.json")
    assert configs.load(tmp_path / "config.json") == run
    assert configs.load(tmp_path / "config.json") != build(**{**overrides, "seed": 5})
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"seed": 1,\n "data" 3}', "config.json: not valid JSON at line 2"),
        (b"\xff\xfe", "config.json: not UTF-8 at byte 0"),
        (b'{"seed": -1}', "config.json: seed=-1: must be between"),
        (b"[]", "config.json: config=.*must be a group of fields"),
        (b'{"sed": 1}', "config.json: sed: unknown field; did you mean 'seed'"),
    ],
)
def test_a_damaged_config_file_is_named(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        configs.load(path)


def test_a_missing_config_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        configs.load(tmp_path / "config.json")


def test_difference_names_only_what_differs():
    old, new = build(), build(**{"model.num_layers": 5, "eval.t_steps": (4,)})
    assert configs.difference(old, new) == {"model.num_layers": (4, 5), "eval.t_steps": ([8, 32], [4])}
    assert configs.difference(new, new) == {}


# ---------------------------------------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    ("overrides", "devices", "shape"),
    [
        ({}, 1, (1, 1, 1)),
        ({}, 8, (1, 8, 1)),
        ({"mesh.replica": 2, "mesh.tensor": 2}, 8, (2, 2, 2)),
        ({"mesh.replica": 2, "mesh.fsdp": 4, "mesh.tensor": 1}, 8, (2, 4, 1)),
        ({"train.batch_size": 16}, 8, (1, 8, 1)),
        ({**CAUSAL, "train.batch_size": 8}, 8, (1, 8, 1)),
    ],
    ids=name_of,
)
def test_the_mesh_takes_all_devices(overrides, devices, shape):
    assert check_devices(build(**overrides), devices) == shape


@pytest.mark.parametrize(
    ("overrides", "devices", "message"),
    [
        ({"mesh.fsdp": 3}, 8, r"^mesh\.replica=1 x mesh\.fsdp=3 x mesh\.tensor=1: must multiply .* devices, 8$"),
        ({"mesh.tensor": 3}, 8, r"mesh\.fsdp=2 x mesh\.tensor=3: must multiply to the number of devices, 8$"),
        ({"mesh.replica": 16}, 8, r"^mesh\.replica=16 x .* devices, 8$"),
        ({"model.embed_dim": 250, "model.num_heads": 5, "mesh.tensor": 2, "train.batch_size": 32}, 2,
         r"^model\.num_heads=5: must be divisible by mesh\.tensor=2$"),
        ({"model.num_kv_heads": 1, "mesh.tensor": 2}, 2, r"^model\.num_kv_heads=1: .* mesh\.tensor=2$"),
        ({"model.mlp_dim": 33, "mesh.tensor": 2}, 2, r"^model\.mlp_dim=33: must be divisible by mesh\.tensor=2$"),
        ({"model.embed_dim": 36, "model.num_heads": 2}, 8, r"^model\.embed_dim=36: .* by mesh\.fsdp=8$"),
        ({"train.batch_size": 12, **CAUSAL}, 8, r"^train\.batch_size=12: each micro-batch of 12 rows .* by 8 "),
        ({"train.batch_size": 8}, 8, r"^train\.batch_size=8: each .* of 8 rows must be divisible by 16 .*pairs"),
        ({"train.micro_batches": 4}, 8, r"^train\.batch_size=32: each micro-batch of 8 rows .* by 16 "),
    ],
    ids=name_of,
)  # fmt: skip
def test_a_run_that_does_not_fit_the_machine_is_refused(overrides, devices, message):
    with pytest.raises(ValueError, match=message):
        check_devices(build(**overrides), devices)


def test_a_corpus_of_fewer_rows_than_a_batch_is_refused():
    run = build(**{"train.batch_size": 32})
    assert check_rows(run, 32, 1) is None
    with pytest.raises(ValueError, match=r"^data\.length=128: data\.source='embedded' makes only 31 .*batch_size=32"):
        check_rows(run, 31, 1)
    with pytest.raises(ValueError, match=r"^data\.validation_fraction=0\.1: .*fewer than data\.length=128 tokens$"):
        check_rows(run, 32, 0)


# ---------------------------------------------------------------------------------------------- the files


def test_there_are_shipped_configs():
    assert {"base", "debug", "demo"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_by_path_and_by_name(path):
    run = options.load_config_file(str(path))
    assert isinstance(run, RunConfig)
    assert options.load_config_file(path.stem) == run
    assert (run == RunConfig()) == (path.stem == "base")


def unread(fields, text):
    """The fields that no source text reads, as an attribute or by `given("name")` (the defaults of `dlm sample`)."""
    return sorted(name for name in fields if not re.search(rf"\.{name}\b|given\(\"{name}\"\)", text))


def test_every_field_is_read_somewhere_outside_the_config():
    text = "\n".join(path.read_text() for path in (ROOT / "dlm_jax").rglob("*.py") if path.name != "config.py")
    # What the package reads through a method or a property of the config.
    readers = {".kv_heads": configs.ModelConfig.kv_heads.fget, ".hidden_dim": configs.ModelConfig.hidden_dim.fget}
    assert all(name in text for name in (*readers, "check_devices("))
    text += "".join(inspect.getsource(reader) for reader in (*readers.values(), configs.MeshConfig.shape))
    fields = {item.name for group in GROUPS.values() for item in dataclasses.fields(group)} | {"seed", *GROUPS}
    assert len(fields) > 60
    assert unread(fields, text) == []
    assert unread({*fields, "dead_field"}, text) == ["dead_field"]
