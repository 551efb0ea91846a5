"""Where every random number comes from: generators keyed by a seed and the name of their purpose.

Two purposes never share a stream, and adding one does not shift another.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for a purpose, for instance ``derive_seed(0, "candidate", "1/3")``."""
    text = "\x1f".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A counter-based numpy generator (Philox) for a purpose."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(derive_seed(seed, *purpose))))
