"""QEMU: its process, monitor, gdbstub, RAM and console. Knows nothing of shadow paging."""
