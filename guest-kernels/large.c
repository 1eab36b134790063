/* large: pages of 4 MiB (nopae, CR4.PSE), 2 MiB and 1 GiB; split into smaller pages and merged again; page
 * tables that lie inside a large page and are edited through it; rights, cache bits and A/D of large entries.
 */
#include "extra.h"

#if defined(XI_NOPAE)
#define MODE_TESTS 5u /* ps_bit_ignored, high_frame */
#elif defined(XI_PAE)
#define MODE_TESTS 2u /* no_execute */
#else
#define MODE_TESTS 14u /* no_execute, directory_inside, gigabyte */
#endif
const unsigned xi_tests = 32u + MODE_TESTS;

#define SPAN (xi_span(2))
#define SLOT(n) (XI_ARENA + (uptr)(n) * SPAN)

static space_t space;
static uptr block;                        /* SPAN bytes of tagged frames, aligned to SPAN */

/* How many of a spread of pages of the large mapping at `va` reach their frame of the block at `base`. */
static unsigned count_reached(uptr va, uptr base, unsigned *tried)
{
	unsigned reached = 0;

	*tried = 0;
	for (uptr i = 0; i < XI_ENTRIES; i += 73) {
		reached += (unsigned)xi_reaches(va + i * PAGE, base + i * PAGE);
		++*tried;
	}
	return reached;
}

static int all_reached(uptr va, uptr base)
{
	unsigned tried, reached = count_reached(va, base, &tried);

	return reached == tried;
}

/* Replaces the large page of `va` at `level` by a table of the next smaller size that maps the same frames
 * with the same rights, and returns that table. */
static uptr split(uptr va, int level)
{
	pte_t *entry = xi_entry(space, va, level, 0);
	u64 base = *entry & XI_FRAME_MASK & ~(u64)(xi_span(level) - 1);
	u64 flags = *entry & (P_NX | P_P | P_W | P_U | P_PWT | P_PCD | P_A | P_D);
	uptr table = xi_frame();

	if (level - 1 > 1)
		flags |= P_PS;
#ifdef XI_NOPAE
	flags &= 0xfff;                   /* there is no bit 63 in a 4-byte entry */
#endif
	for (unsigned i = 0; i < XI_ENTRIES; i++)
		xi_set_entry((pte_t *)table + i, (base + (u64)i * xi_span(level - 1)) | flags);
	xi_set_entry(entry, (u64)table | xi_link_flags(level));
	xi_flush();
	return table;
}

static void one_large_page(void)
{
	xi_map_large(space, SLOT(0), block, P_URW, 2);
	xi_flush();
	xi_ok(all_reached(SLOT(0), block), "a large page reaches each of its frames");
	*xi_word(SLOT(0) + 3 * PAGE) = 0x11223344;
	xi_ok(*xi_word(block + 3 * PAGE) == 0x11223344, "a store through it lands in the fourth frame");
	xi_ok(xi_try_user_store(SLOT(0) + SPAN - PAGE, 0x55667788) == 0, "ring 3 may store to its last page");
	xi_ok(*xi_word(block + SPAN - PAGE) == 0x55667788, "and the value is in the last frame");
	xi_checkpoint("one large page");
}

static void accessed_and_dirty(void)
{
	pte_t *entry = xi_entry(space, SLOT(0), 2, 0);
	u32 value;

	xi_set_entry(entry, *entry & ~(P_A | P_D));
	xi_invlpg(SLOT(0));
	xi_checkpoint("large page, A and D clear");
	xi_set_entry(entry, *entry & ~(P_A | P_D));
	xi_invlpg(SLOT(0));
	xi_try_load(SLOT(0) + 9 * PAGE, &value);
	xi_ok((*entry & (P_A | P_D)) == P_A, "a load sets A of the large entry and not D");
	xi_try_store(SLOT(0) + 11 * PAGE, 1);
	xi_ok((*entry & (P_A | P_D)) == (P_A | P_D), "a store sets D");
}

