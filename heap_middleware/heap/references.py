"""What an object refers to, as `gc.get_referents` says it, where that does no harm.

CPython 3.12.0 to 3.12.5 shows dead objects for one module: the iterators that `_asyncio` keeps for use again. The list
that is made of them makes them alive and lets them die a second time, and the next question is answered without end
(CPython issue 122695, mended in 3.12.6).
"""

import gc
import sys
from types import ModuleType
from typing import Any, Final

__all__ = ["references"]

_HARMFUL: Final = (3, 12) <= sys.version_info < (3, 12, 6)
_namespace: Final = vars(ModuleType)["__dict__"].__get__


def _harmless(item: Any, /) -> list[Any]:
    if type(item) is ModuleType and item is sys.modules.get("_asyncio"):
        return [_namespace(item)]
    return gc.get_referents(item)


references = _harmless if _HARMFUL else gc.get_referents
"""The objects that one refers to; one that is referred to twice is there twice."""
