"""`python -m tests.mutations [NAME...] [--json FILE]`: runs the mutations and prints the table.

A NAME is any part of a mutation's name; none: all, and the controls. Exit status 1 when one was missed, or when a
control cried out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.report import json_file
from harness.report.output_file import check_writable
from harness.report.terminal import make_console
from tests.mutations.catalogue import CONTROLS, MUTATIONS
from tests.mutations.hunt import hunt
from tests.mutations.mutation import Catch
from tests.mutations.table import as_json, mutation_table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a mutation's name (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table, with evidence, to FILE")
    arguments = parser.parse_args()
    every = (*MUTATIONS, *CONTROLS)
    chosen = [one for one in every if not arguments.names or any(name in one.name for name in arguments.names)]
    if not chosen:
        parser.error(f"no mutation is called like that; there are {', '.join(one.name for one in MUTATIONS)}")
    if arguments.json is not None:
        try:
            check_writable(arguments.json)
        except OSError as error:
            parser.error(f"--json {arguments.json}: {error.strerror or error}")
    catches: list[Catch] = []
    console = make_console(sys.stdout)
    with console.status("") as status:
        for mutation in chosen:
            status.update(f"{len(catches)}/{len(chosen)}  {mutation.name}  {mutation.where}")
            catches.append(hunt(mutation))
    console.print(mutation_table(catches))
    if arguments.json is not None:
        json_file.write(arguments.json, as_json(catches))
    return int(any(catch.missing or (catch.mutation.is_control and catch.evidence) for catch in catches))


if __name__ == "__main__":
    sys.exit(main())
