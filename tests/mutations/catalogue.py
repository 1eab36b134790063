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
