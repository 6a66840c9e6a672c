"""The network's classes and those of the data: their number, and the names that travel with the model and that
`ptmq predict` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptmq_lightning.config.schema import ModelConfig
from ptmq_lightning.data.sources import Sources
from ptmq_lightning.models.zoo import Network
from ptmq_lightning.runtime.errors import ConfigError, DataError


def require_classes(sources: Sources, model: ModelConfig, count: int | None) -> None:
    """Raises DataError where the data cannot be those of a network of so many classes; None: not known yet."""
    trained, found = bool(model.checkpoint or model.pretrained), sources.num_classes
    if count is not None and (found > count or (found < count and not sources.mapped and trained)):
        raise DataError(
            f"data={sources.name} has {found} classes, but {model.name} tells {count} apart; choose images of the "
            "network's own classes (data=imagenet data.root=DIR), number the folders of some of them with "
            "data.class_map=FILE, or set model.num_classes and a model.checkpoint that fits"
        )


def class_names(given: Any, network: Network, sources: Sources, count: int) -> tuple[str, ...]:
    """Those of model.classes, else those that the checkpoint holds, else those of the data.

    Args:
        given: model.classes: None, a list of names or the path of a text file.
        count: how many classes the network tells apart.

    Raises:
        ConfigError: model.classes is no such list, or has another number of names.  DataError: the data number a class
            otherwise than the names do, so that every label would be wrong.
    """
    names, source = named(given), "model.classes"
    if given is not None and len(names) != count:
        raise ConfigError(
            f"model.classes holds {len(names)} names, but {network.name} tells {count} classes apart; expected a name "
            "for each of them"
        )
    if not names and len(network.classes) == count:
        names, source = network.classes, "the checkpoint"
    for index, name in enumerate(sources.classes[:count] if names else ()):
        if name in names and names[index] != name:
            raise DataError(
                f"{name!r} is class {index} of data={sources.name}, but class {names.index(name)} of {source}; "
                "expected one order. Set data.class_map=FILE with a class folder's name a line, in the network's order"
            )
    return names or sources.classes


def named(given: Any) -> tuple[str, ...]:
    """The names of a list or of the lines of a text file; () for None. Raises ConfigError."""
    if given is None:
        return ()
    if isinstance(given, str):
        try:
            given = Path(given).read_text(encoding="utf-8").rstrip().splitlines()
        except (OSError, ValueError) as error:
            raise _no_names(f"'{given}', which cannot be read ({type(error).__name__})") from error
    if not isinstance(given, Sequence) or not all(isinstance(name, str | int) and str(name).strip() for name in given):
        raise _no_names(f"{given!r}")
    return tuple(str(name).strip() for name in given)


def _no_names(found: str) -> ConfigError:
    return ConfigError(
        f'model.classes is {found}; expected a list, "model.classes=[cat,dog]", or a text file with a name a line, by '
        "the classes' index"
    )
