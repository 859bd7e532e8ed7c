"""Configs: what is right round-trips, what is wrong is one line that names file, key and remedy."""

# ruff: noqa: E501  # a fault and its line stand side by side
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from translate import config as configs
from translate.config import Config
from translate.errors import UserError

SHIPPED = configs.shipped_configs()
SMALL = """
method: {kind: pix2pix}
data: {kind: paired, root: pairs}
training:
  stages:
    - {length: 10 steps, optimiser: {kind: Adam, lr: 2e-4}}
    - {name: second, length: 1 epochs, optimiser: {kind: SGD, lr: 1e-3, momentum: 0.9}}
"""


def fault(text: str, *changes: str, path: Path) -> str:
    """The one line that a config is answered with."""
    file = path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        configs.load(str(file), changes)
    said = str(raised.value)
    assert "\n" not in said, said
    return said.replace(str(file), "FILE")


def changed(**items: Any) -> str:
    """SMALL with dotted keys set."""
    raw = yaml.safe_load(SMALL.replace("2e-4", "2.0e-4").replace("1e-3", "1.0e-3"))
    for dotted, value in items.items():
        group = raw
        *path, last = dotted.split("__")
        for key in path:
            group = group[int(key)] if isinstance(group, list) else group.setdefault(key, {})
        group[last] = value
    return yaml.safe_dump(raw)


# ---- what is right -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_right_and_round_trip(name: str, tmp_path: Path) -> None:
    config = configs.load(name)
    assert config.name == name
    file = tmp_path / "dumped.yaml"
    file.write_text(configs.dump(config, comments=["translate 1.0", "ä line"]))
    assert configs.load(str(file)) == config
    assert file.read_text().startswith("# translate 1.0\n# ä line\n")
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    first_line = SHIPPED[name].read_text().splitlines()[0]
    assert first_line.startswith("# ")  # `translate config list` shows it


def test_shipped_configs_fit_the_schema_that_editors_use() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for path in SHIPPED.values():
        jsonschema.validate(configs.read_config(path), Config.model_json_schema())


def test_the_schema_names_and_explains_every_key() -> None:
    schema = Config.model_json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["additionalProperties"] is False
    assert {"method", "data", "training", "validation", "logging", "checkpoints"} <= set(schema["properties"])
    assert schema["$defs"]["StageSettings"]["properties"]["clip"]["description"] == "Largest gradient norm of a player."


def test_the_paper_s_numbers_are_the_config_s() -> None:
    config = configs.load("pix2pix")
    (stage,) = config.training.stages
    assert (stage.optimiser.lr, stage.optimiser.model_extra["betas"]) == (2e-4, [0.5, 0.999])
    assert str(stage.length) == "200 epochs" and config.training.batch_size == 1
    assert config.method.reconstruction.weight == 100 and config.method.discriminator_weight == 0.5


@pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "0.0002", "+2e-4", "2E-4", "20_0e-6"])
def test_floats_as_people_write_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SMALL.replace("2e-4", text))
    config = configs.load(str(tmp_path / "a.yaml"), [f"training.stages.1.optimiser.lr={text}"])
    assert [stage.optimiser.lr for stage in config.training.stages] == [2e-4, 2e-4]


def test_changes_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SMALL)
    config = configs.load(
        str(tmp_path / "a.yaml"),
        [
            "training.batch_size=4",
            "training.stages.1.length=3k steps",
            "method.generator={kind: resnet, blocks: 6}",
            "data.augment.colour={hue: 0.1}",
            "validation.images=null",
            "name=other",
        ],
    )
    assert config.training.batch_size == 4 and config.name == "other" and config.validation.images is None
    assert str(config.training.stages[1].length) == "3000 steps"
    assert config.method.generator.kind == "resnet" and config.method.generator.blocks == 6
    assert config.data.augment.colour is not None and config.data.augment.colour.hue == 0.1


def test_a_base_lies_underneath(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "first.yaml").write_text(SMALL + "seed: 1\nname: first\n")
    (tmp_path / "sub" / "second.yaml").write_text("base: ../first.yaml\nseed: 2\ntraining: {batch_size: 8}\n")
    (tmp_path / "sub" / "third.yaml").write_text("base: second\ndata: {root: elsewhere}\n")
    config = configs.load(str(tmp_path / "sub" / "third.yaml"))
    assert (config.seed, config.name, config.training.batch_size, config.data.root) == (
        2,
        "first",
        8,
        Path("elsewhere"),
    )
    assert len(config.training.stages) == 2


def test_a_group_whose_kind_changes_is_replaced_whole() -> None:
    base = {"g": {"kind": "unet", "depth": 7, "width": 4}, "list": [1, 2]}
    assert configs.merge(base, {"g": {"kind": "resnet", "blocks": 6}}) == {
        "g": {"kind": "resnet", "blocks": 6},
        "list": [1, 2],
    }
    assert configs.merge(base, {"g": {"width": 8}, "list": [3]}) == {
        "g": {"kind": "unet", "depth": 7, "width": 8},
        "list": [3],
    }
    assert base["g"] == {"kind": "unet", "depth": 7, "width": 4}


