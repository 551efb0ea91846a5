"""The one exception type for what a user can mend: what came, what is allowed, where."""

from __future__ import annotations


class PynasError(ValueError):
    """A mistake the user can mend. The command line prints it on one line and exits with code 2."""


class SearchStopped(RuntimeError):
    """A search could not go on (for instance because most candidates failed); the study keeps all that was done."""


class JobFailed(RuntimeError):
    """A job of a scheduler ended without what it was submitted for; its log tells why."""
