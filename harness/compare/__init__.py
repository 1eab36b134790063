"""Shadow engines against one another: the same workloads through each, what it cost them, and what follows from it."""