static void split_edit_merge(void)
{
	u64 large = *xi_entry(space, SLOT(0), 2, 0);
	pte_t *table = (pte_t *)split(SLOT(0), 2);
	uptr other = xi_data_frame();
	u32 value;

	xi_ok(all_reached(SLOT(0), block), "after the split every page is where it was");
	xi_checkpoint("split into 4 KiB pages");

	xi_set_entry(&table[5], (u64)other | P_URW);
	xi_set_entry(&table[6], 0);
	xi_set_entry(&table[7], table[7] & ~P_W);
	for (unsigned i = 5; i <= 7; i++)
		xi_invlpg(SLOT(0) + i * PAGE);
	xi_ok(xi_reaches(SLOT(0) + 5 * PAGE, other), "a page of the split region leads elsewhere");
	xi_ok(xi_faulted(xi_try_load(SLOT(0) + 6 * PAGE, &value), 0), "its neighbour is gone");
	xi_ok(xi_faulted(xi_try_store(SLOT(0) + 7 * PAGE, 1), PF_P | PF_W), "the next is read-only");
	xi_checkpoint("split and edited");

	xi_set_entry(xi_entry(space, SLOT(0), 2, 0), large);
	xi_flush();
	xi_ok(all_reached(SLOT(0), block), "merged again: the large page is back");
	xi_ok(xi_reaches(SLOT(0) + 5 * PAGE, block + 5 * PAGE), "and hides the edits");
	for (unsigned i = 0; i < PAGE / 4; i++)
		xi_word((uptr)table)[i] = 0x10001u * i; /* half of these would be present entries */
	xi_ok(*xi_word((uptr)table + 8) == 0x20002, "the old table is plain data");
	xi_checkpoint("merged, old table overwritten");
}

static void rights(void)
{
	static const struct {
		u64 flags;
		u32 store, user_load, user_store;
		const char *name;
	} rows[] = {
		{ P_P, XI_PF | PF_P | PF_W, XI_PF | PF_P | PF_U, XI_PF | PF_P | PF_U | PF_W, "read-only, supervisor" },
		{ P_P | P_W, 0, XI_PF | PF_P | PF_U, XI_PF | PF_P | PF_U | PF_W, "writable, supervisor" },
		{ P_P | P_U, XI_PF | PF_P | PF_W, 0, XI_PF | PF_P | PF_U | PF_W, "read-only, user" },
		{ P_P | P_W | P_U, 0, 0, 0, "writable, user" },
	};
	u32 value;

	for (unsigned i = 0; i < 4; i++) {
		uptr va = SLOT(8 + i);

		xi_map_large(space, va, block, rows[i].flags, 2);
		xi_ok(xi_reaches(va + 40 * PAGE, block + 40 * PAGE), "large %s: ring 0 may load", rows[i].name);
		xi_ok(xi_try_store(va, i) == rows[i].store && xi_try_user_load(va, &value) == rows[i].user_load &&
			      xi_try_user_store(va, i) == rows[i].user_store,
		      "large %s: other accesses as its bits say", rows[i].name);
	}
	xi_checkpoint("large pages with different rights");

	xi_set_entry(xi_entry(space, SLOT(11), 2, 0), (u64)block | P_P | P_PS);
	xi_invlpg(SLOT(11));
	xi_ok(xi_faulted(xi_try_store(SLOT(11) + 2 * PAGE, 1), PF_P | PF_W) &&
		      xi_faulted(xi_try_user_load(SLOT(11) + 2 * PAGE, &value), PF_P | PF_U),
	      "a large page loses its rights");
	xi_checkpoint("a large page's rights taken away");
}

#ifndef XI_NOPAE
static void no_execute(void)
{
	u32 got;

	if (!xi_has_nx) {
		xi_ok(1, "no-execute large page # SKIP the processor has no NX");
		xi_ok(1, "executable large page # SKIP the processor has no NX");
		return;
	}
	xi_map_large(space, SLOT(12), block, P_RW | P_NX, 2);
	got = xi_try_fetch(SLOT(12) + 50 * PAGE + XI_TAG_OFFSET);
	xi_ok(got == (XI_PF | PF_P | PF_I), "no-execute large page: a fetch faults (%x)", got);
	xi_ok(xi_try_fetch(SLOT(9) + 50 * PAGE + XI_TAG_OFFSET) == 0, "the same frame may be executed elsewhere");
	xi_checkpoint("no-execute large page");
}
#endif