def test_differences_names_dotted_keys() -> None:
    old, new = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 3, "c": [1]}, "e": 4}
    assert configs.differences(old, new) == {"a.b": (1, 3), "d": (2, None), "e": (None, 4)}


# ---- what is wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"sede": 1}, "FILE: unknown key 'sede'; did you mean 'seed'?"),
        ({"training__batchsize": 1}, "FILE: unknown key 'training.batchsize'; did you mean 'training.batch_size'?"),
        ({"batch_size": 1}, "FILE: unknown key 'batch_size'; did you mean 'training.batch_size'?"),
        ({"method__generator": {"kind": "unet", "detph": 7}}, "FILE: unknown key 'method.generator.detph'; did you mean 'method.generator.depth'?"),
        ({"data__augment__crops": 7}, "FILE: unknown key 'data.augment.crops'; did you mean 'data.augment.crop'?"),
        ({"training__stages__1__lenght": "1 step"}, "FILE: unknown key 'training.stages.1.lenght'; did you mean 'training.stages.1.length'?"),
        ({"training__stages__0__schedule": {"kind": "linear", "hodl": "1 step"}}, "FILE: unknown key 'training.stages.0.schedule.hodl'; did you mean 'training.stages.0.schedule.hold'?"),
        ({"method__zzz": 7}, "FILE: unknown key 'method.zzz'; valid here: kind, objective, penalties,"),
        ({"seed": "many"}, "FILE: 'seed' is \"many\": input should be a valid integer"),
        ({"seed": -1}, "FILE: 'seed' is -1: input should be greater than or equal to 0"),
        ({"training__batch_size": 0}, "FILE: 'training.batch_size' is 0: input should be greater than or equal to 1"),
        ({"training__precision": "fp8"}, "FILE: 'training.precision' is \"fp8\": input should be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ({"training__stages__0__length": "10 hours"}, "FILE: 'training.stages.0.length': expected a length such as"),
        ({"training__stages__1__optimiser__kind": "Adm"}, "FILE: 'training.stages.1.optimiser': torch.optim has no 'Adm'; did you mean 'Adam'?"),
        ({"training__stages__1__name": "main"}, "FILE: 'training': two stages have the same name; give each its own"),
        ({"method__generator": {"kind": "unett"}}, "FILE: 'method.generator.kind' is 'unett', expected one of resnet, unet; did you mean 'unet'?"),
        ({"method__generator": {"depth": 7}}, "FILE: 'method.generator.kind' is missing; expected one of resnet, unet"),
        ({"method__generator": {"knid": "unet"}}, "FILE: unknown key 'method.generator.knid'; did you mean 'method.generator.kind'?"),
        ({"data__kind": "pared"}, "FILE: 'data.kind' is 'pared', expected one of folder, paired, super-resolution, toy, unpaired; did you mean 'paired'?"),
        ({"name": "a b/c"}, "FILE: 'name' is \"a b/c\": string should match pattern"),
        ({"data__A": {"kind": "labels"}}, "FILE: 'data.A': a side of kind 'labels' needs 'classes'"),
        ({"training": [1]}, "FILE: 'training' is [1]: input should be"),
        ({"training__stages": []}, "FILE: 'training.stages' is []: list should have at least 1 item"),
        ({"training__stages__0__players": []}, "FILE: 'training.stages.0.players' is []: list should have at least 1 item"),
        ({"training__ema": {}}, "FILE: 'training.ema.half_life' is missing; add it"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line(item: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert fault(changed(**item), path=tmp_path).startswith(said)


def test_missing_keys_are_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\nnmae: x\n")
    with pytest.raises(UserError) as raised:
        configs.load(str(tmp_path / "a.yaml"))
    file = tmp_path / "a.yaml"
    assert str(raised.value).splitlines() == [
        *(f"{file}: '{key}' is missing; add it" for key in ("method", "data", "training")),
        f"{file}: unknown key 'nmae'; did you mean 'name'?",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.batchsize=4", "--set: unknown key 'training.batchsize'; did you mean 'training.batch_size'?"),
        ("training.batch_size=four", "--set: 'training.batch_size' is \"four\": input should be a valid integer"),
        ("training.stages.0.clip=-1", "--set: 'training.stages.0.clip' is -1: input should be greater than 0"),
        ("training.stages.7.clip=1", "--set training.stages.7.clip=1: '7' is no item of a list of 2; count from 0"),
        ("training.stages.x.clip=1", "--set training.stages.x.clip=1: 'x' is no item of a list of 2; count from 0"),
        ("batch_size", "--set batch_size: expected key=value, such as --set training.batch_size=4"),
        ("=4", "--set =4: expected key=value"),
        ("name={a: [}", "--set name={a: [}: the value is not valid YAML; put it in quotes"),
        ("seed.deep=1", "--set: 'seed"),
    ],
)
def test_a_fault_in_a_change_names_the_change(change: str, said: str, tmp_path: Path) -> None:
    found = fault(SMALL, change, path=tmp_path)
    assert found.startswith(said.replace("--set: 'seed", "FILE: 'seed")), found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1\n", "FILE, line 2: not valid YAML: "),
        (b"seed: 1\nname: x\nseed: 2\n", "FILE, line 1: not valid YAML: the key 'seed' stands twice"),
        (b"training:\n  ema: {ramp: 1, ramp: 2}\n", "FILE, line 2: not valid YAML: the key 'ramp' stands twice"),
        (b"- a\n- b\n", "FILE: expected keys and values at the top, found list"),
        (b"", "FILE: expected keys and values at the top, found NoneType"),
        (b"\xff\xfe\x00", "FILE: is not a text file (byte 0 is no UTF-8)"),
        (b"a: !!python/object/apply:os.system [ls]\n", "FILE, line 1: not valid YAML: could not determine a constructor"),
        (b"? [a, b]\n: 1\n", "FILE, line 1: not valid YAML: "),
        (b"a: \x07\n", "FILE: not valid YAML: "),
        (b"base: 3\n", "FILE: 'base' must be the name of a config, not 3"),
        (b"base: pix2pixx\n", "pix2pixx: no such config file, and no shipped config has this name; did you mean 'pix2pix'?"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_config_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as raised:
        configs.load(str(file))
    text = str(raised.value).replace(str(file), "FILE")
    assert text.startswith(said) and "\n" not in text, text


@pytest.mark.parametrize("back", ["second.yaml", "./second.yaml", "../{folder}/second.yaml"])
def test_bases_in_a_circle(back: str, tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(f"base: {back.format(folder=tmp_path.name)}\n")
    (tmp_path / "second.yaml").write_text("base: first\n")
    with pytest.raises(UserError, match="'base' leads back to this file; remove one 'base'"):
        configs.load(str(tmp_path / "first.yaml"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pix2pixs", "did you mean 'pix2pix'?"),
        ("nothing-like-it", "'translate config list' shows the shipped ones"),
    ],
)
def test_a_config_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(UserError, match="no such config file") as raised:
        configs.load(name)
    assert said in str(raised.value)


# ---- typing errors, by the hundred -------------------------------------------------------------------------------


def keys_of(content: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key of a config as a path."""
    items = content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        if isinstance(key, str):
            yield (*prefix, key)
        yield from keys_of(value, (*prefix, key))


WHOLE = configs.load("pix2pix-emoji", ["training.stages.0.clip=1.0"]).model_dump(mode="json")
PATHS = list(keys_of(WHOLE))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(PATHS),
    place=st.integers(0, 30),
    letter=st.sampled_from("abcdefghijklmnopqrstuvwxyz_"),
    way=st.sampled_from(["drop", "swap", "insert", "replace"]),
)
def test_one_wrong_letter_in_any_key_is_never_a_traceback(
    path: tuple[Any, ...], place: int, letter: str, way: str
) -> None:
    *groups, key = path
    place %= len(key)
    wrong = {
        "drop": key[:place] + key[place + 1 :],
        "swap": key[:place] + key[place : place + 2][::-1] + key[place + 2 :],
        "insert": key[:place] + letter + key[place:],
        "replace": key[:place] + letter + key[place + 1 :],
    }[way]
    raw = json.loads(json.dumps(WHOLE))
    group = raw
    for part in groups:
        group = group[part]
    value = group.pop(key)
    if wrong in group or wrong == key:
        return
    group[wrong] = value
    try:
        configs.validate(raw, "mine.yaml")
    except UserError as error:
        lines = str(error).splitlines()
        dotted = ".".join(map(str, [*groups, wrong]))
        right = ".".join(map(str, [*groups, key]))
        assert all(line.startswith("mine.yaml: ") for line in lines)
        # The misspelt key, by name; and where the key was needed, that it is missing: nothing else.
        named = [line for line in lines if f"'{dotted}'" in line or f"{wrong!r}" in line]
        missing = [line for line in lines if f"'{right}' is missing" in line or f"'{right}' " in line]
        assert named or missing, lines
        assert len(lines) <= 2, lines
    else:
        pytest.fail(f"{wrong!r} for {key!r} was taken for a key")


@settings(max_examples=200, deadline=None)
@given(
    path=st.sampled_from(PATHS),
    value=st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.text(max_size=4)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
def test_any_value_under_any_key_is_taken_or_told(path: tuple[Any, ...], value: Any) -> None:
    raw = json.loads(json.dumps(WHOLE))
    group = raw
    for part in path[:-1]:
        group = group[part]
    group[path[-1]] = value
    try:
        configs.validate(raw, "mine.yaml")
    except UserError as error:
        assert all(line.startswith("mine.yaml: ") for line in str(error).splitlines())


def test_a_line_break_in_a_key_is_written_out() -> None:
    raw = json.loads(json.dumps(WHOLE))
    raw["method"]["discriminator"]["initialisation"] = {"\r": 0}
    with pytest.raises(UserError, match=r"unknown key 'method\.discriminator\.initialisation\.\\r'"):
        configs.validate(raw, "mine.yaml")
