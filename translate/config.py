"""One typed config out of YAML files: composed from the parts' own settings, checked, its faults told in one line."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from translate.data import DataSettings
from translate.errors import UserError
from translate.methods import MethodSettings
from translate.methods.token_modelling import TokenModelSettings
from translate.settings import Settings
from translate.shipped_files import shipped_folder
from translate.training.logging import LoggingSettings
from translate.training.trainer import CheckpointSettings, TrainingSettings
from translate.training.validation import ValidationSettings


class Config(Settings):
    """All that a run depends on. `translate config schema` prints this as a JSON schema for editors."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9._-]+$")
    """Names the run folder: runs/0001-<name>."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Fixes the weights at the start, the order of the data, the augmentation and dropout."""
    deterministic: bool = False
    """Ask torch for deterministic kernels: equal runs on CUDA give equal bytes, at some speed (a CPU always does)."""
    method: MethodSettings
    data: DataSettings
    training: TrainingSettings
    validation: ValidationSettings = ValidationSettings()
    logging: LoggingSettings = LoggingSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()

    def resolved(self) -> Config:
        """The config with what only other files tell written into it: the names of the data's classes, the networks of
        tokenizers that other runs trained."""
        method = self.method.resolved(self.data) if isinstance(self.method, TokenModelSettings) else self.method
        return self.model_copy(update={"data": self.data.resolved(), "method": method})


class _Loader(yaml.SafeLoader):
    """YAML where 2e-4 is a number (YAML 1.1 wants 2.0e-4) and a key given twice is an error (YAML takes the last)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    return {path.stem: path for path in sorted(shipped_folder("configs").glob("*.yaml"))}


def find_config(name: str, beside: Path | None = None) -> Path:
    """A path as it is (also relative to the folder `beside`), or the name of a shipped config; UserError otherwise."""
    candidates = [Path(name)] if beside is None else [beside / name, beside / f"{name}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    shipped = shipped_configs()
    stem = name.removesuffix(".yaml").removeprefix("configs/")
    if stem in shipped:
        return shipped[stem]
    near = difflib.get_close_matches(stem, shipped, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "'translate config list' shows the shipped ones"
    raise UserError(f"{name}: no such config file, and no shipped config has this name; {hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file as a mapping; UserError with file and line otherwise."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file (byte {error.start} is no UTF-8)") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{path}{where}: not valid YAML: {problem}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values at the top, found {type(content).__name__}")
    return content


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, key by key; a group whose `kind` changes is replaced whole (its keys differ)."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        changes_kind = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) != old.get("kind")
        )
        merged[key] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, dict) and not changes_kind else value
        )
    return merged


def read_config(path: Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config file with its `base` (a shipped name or a path beside the file) laid underneath."""
    if path.resolve() in _seen:
        raise UserError(f"{path}: 'base' leads back to this file; remove one 'base'")
    content = read_yaml(path)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"{path}: 'base' must be the name of a config, not {base!r}")
    return merge(read_config(find_config(base, path.parent), (*_seen, path.resolve())), content)


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay `key.sub=value` items (values are YAML) over a config; a list's items are addressed by number."""
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise UserError(f"--set {item}: expected key=value, such as --set training.batch_size=4")
        try:
            value = yaml.load(text, Loader=_Loader)  # a SafeLoader
        except yaml.YAMLError as error:
            raise UserError(f"--set {item}: the value is not valid YAML; put it in quotes") from error
        raw = _assign(raw, key.strip().split("."), value, item)
    return raw


def _assign(raw: Any, keys: list[str], value: Any, item: str) -> Any:
    key, rest = keys[0], keys[1:]
    if isinstance(raw, list):
        if not key.isdigit() or int(key) >= len(raw):
            raise UserError(f"--set {item}: {key!r} is no item of a list of {len(raw)}; count from 0")
        changed = _assign(raw[int(key)], rest, value, item) if rest else value
        return [changed if number == int(key) else old for number, old in enumerate(raw)]
    group = dict(raw) if isinstance(raw, dict) else {}
    if rest:
        group[key] = _assign(group.get(key), rest, value, item)
        return group
    if isinstance(value, dict):
        return merge(group, {key: value})
    return {**group, key: value}


def load(config: str, overrides: Sequence[str] = ()) -> Config:
    """Load a config by path or shipped name, with `--set` items laid over it; UserError in one line a fault."""
    path = find_config(config)
    return validate(apply_overrides(read_config(path), overrides), str(path), overrides)


