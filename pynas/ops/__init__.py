"""Operators of networks, fused and in plain torch, and what sums over ranks. Imports torch and numpy alone."""

from pynas.ops.foreign import Fused, fuse
from pynas.ops.library import available, fused, use, using

__all__ = ["Fused", "available", "fuse", "fused", "use", "using"]
