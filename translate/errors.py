"""What the user did wrong, said in one line; the command line turns these into text and an exit code."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend. The text names the file or key, what was expected and what to do.

    The command line prints it without a traceback and exits with `exit_code` (2: bad usage or input).
    """

    exit_code = 2


class ImageError(UserError):
    """A file that is no image we can read. `reason` alone is used where the path is already shown."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        # Exceptions cross process borders (data workers) by pickle, which calls the class with `args`.
        return type(self), (self.path, self.reason)


class PartialFailure(UserError):
    """The work is done but for some items, which were listed (exit code 1)."""

    exit_code = 1