static void table_inside(void)
{
	const uptr offset = 37 * PAGE, va = SLOT(16);
	uptr table = block + offset, first = xi_data_frame(), second = xi_data_frame();
	pte_t *through = (pte_t *)(SLOT(0) + offset);
	u64 large = *xi_entry(space, SLOT(0), 2, 0);

	memset((void *)table, 0, PAGE);
	xi_link(space, va, 2, table);
	xi_set_entry(&through[0], (u64)first | P_URW);
	xi_set_entry(&through[9], (u64)second | P_UR);
	xi_ok(xi_reaches(va, first) && xi_reaches(va + 9 * PAGE, second),
	      "entries written through the large page map pages");
	xi_checkpoint("a page table inside a writable large page");

	xi_set_entry(&through[0], (u64)second | P_RW);
	xi_set_entry(&through[9], 0);
	xi_invlpg(va);
	xi_invlpg(va + 9 * PAGE);
	xi_ok(xi_reaches(va, second), "an entry changed through the large page");
	xi_checkpoint("the table edited through the large page");

	split(SLOT(0), 2);
	xi_set_entry(&through[1], (u64)first | P_RW);
	xi_ok(xi_reaches(va + PAGE, first), "an entry written through the split page");
	xi_checkpoint("the large page around the table split");

	xi_set_entry(xi_entry(space, SLOT(0), 2, 0), large);
	xi_flush();
	xi_set_entry(&through[2], (u64)first | P_RW);
	xi_ok(xi_reaches(va + 2 * PAGE, first), "an entry written after the merge");
	xi_set_entry(xi_entry(space, SLOT(0), 2, 0), large & ~P_W);
	xi_invlpg(SLOT(0));
	xi_ok(xi_faulted(xi_try_store(SLOT(0) + offset, 0), PF_P | PF_W), "the large page made read-only");
	xi_ok(xi_reaches(va, second), "the table was not touched by the store that faulted");
	xi_checkpoint("the large page around the table read-only");

	xi_set_entry(xi_entry(space, SLOT(0), 2, 0), large);
	xi_unlink(space, va, 2);
	xi_flush();
	for (unsigned i = 0; i < PAGE / 4; i++)
		xi_word((uptr)through)[i] = ~i;
	xi_ok(*xi_word(table + 44) == ~11u, "unlinked, the table is data in the large page");
	xi_checkpoint("the table inside is data again");
}

#if XI_LEVELS >= 4
static void directory_inside(void)
{
	const uptr offset = 38 * PAGE, va = XI_ARENA + xi_span(3);
	pte_t *through = (pte_t *)(SLOT(0) + offset);
	uptr table = xi_frame(), frame = xi_data_frame();

	memset((void *)(block + offset), 0, PAGE);
	xi_link(space, va, 3, block + offset);
	xi_set_entry((pte_t *)table + 3, (u64)frame | P_URW);
	xi_set_entry(&through[4], (u64)table | xi_link_flags(2));
	xi_ok(xi_reaches(va + 4 * SPAN + 3 * PAGE, frame), "a directory inside the large page links a table");
	xi_set_entry(&through[5], (u64)block | P_RW | P_PS);
	xi_ok(all_reached(va + 5 * SPAN, block), "and a large page that contains the directory itself");
	xi_checkpoint("a page directory inside a writable large page");
	xi_unlink(space, va, 3);
	xi_flush();
}

static void gigabyte(void)
{
	const uptr window = XI_ARENA2, va = XI_ARENA2 + xi_span(3) + 6 * SPAN;
	uptr table, frame = xi_data_frame(), other = xi_data_frame();
	pte_t *through;
	u32 value;

	if (!xi_has_1g) {
		for (unsigned i = 0; i < 10; i++)
			xi_ok(1, "1 GiB pages # SKIP the processor has none");
		return;
	}
	xi_entry(space, va, 1, 1);
	table = xi_linked(space, va, 2);
	through = (pte_t *)(window + table);
	xi_map_large(space, window, 0, P_RW, 3);
	xi_ok(all_reached(window + block, block), "a 1 GiB page reaches frames in RAM");
	xi_ok(xi_try_load(window + xi_ram_bytes + 5 * PAGE, &value) == 0, "and may be used past the end of RAM");
	xi_set_entry(&through[0], (u64)frame | P_URW);
	xi_ok(xi_reaches(va, frame), "a table edited through the 1 GiB page");
	xi_checkpoint("1 GiB page, RAM only in its beginning");

	split(window, 3);
	xi_ok(all_reached(window + block, block), "split into 2 MiB pages");
	xi_set_entry(&through[1], (u64)other | P_RW);
	xi_ok(xi_reaches(va + PAGE, other), "a table edited through a 2 MiB part");
	split(window + (table & ~(SPAN - 1)), 2);
	xi_set_entry(&through[2], (u64)frame | P_RW);
	xi_ok(xi_reaches(va + 2 * PAGE, frame), "a table edited through a 4 KiB part");
	xi_checkpoint("1 GiB page split twice");

	xi_map_large(space, window, 0, P_RW, 3);
	xi_flush();
	xi_set_entry(&through[0], (u64)other | P_URW);
	xi_invlpg(va);
	xi_ok(xi_reaches(va, other), "merged: a table edited through the 1 GiB page");
	xi_ok(xi_faulted(xi_try_user_load(window + frame, &value), PF_P | PF_U), "ring 3 has no right to it");
	xi_checkpoint("1 GiB page merged");

	xi_map_large(space, window, 0, P_P | P_U | (xi_has_nx ? P_NX : 0), 3);
	xi_flush();
	xi_ok(xi_faulted(xi_try_store(window + frame, 1), PF_P | PF_W), "read-only: a store faults");
	xi_ok(xi_try_user_load(window + frame + XI_TAG_OFFSET + 8, &value) == 0 && value == xi_tag(frame / PAGE),
	      "user: ring 3 may load");
	xi_checkpoint("1 GiB page read-only for ring 3");
	xi_unlink(space, window, 3);
	xi_flush();
}
#endif

