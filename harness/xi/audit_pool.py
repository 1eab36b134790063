"""The audit of the pool: every SPTI is in exactly one place, and what counts as zeroed is zero.

In a shared pool every SPTI is free for all or has exactly one owner, the order in which SPTIs are recycled is that in
which they were used, and each domain still has its root: `audit_sharing`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.engine import AuditFailure
from harness.xi.shared_pool import Share, SharedPool

if TYPE_CHECKING:
    from harness.xi.engine import XiEngine

_CONSERVATION: Final = "pool-conservation"
_OWNER: Final = "pool-owner"


def audit_pool(engine: XiEngine, out: list[AuditFailure]) -> None:
    """The pool as one domain has it; of a shared one, the whole."""
    pool = engine.pool_memory
    free = [*pool.clean, *pool.unclean]
    places = Counter([*free, *pool.lru, *pool.elsewhere])
    if sorted(places) != list(range(len(pool))) or any(n != 1 for n in places.values()):
        out.append(AuditFailure(_CONSERVATION, f"{len(pool)} SPTIs, on lists: {sum(places.values())}"))
    for k in pool.lru:
        if pool.sptis[k].role is None:
            out.append(AuditFailure(_CONSERVATION, f"SPTI {k} is in use without a role"))
    for where, sptis in (("is free", free), ("is another domain's", pool.elsewhere)):
        for k in sptis:
            if pool.sptis[k].role is not None:
                out.append(AuditFailure(_CONSERVATION, f"SPTI {k} {where} and has the role {pool.sptis[k].role}"))
    for spti in pool.sptis:
        if pool.levels[spti.index] != (spti.role.level if spti.role is not None else 0):
            out.append(AuditFailure(_CONSERVATION, f"SPTI {spti.index} is not of level {pool.levels[spti.index]}"))
    clean = list(pool.clean)
    pages = pool.words.reshape(-1, 2048)
    for k in (clean[i] for i in np.flatnonzero(pages[clean, :1024].any(axis=1)).tolist()):
        out.append(AuditFailure("zeroed-is-zero", f"SPTI {k} is on the zeroed free list and is not zero"))
    if isinstance(pool, Share):
        out.extend(audit_sharing(pool.shared))


def audit_sharing(shared: SharedPool) -> list[AuditFailure]:
    """What does not hold between the domains of a shared pool."""
    out = []
    used = [(k, share) for share in shared.shares for k in share.lru]
    owners = Counter(k for k, _ in used)
    free = {*shared.clean, *shared.unclean}
    for k, count in owners.items():
        if count > 1 or k in free:
            out.append(AuditFailure(_OWNER, f"SPTI {k} is {'free and ' * (k in free)}used by {count} domains"))
    for k, share in used:
        if shared.order.get(k) is not share.domain:
            out.append(AuditFailure(_OWNER, f"SPTI {k} is not down as the domain's that uses it"))
    for k in shared.order.keys() - owners.keys():
        out.append(AuditFailure(_OWNER, f"SPTI {k} is down as a domain's, and nobody uses it"))
    for number, share in enumerate(shared.shares):
        if list(share.lru) != [k for k in shared.order if k in share.lru]:
            out.append(AuditFailure("pool-order", f"domain {number} used its SPTIs in another order than the pool has"))
        root = share.domain.root_spti
        if root is not None and root.index not in share.lru:
            out.append(AuditFailure("root", f"domain {number} has lost SPTI {root.index}, the root that it runs on"))
    return out
