"""Debugging sessions: gdb and the harness share QEMU's one stub, and `monitor xi` shows what XI knows."""
