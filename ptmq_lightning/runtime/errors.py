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
