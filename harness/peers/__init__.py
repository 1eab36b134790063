"""Other shadow engines behind the same interface, to compare XI with, and what they have in common.

Common to all are the guest's side (`guest_side`), the pool of shadow pages (`pages`), what an SPTE of each kind of
entry says (`tables`, `whole_pages`), the path of a fault (`faults`) and everything else that an engine is asked
(`engine`). How the SPTEs of a frame are found, which tables are write-protected and when they are synchronised is each
engine's own: `eager`, `kvm`, `xen302`.
"""
