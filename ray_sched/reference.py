"""A reference to a key of the key-value store, as an argument: the executor puts the value in its place.

Legacy schedulers and executors know a reference as an instance of the class `CloudburstReference` of the
module `cloudburst.shared.reference`, pickled by name. Where the real package is installed, that
class is used as it is. Elsewhere the class below takes the name: this module enters that module and
the packages above it in `sys.modules`, as namespace packages, so that the real package's other
modules are still found should it come onto the path later. A process that unpickles references
has to import this module.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MODULE = "cloudburst.shared.reference"


class CloudburstReference:
    """Stands for the value at `key`; `deserialize` is false for the value as it is stored."""

    def __init__(self, key: str, deserialize: bool = True) -> None:
        self.key = key
        self.deserialize = deserialize

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CloudburstReference) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((self.key, self.deserialize))

    def __repr__(self) -> str:
        return f"CloudburstReference({self.key!r}, deserialize={self.deserialize})"


class _Package(ModuleType):
    """An empty package that looks for its modules wherever a package of its name lies at that time."""

    @property
    def __path__(self) -> list[str]:  # type: ignore[override]
        parent = self.__name__.rpartition(".")[0]
        spec = PathFinder.find_spec(self.__name__, sys.modules[parent].__path__ if parent else None)
        return list(spec.submodule_search_locations or ()) if spec else []


def _take_the_name(own: type[CloudburstReference]) -> type[CloudburstReference]:
    """The installed class; where there is none, `own` under its name."""
    try:
        real: type[CloudburstReference] = importlib.import_module(MODULE).CloudburstReference
    except (ImportError, AttributeError):
        own.__module__ = MODULE
        _enter(_Package("cloudburst"))
        _enter(_Package("cloudburst.shared"))
        _enter(ModuleType(MODULE, __doc__)).CloudburstReference = own  # type: ignore[attr-defined]
        return own
    # The real one wants both arguments; a default changes no call that works without it.
    real.__init__.__defaults__ = (True,)  # type: ignore[misc]
    return real


def _enter(module: ModuleType) -> ModuleType:
    """Make `module` importable, unless one of its name is."""
    name = module.__name__
    if name not in sys.modules:
        module.__spec__ = ModuleSpec(name, None, is_package=isinstance(module, _Package))
        sys.modules[name] = module
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)
    return sys.modules[name]


CloudburstReference = _take_the_name(CloudburstReference)  # type: ignore[misc]
