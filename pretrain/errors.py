"""Errors that a user can cause. Each message names the problem, its place, the allowed values and the remedy.

``assert`` is for our own bugs; these errors are for everything that an input can cause. The entry points print the
message of a ``UserError`` on stderr in a few lines, without a stack trace, and exit with its ``exit_code``.
"""

from __future__ import annotations

from pretrain.redaction import redacted


class UserError(Exception):
    """Base of every error whose cause is in an input: a config, a data set, a checkpoint, the environment."""

    exit_code = 2

    def __str__(self) -> str:
        """The message, without credentials in URLs."""
        return redacted(super().__str__())


class ConfigError(UserError):
    """A setting is unknown, has the wrong type, conflicts with another one, or would be ignored."""


class DataError(UserError):
    """A shard, an index, a record or an image is missing, damaged or does not fit the config."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete, damaged, or does not fit the run that reads it."""


class SetupError(UserError):
    """The machine lacks something that the run needs: space, a shared folder, a package, a free run folder."""


class PeerError(UserError):
    """Another rank failed, and prints the reason itself."""


class BadSample(Exception):
    """The bytes of one sample cannot be read or decoded.

    Not a ``UserError``: training replaces the sample and continues. ``kind`` is one word to count by; ``detail``
    explains it.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"
