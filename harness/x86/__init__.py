"""The x86 paging architecture as data and pure functions. No I/O, no knowledge of QEMU."""
