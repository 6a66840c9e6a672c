"""What can go wrong, by who can mend it. Every message says what was found, what was expected and what to do."""

from __future__ import annotations


class PTMQError(Exception):
    """Anything this package raises on purpose."""


class ConfigError(PTMQError):
    """A setting is wrong or does not fit another one."""


class DataError(PTMQError):
    """Images or labels are missing or do not fit."""


class ModelError(PTMQError):
    """A network or its weights cannot be used as they are."""


class ArtifactError(PTMQError):
    """A saved model is damaged, altered or of another kind."""


class ExportError(PTMQError):
    """A model cannot be written for another runtime, or what was written does not compute the same."""


INTERRUPTED = 130  # exit code of a command that Ctrl-C ended, as shells have it


def of_system(error: Exception) -> str:
    """One message for what the system refused: a file, room on a disk, memory."""
    if isinstance(error, MemoryError):
        return f"there is not enough memory ({error}); expected more of it. Use fewer images or a smaller batch."
    why = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    name = getattr(error, "filename", None)
    return (
        f"the system refused {f'{str(name)!r}' if name else 'a file'} ({why}); expected a place with room that may be "
        f"read and written. Make room or choose another folder."
    )
