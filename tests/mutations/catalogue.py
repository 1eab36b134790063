"""All mutations, and the controls: the same runs with nothing broken."""

from __future__ import annotations

from typing import Final

from tests.mutations.interception import INTERCEPTION
from tests.mutations.live_engine import LIVE_ENGINE
from tests.mutations.live_exits import LIVE_EXITS
from tests.mutations.live_frames import LIVE_FRAMES
from tests.mutations.mutation import Mutation
from tests.mutations.oracles import ORACLES
from tests.mutations.rights import RIGHTS
from tests.mutations.scripts import SCRIPTS
from tests.mutations.sync import SYNC
from tests.mutations.tables import TABLES

OBSERVED: Final[tuple[Mutation, ...]] = (*RIGHTS, *SYNC, *TABLES, *INTERCEPTION, *ORACLES, *SCRIPTS)
LIVE: Final[tuple[Mutation, ...]] = (*LIVE_ENGINE, *LIVE_EXITS, *LIVE_FRAMES)
MUTATIONS: Final[tuple[Mutation, ...]] = (*OBSERVED, *LIVE)

# One for each different run. `pool_base_mfn` belongs to what `pool-given-away` breaks.
CONTROLS: Final[tuple[Mutation, ...]] = tuple(
    {one.where: one.control for one in MUTATIONS if "pool_base_mfn" not in one.config}.values()
)
