"""`translate config`"""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(help="Show, check and list configs.", no_args_is_help=True)


@app.command("show")
def show(
    config: Annotated[str, typer.Argument(help="A config file, or the name of a shipped one.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the config; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of YAML.")] = False,
) -> None:
    """Print the whole resolved config: every default filled in, every key checked."""
    from translate import config as configs

    settings = configs.load(config, overrides or [])
    print(settings.model_dump_json(indent=2) if as_json else configs.dump(settings), end="\n" if as_json else "")


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of configs, for editors (yaml-language-server: $schema=...)."""
    from translate.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


@app.command("list")
def list_configs(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """List the shipped configs with their first line."""
    from translate.shipped_files import shipped_folder

    found = {path.stem: path for path in sorted(shipped_folder("configs").glob("*.yaml"))}
    about = {name: path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for name, path in found.items()}
    if as_json:
        print(json.dumps(about))
        return
    width = max(map(len, about), default=0)
    for name, line in about.items():
        print(f"{name:<{width}}  {line}")