def validate(raw: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """Check raw content against the settings models; each fault is one line that names source, key and remedy."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        schema = _schema()
        faults = (_explain(dict(fault), raw, schema, source, overrides) for fault in error.errors())
        lines = dict.fromkeys(_printable(fault) for fault in faults)
        raise UserError("\n".join(lines)) from error


@functools.cache
def _schema() -> dict[str, Any]:
    return Config.model_json_schema()


def _printable(text: str) -> str:
    """The text with line breaks and other control characters written out, so that it stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _explain(
    fault: Mapping[str, Any], raw: Any, schema: Mapping[str, Any], source: str, overrides: Sequence[str]
) -> str:
    """One pydantic fault as one line. Pydantic's location also holds the tags of unions: only real keys are kept."""
    keys: list[str] = []
    value: Any = raw
    location = list(fault["loc"])
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        ):
            value = value[part]
        elif not (last and fault["type"] == "missing"):
            continue
        keys.append(str(part))
    dotted = ".".join(keys)
    from_command_line = any(item.partition("=")[0].strip() == dotted for item in overrides)
    where = "--set" if from_command_line else source

    if fault["type"] == "extra_forbidden":
        valid = _valid_keys(schema, raw, keys[:-1])
        near = difflib.get_close_matches(keys[-1], valid, n=1, cutoff=0.5)
        elsewhere = [path for path in _all_keys(schema, raw) if path.rpartition(".")[2] == keys[-1]]
        if near:
            hint = f"did you mean '{'.'.join([*keys[:-1], near[0]])}'?"
        elif elsewhere:
            hint = f"did you mean '{elsewhere[0]}'?"
        else:
            hint = f"valid here: {', '.join(valid)}"
        return f"{where}: unknown key '{dotted}'; {hint}"
    if fault["type"] == "missing":
        return f"{source}: '{dotted}' is missing; add it"
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kinds = _kinds(schema, raw, keys)
        if isinstance(value, dict) and "kind" not in value:
            if near := difflib.get_close_matches("kind", value, n=1):
                return f"{where}: unknown key '{dotted}.{near[0]}'; did you mean '{dotted}.kind'?"
            return f"{where}: '{dotted}.kind' is missing; expected one of {', '.join(kinds)}"
        given = value.get("kind") if isinstance(value, dict) else value
        near = difflib.get_close_matches(str(given), kinds, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"{where}: '{dotted}.kind' is {given!r}, expected one of {', '.join(kinds)}{hint}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if fault["type"] == "value_error":
        return f"{where}: '{dotted}': {message}" if dotted else f"{where}: {message}"
    return f"{where}: '{dotted}' is {json.dumps(value, default=str)}: {message}"


def _resolve(node: Mapping[str, Any], schema: Mapping[str, Any], raw: Any) -> Mapping[str, Any]:
    """Follow references, and a union to the variant that the raw content's `kind` chooses."""
    while True:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        elif "discriminator" in node:
            mapping = node["discriminator"]["mapping"]
            kind = raw.get("kind") if isinstance(raw, dict) else None
            node = {"$ref": mapping.get(kind) or next(iter(mapping.values()))}
        elif "anyOf" in node and (groups := [n for n in node["anyOf"] if n.get("type") != "null"]):
            node = groups[0]
        else:
            return node


def _at(schema: Mapping[str, Any], raw: Any, keys: Sequence[str]) -> tuple[Mapping[str, Any], Any]:
    """The schema of what stands at `keys`, not yet resolved, and what stands there."""
    node = schema
    for key in keys:
        node = _resolve(node, schema, raw)
        if isinstance(raw, list):
            node, raw = node.get("items", {}), raw[int(key)]
        else:
            child = node.get("properties", {}).get(key, node.get("additionalProperties", {}))
            node = child if isinstance(child, dict) else {}
            raw = raw.get(key) if isinstance(raw, dict) else None
    return node, raw


def _valid_keys(schema: Mapping[str, Any], raw: Any, keys: Sequence[str]) -> list[str]:
    node, content = _at(schema, raw, keys)
    return list(_resolve(node, schema, content).get("properties", {}))


def _kinds(schema: Mapping[str, Any], raw: Any, keys: Sequence[str]) -> list[str]:
    """The kinds of the union at `keys`, which may be optional."""
    node, _ = _at(schema, raw, keys)
    unions = [union for union in (node, *node.get("anyOf", [])) if "discriminator" in union]
    return [kind for union in unions for kind in union["discriminator"]["mapping"]]


def _all_keys(schema: Mapping[str, Any], raw: Any) -> Iterator[str]:
    """Every key that is valid for this content, dotted, outermost first."""
    level: list[tuple[str, Mapping[str, Any], Any]] = [("", schema, raw)]
    while level:
        following = []
        for prefix, unresolved, content in level:
            node = _resolve(unresolved, schema, content)
            for key, child in node.get("properties", {}).items():
                yield prefix + key
                following.append((f"{prefix}{key}.", child, content.get(key) if isinstance(content, dict) else None))
            if node.get("type") == "array" and isinstance(content, list):
                following += [(f"{prefix}{i}.", node.get("items", {}), item) for i, item in enumerate(content)]
        level = [entry for entry in following if entry[0].count(".") < 8]  # deeper than any config; stops recursion


def dump(config: Config, *, comments: Sequence[str] = ()) -> str:
    """The whole resolved config as YAML that `load` reads back to the same Config."""
    body = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
    return "".join(f"# {line}\n" for line in comments) + body


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two dumped configs differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found.update(differences(before, after, f"{prefix}{key}."))
        elif before != after:
            found[prefix + key] = (before, after)
    return found
