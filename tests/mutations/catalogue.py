"""All mutations, and the controls: the same runs with nothing broken."""

from __future__ import annotations

from typing import Final

from tests.mutations.interception import INTERCEPTION
from tests.mutations.mutation import Mutation
from tests.mutations.oracles import ORACLES
from tests.mutations.rights import RIGHTS
from tests.mutations.scripts import SCRIPTS
from tests.mutations.sync import SYNC
from tests.mutations.tables import TABLES

MUTATIONS: Final[tuple[Mutation, ...]] = (*RIGHTS, *SYNC, *TABLES, *INTERCEPTION, *ORACLES, *SCRIPTS)

# One for each different run. `pool_base_mfn` belongs to what `pool-given-away` breaks.
CONTROLS: Final[tuple[Mutation, ...]] = tuple(
    {one.where: one.control for one in MUTATIONS if "pool_base_mfn" not in one.config}.values()
)
