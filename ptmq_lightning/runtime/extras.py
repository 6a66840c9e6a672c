"""Packages that only some uses need, each an extra of the installation."""

from __future__ import annotations

from importlib.util import find_spec

from ptmq_lightning.runtime.errors import ConfigError


def require(extra: str, *packages: str) -> None:
    """Raise ConfigError where one of the packages of an extra is not installed."""
    if missing := [name for name in packages if find_spec(name) is None]:
        named = ", ".join([*missing[:-2], " and ".join(missing[-2:])])
        raise ConfigError(
            f"{named} cannot be imported; expected the extra {extra!r}: pip install 'ptmq-lightning[{extra}]'."
        )
