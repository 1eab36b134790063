"""Live mode: the guest runs on the engine's shadow tables. Layout of the machine, session, checks, stress."""
