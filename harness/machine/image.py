"""A guest's ELF image: segments, entry and symbols, read with pyelftools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from harness.machine.errors import BadImage

WRITABLE: Final = 2  # in Segment.flags


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD: `data` goes to physical `paddr`, zeros follow up to `size` bytes. flags: PF_X=1 W=2 R=4."""

    paddr: int
    vaddr: int
    data: bytes
    size: int
    flags: int

    @property
    def frames(self) -> range:
        """The gfns that the segment occupies, even in part."""
        return range(self.paddr >> 12, -(-(self.paddr + self.size) // 4096))


@dataclass(frozen=True, slots=True)
class Image:
    """A loadable guest. symbols: name -> virtual address."""

    path: Path
    entry: int
    segments: tuple[Segment, ...]
    symbols: dict[str, int]

    def physical(self, vaddr: int) -> int:
        """The physical address at which the image puts `vaddr`. Raises BadImage if it is in no segment."""
        for segment in self.segments:
            if segment.vaddr <= vaddr < segment.vaddr + segment.size:
                return vaddr - segment.vaddr + segment.paddr
        raise BadImage(f"{self.path}: address {vaddr:#x} is in no loadable segment")

    @property
    def end(self) -> int:
        """The first physical address after everything the image loads."""
        return max(segment.paddr + segment.size for segment in self.segments)

    @property
    def writable_pages(self) -> list[int]:
        """Virtual addresses of the pages that the guest writes as it runs: its data, its stack, its mailbox."""
        return [
            page
            for segment in self.segments
            if segment.flags & WRITABLE
            for page in range(segment.vaddr & -4096, segment.vaddr + segment.size, 4096)
        ]


def load_image(path: Path) -> Image:
    """Reads the ELF file at `path`. Raises BadImage if it is not an x86 ELF executable with something to load."""
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            if elf["e_machine"] not in ("EM_386", "EM_X86_64"):
                raise BadImage(f"{path}: an ELF file for {elf['e_machine']}, not for x86")
            segments = tuple(
                Segment(s["p_paddr"], s["p_vaddr"], s.data(), s["p_memsz"], s["p_flags"])
                for s in elf.iter_segments("PT_LOAD")
                if s["p_memsz"]
            )
            if not segments:
                raise BadImage(f"{path}: has no loadable segment")
            symbols = {
                symbol.name: symbol["st_value"]
                for section in elf.iter_sections()
                if isinstance(section, SymbolTableSection)
                for symbol in section.iter_symbols()
                if symbol.name and symbol["st_shndx"] != "SHN_UNDEF"
            }
            return Image(path, elf["e_entry"], segments, symbols)
    except (ELFError, KeyError, ValueError) as error:
        raise BadImage(f"{path}: not an ELF image ({error or type(error).__name__})") from error
    except OSError as error:
        raise BadImage(f"{path}: {error.strerror or error}") from error
