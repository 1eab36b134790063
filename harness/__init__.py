"""xi-harness: shadow page tables kept in Python, checked against the MMU of a real QEMU machine."""

__version__ = "0.1.0"
