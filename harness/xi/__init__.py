"""XI: shadow page tables with reserved pools, backlinks, snapshots and out-of-sync guest tables.

The design is the one posted to the Xen developers' list in 2006 for hardware-virtualised guests. `asi` holds
the state of one domain; `life`, `large`, `protect`, `resync`, `guest_walk`, `faults` and `remap` each add one group of
operations to it; `engine` is the face that the harness drives. Nothing here does I/O.
"""
