"""Recording what an engine is told and reads, and replaying it without a machine."""
