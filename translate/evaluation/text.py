"""File names as text that any file and terminal takes."""

from __future__ import annotations


def readable(name: object) -> str:
    """The text of a name, with `\\xff` in the place of each byte that is no UTF-8.

    Python holds such bytes of file names as lone surrogates, which neither JSON nor a terminal can write. (A question
    mark would make one name of two.)
    """
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
