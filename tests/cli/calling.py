"""The command line called in this process. Used by the tests beside it."""

from __future__ import annotations

import sys

import pytest

from translate.cli import main


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """`translate ARGUMENTS` in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["translate", *arguments])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    captured = capsys.readouterr()
    return code, captured.out, captured.err
