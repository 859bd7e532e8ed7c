"""A user's own networks, named as `package.module:callable`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from translate.errors import UserError


def import_callable(text: str, what: str) -> Callable[..., Any]:
    """The callable that `package.module:name` names (`name` may be dotted); `what` opens the error, as `features`.

    Modules in the current folder are found, as `python -m` finds them. UserError where the text has another form, where
    the module is not found or fails while it is imported, and where it has no such callable.
    """
    module_name, _, name = text.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise UserError(f"{what}: expected package.module:callable, not {text!r}")
    if "" not in sys.path:  # a console script has just its own folder there
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module does
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise UserError(
                f"{what}: no module {missing!r} is found for {text!r}; install it, or run from its folder"
            ) from error
        raise UserError(f"{what}: importing {module_name!r} failed ({in_a_line(error)})") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(f"{what}: {module_name!r} has no {name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{what}: {text!r} is no callable but {type(found).__name__}")
    return found  # type: ignore[no-any-return]  # `callable` narrows Any to no signature


def made_by(text: str, what: str) -> Any:
    """What the callable that `text` names returns, called without arguments.

    UserError as `import_callable`, and where it fails.
    """
    make = import_callable(text, what)
    try:
        return make()
    except Exception as error:  # whatever a user's code does
        raise UserError(f"{what}: {text!r} failed when called without arguments ({in_a_line(error)})") from error


def in_a_line(error: Exception) -> str:
    """What went wrong in a user's code, in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
