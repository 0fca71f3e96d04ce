"""Which items a sample of a task has: drawn by a seed, so that nobody chooses them, and drawn again by a checker. Pure.

Example: 4 of 8 documents whose right answers stand first in half of them are two of those and two of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def sample(documents: int, golds: Sequence[int] | None, limit: int, seed: int) -> list[int]:
    """Choose `limit` of some documents: stratified over the right answer's position, by a fixed seed.

    The order inside a stratum comes from SHA-256 over seed and index, so it does not depend on a generator's version.

    Args:
        documents: how many there are.
        golds: index of the right choice of each; None: there are no choices.
        limit: how many are wanted, at most all.
        seed: of the plan.
    """
    strata: dict[int, list[int]] = {}
    for index in range(documents):
        strata.setdefault(0 if golds is None else golds[index], []).append(index)
    order = {index: hashlib.sha256(f"{seed}:{index}".encode()).digest() for index in range(documents)}
    shares = {key: limit * len(members) / documents for key, members in strata.items()}
    quota = {key: int(share) for key, share in shares.items()}
    # Largest remainders take what is left; of equal remainders the smaller key.
    for key in sorted(shares, key=lambda key: (quota[key] - shares[key], key))[: limit - sum(quota.values())]:
        quota[key] += 1
    return sorted(
        index for key, members in strata.items() for index in sorted(members, key=order.__getitem__)[: quota[key]]
    )
