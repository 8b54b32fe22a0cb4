"""An unresolved configuration as nested dictionaries, addressed by dotted keys."""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import Container, OmegaConf


def unresolved(config: Container) -> Any:
    """The nested dictionaries of a configuration, with interpolations as they are written."""
    return OmegaConf.to_container(config, resolve=False)


def nodes(tree: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys of all groups and values with their contents, from outside to inside; a list is a value."""
    for name, value in tree.items() if isinstance(tree, Mapping) else ():
        yield str(name), value
        yield from ((f"{name}.{key}", below) for key, below in nodes(value))


def at(tree: Any, key: str, default: Any = None) -> Any:
    """The content of a dotted key, whose names may be numbers, or the default if the key is missing."""
    for name in key.split("."):
        if not isinstance(tree, Mapping):
            return default
        tree = tree.get(name, tree.get(int(name), default) if name.isdecimal() else default)
    return tree
