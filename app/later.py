"""Packages that others import at their top, and that are loaded when something of them is used."""

import sys
from importlib import import_module
from importlib.util import find_spec
from threading import RLock
from types import ModuleType
from typing import Any

_LOADING = RLock()


class _Later(ModuleType):
    """Stands for a package until an attribute of it is asked for, its ``__path__`` among them:
    so a submodule's import loads it as well."""

    def __getattr__(self, name: str) -> Any:
        with _LOADING:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
                import_module(self.__name__)
        return getattr(sys.modules[self.__name__], name)


def load_later(name: str) -> None:
    """Let ``import NAME`` load nothing yet, where the package is installed."""
    spec = None if name in sys.modules else find_spec(name)
    if spec is None:
        return
    module = _Later(name)
    # What tells whether it is installed, and where, is answered without loading it.
    module.__spec__, module.__file__, module.__loader__ = spec, spec.origin, spec.loader
    sys.modules[name] = module