#ifdef XI_NOPAE
/* While CR4.PSE=0 the PS bit of a PDE means nothing: the same entry leads to a page table. The frame used is
 * 4 MiB-aligned, so that both readings of the entry are valid. */
static void ps_bit_ignored(void)
{
	uptr va = SLOT(5), frame = xi_data_frame();

	xi_unlink(space, SLOT(0), 2);
	for (unsigned i = 8; i < 12; i++)
		xi_unlink(space, SLOT(i), 2);
	memset((void *)block, 0, PAGE);
	xi_set_entry((pte_t *)block + 1, (u64)frame | P_URW);
	xi_map_large(space, va, block, P_URW, 2);
	xi_flush();
	xi_ok(xi_reaches(va + PAGE, block + PAGE), "with CR4.PSE the entry maps 4 MiB");
	xi_checkpoint("4 MiB page whose first frame could be a table");
	xi_set_cr4(xi_cr4() & ~CR4_PSE);
	xi_flush_global();
	xi_ok(xi_reaches(va + PAGE, frame), "without CR4.PSE it leads to a page table");
	xi_checkpoint("CR4.PSE off");
	xi_set_entry((pte_t *)block + 2, (u64)frame | P_UR);
	xi_ok(xi_reaches(va + 2 * PAGE, frame), "which can be edited");
	xi_checkpoint("CR4.PSE off, table edited");
	xi_set_cr4(xi_cr4() | CR4_PSE);
	xi_flush_global();
	xi_ok(xi_reaches(va + PAGE, block + PAGE), "with CR4.PSE again the 4 MiB page is back");
	xi_checkpoint("CR4.PSE on again");
}

/* PSE-36: bits 20:13 of a 4 MiB entry are address bits 39:32. There is no RAM up there. */
static void high_frame(void)
{
	u32 value;

	xi_set_entry(xi_entry(space, SLOT(15), 2, 1), (u64)block | P_RW | P_PS | 1u << 13);
	xi_flush();
	xi_ok(xi_try_load(SLOT(15) + XI_TAG_OFFSET + 8 + PAGE, &value) == 0 && value != xi_tag(block / PAGE + 1),
	      "bit 13 moves a 4 MiB page above 4 GiB");
}
#endif

static void past_ram_and_cache_bits(void)
{
	u32 value;

	xi_map_large(space, SLOT(13), xi_ram_bytes, P_RW, 2);
	xi_map_large(space, SLOT(14), xi_ram_bytes - SPAN, P_RW, 2);
	xi_set_entry(xi_entry(space, SLOT(4), 2, 1), (u64)block | P_URW | P_PS | P_PCD | P_PWT | P_PAT_LARGE);
	xi_ok(xi_try_load(SLOT(13), &value) == 0, "a large page past the end of RAM");
	xi_ok(xi_reaches(SLOT(14) + SPAN - PAGE, xi_ram_bytes - PAGE), "the last large page of RAM");
	xi_ok(all_reached(SLOT(4), block), "PAT, PCD and PWT do not change where a large page leads");
	xi_checkpoint("large pages past RAM and with cache bits");
	xi_unlink(space, SLOT(4), 2);
	xi_flush();
}

void scenario(void)
{
	space = xi_kernel_space;
#ifdef XI_NOPAE
	xi_set_cr4(xi_cr4() | CR4_PSE);
#endif
	block = xi_frames(XI_ENTRIES, SPAN);
	one_large_page();
	accessed_and_dirty();
	split_edit_merge();
	rights();
#ifndef XI_NOPAE
	no_execute();
#endif
	table_inside();
#if XI_LEVELS >= 4
	directory_inside();
	gigabyte();
#endif
	past_ram_and_cache_bits();
#ifdef XI_NOPAE
	high_frame();
	ps_bit_ignored();
#endif
}
