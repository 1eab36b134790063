"""The commands of `monitor xi`, in groups; `harness.debug.commands.table` has them all."""
