"""The oracles and the cross-check: what the engine believes against what the MMU does."""
