"""Every error that a user can fix, with the exit code that it ends the command with.

The tree, and the codes scripts may rely on:

    EdgekitError          1  a bug of ours, if it ever reaches a user as it is
    ├── RecipeError       2  the recipe or the command line is wrong
    │   ├── UsageError    2
    │   ├── DataError     2  a data set, a clip or its labels
    │   └── CheckpointError 2
    ├── GateFailed        3  the artifact was built, and is not good enough
    ├── TargetError       4  the target cannot run this
    ├── ToolMissing       5  a tool is missing on this machine
    │   └── ResourceError 5  the machine lacks room or permission
    └── IntegrityError    6  a hash does not match

A bug stays a traceback: we never catch `Exception` to make it look like a user's error.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """One sentence that says where and what, and a hint that says what to try."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class RecipeError(EdgekitError):
    """The recipe, or a file that it names, is wrong."""

    exit_code = 2


class UsageError(RecipeError):
    """The command line is wrong."""


class DataError(RecipeError):
    """A data set, a clip or a label cannot be used."""


class CheckpointError(RecipeError):
    """A checkpoint is damaged, unsafe, or another model's."""


class GateFailed(EdgekitError):
    """The artifact was built and measured, and missed a gate."""

    exit_code = 3


class TargetError(EdgekitError):
    """The target cannot run this model."""

    exit_code = 4


class ToolMissing(EdgekitError):
    """A program or package that this step needs is not installed here."""

    exit_code = 5


class ResourceError(ToolMissing):
    """The machine lacks disk space or permission."""


class IntegrityError(EdgekitError):
    """A file does not match its recorded sha256."""

    exit_code = 6
