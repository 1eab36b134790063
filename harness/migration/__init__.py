"""Pre-copy migration of a running guest to a second machine, by the dirty log."""
