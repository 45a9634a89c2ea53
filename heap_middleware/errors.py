"""What can go wrong, as far as a user can do something about it.

Faults of our own while serving are never raised: they are logged once and counted, and the request goes on.
"""

__all__ = ["BackendUnavailable", "CommandError", "HeapMiddlewareError", "SettingsError"]


class HeapMiddlewareError(Exception):
    """The root of every error this package raises on purpose."""


class SettingsError(HeapMiddlewareError, ValueError):
    """A setting has a value that cannot be used; the message names the field, the value and what is allowed."""


class BackendUnavailable(HeapMiddlewareError, RuntimeError):
    """An attribution backend was asked for by name and cannot run in this interpreter; the message says why."""


class CommandError(HeapMiddlewareError):
    """A command of the command line cannot be carried out; the message says why in one line."""
