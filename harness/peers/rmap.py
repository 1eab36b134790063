"""Reverse maps as KVM keeps them: for each frame and page size, which SPTEs map it.

``struct kvm_rmap_head`` of arch/x86/kvm/mmu (`pte_list_add`, `pte_list_remove`, `rmap_get_first`/`next` in mmu.c): the
head is empty, or is the one SPTE itself, or is a chain of small arrays, each allocated when the one before is full. The
parents of a shadow page are kept in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from harness.work import PAGE

CHUNK: Final = 14  # SPTEs in one array: PTE_LIST_EXT of Linux 5.13 and later
CHUNK_BYTES: Final = 16 + 8 * CHUNK
HEAD_BYTES: Final = 8


class Rmap:
    """Lists of words of the pool, by key: of any hashable kind, here (gfn, level) or the number of a shadow page.

    chunks: arrays held now; chunks_made: allocated in all; chunks_most: held at a time. visited: entries that were
    looked at.
    """

    def __init__(self) -> None:
        self._heads: dict[object, int | list[list[int]]] = {}
        self.chunks = 0
        self.chunks_made = 0
        self.chunks_most = 0
        self.visited = 0

    def add(self, key: object, word: int) -> None:
        """Puts `word` on the list of `key`, on which it is not yet."""
        head = self._heads.get(key)
        if head is None:
            self._heads[key] = word
        elif isinstance(head, int):
            self._heads[key] = [[head, word]]
            self._made()
        elif len(head[0]) < CHUNK:
            head[0].append(word)
        else:
            head.insert(0, [word])  # only the first array of a chain has room
            self._made()

    def _made(self) -> None:
        self.chunks += 1
        self.chunks_made += 1
        self.chunks_most = max(self.chunks_most, self.chunks)

    def remove(self, key: object, word: int) -> None:
        """Takes `word` off the list of `key`; the youngest of the first array fills the gap. Raises KeyError when it is
        not there."""
        head = self._heads[key]
        if isinstance(head, int):
            self.visited += 1
            if head != word:
                raise KeyError(word)
            del self._heads[key]
            return
        for chunk in head:
            if word in chunk:
                at = chunk.index(word)
                self.visited += at + 1
                last = head[0].pop()
                if last != word:
                    chunk[at] = last
                if not head[0]:
                    del head[0]
                    self.chunks -= 1
                break
            self.visited += len(chunk)
        else:
            raise KeyError(word)
        if len(head) == 1 and len(head[0]) == 1:
            self._heads[key] = head[0][0]
            self.chunks -= 1

    def of(self, key: object) -> list[int]:
        """The words on the list of `key`, all looked at."""
        head = self._heads.get(key)
        if head is None:
            return []
        out = [head] if isinstance(head, int) else [word for chunk in head for word in chunk]
        self.visited += len(out)
        return out

    def __iter__(self) -> Iterator[object]:
        return iter(list(self._heads))

    def everything(self) -> set[tuple[object, int]]:
        """(key, word) of all there is, for an audit; not counted as looked at."""
        out: set[tuple[object, int]] = set()
        for key, head in self._heads.items():
            words = [head] if isinstance(head, int) else [word for chunk in head for word in chunk]
            out.update((key, word) for word in words)
        return out

    @property
    def bytes(self) -> int:
        """Memory of the arrays."""
        return self.chunks * CHUNK_BYTES

    @property
    def pages(self) -> int:
        """4 KiB pages that the arrays took when they were most: what is freed is kept for the next of its kind."""
        return -(-self.chunks_most * CHUNK_BYTES // PAGE)
