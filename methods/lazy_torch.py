"""Hand on torch, which is imported when something of it is first used.

Whoever reads only what a method trains, as `fewstep methods` and `fewstep jobs` do, does not wait seconds for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch as torch
else:

    class _Torch:
        def __getattr__(self, name: str) -> object:
            import torch

            return getattr(torch, name)

    torch = _Torch()
