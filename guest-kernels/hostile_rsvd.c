/* hostile_rsvd: reserved bits in entries of every level. Each must fault with the reserved bit of the error code set,
 * whatever the access; with P=0 beside it the bit means nothing.
 *
 * Reserved bits of a PAE directory pointer are left out: there a real processor faults at the CR3 load itself, and
 * the guest would not survive it (SDM vol. 3A, 4.4.1). QEMU 7.2 finds them at the walk instead.
 */
#include "extra.h"

#define SPAN (xi_span(2))

struct row {
	int level, large;
	u64 bits;          /* 0: the first address bit that the processor lacks (of 52; emulated ones have 40) */
	const char *name;
};

static const struct row rows[] = {
#ifdef XI_NOPAE
	{ 2, 1, 1ull << 21, "bit 21 of a 4 MiB page" },
	{ 2, 1, 1ull << 21 | 1ull << 13, "bit 21 of a 4 MiB page above 4 GiB" },
#else
	{ 1, 0, 0, "address too wide, level 1" },
	{ 2, 0, 0, "address too wide, level 2" },
	{ 2, 1, 0, "address too wide, 2 MiB page" },
	{ 1, 0, 1ull << 51, "address bit 51, level 1" },
	{ 2, 0, 1ull << 51, "address bit 51, level 2" },
	{ 2, 1, 1ull << 13, "2 MiB page, frame bit 13" },
	{ 2, 1, 1ull << 20, "2 MiB page, frame bit 20" },
#endif
#ifdef XI_PAE
	{ 1, 0, 1ull << 52, "bit 52, level 1" },
	{ 1, 0, 1ull << 62, "bit 62, level 1" },
	{ 2, 0, 1ull << 52, "bit 52, level 2" },
	{ 2, 1, 1ull << 59, "bit 59, 2 MiB page" },
#endif
#if XI_LEVELS > 3
	{ 3, 0, 0, "address too wide, level 3" },
	{ 3, 1, 1ull << 13, "1 GiB page, frame bit 13" },
	{ 3, 1, 1ull << 29, "1 GiB page, frame bit 29" },
	{ 4, 0, 0, "address too wide, level 4" },
	{ 4, 0, 1ull << 51, "address bit 51, level 4" },
	{ 4, 0, P_PS, "page size bit, level 4" },
#endif
#if XI_LEVELS > 4
	{ 5, 0, 0, "address too wide, level 5" },
	{ 5, 0, P_PS, "page size bit, level 5" },
#endif
};
#define ROWS (sizeof(rows) / sizeof(rows[0]))

#ifdef XI_NOPAE
#define MORE_TESTS 1u
#else
#define MORE_TESTS 4u
#endif
const unsigned xi_tests = ROWS + 4u + MORE_TESTS;

static space_t s;
static uptr frame;

/* The address whose walk goes through the row's entry to `frame`: no two rows share that entry. */
static uptr address_of(unsigned i)
{
	uptr entry = XI_ARENA + (i + 1) * xi_span(rows[i].level);

	return rows[i].large ? entry + (frame & (xi_span(rows[i].level) - 1)) : entry;
}

static u64 bits_of(const struct row *row)
{
	return row->bits ? row->bits : 1ull << xi_physical_bits();
}

static pte_t *entry_of(unsigned i) { return xi_entry(s, address_of(i), rows[i].level, 0); }

static unsigned count_reaching(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < ROWS; i++)
		n += (unsigned)xi_reaches(address_of(i), frame);
	return n;
}

static void set_and_clear(void)
{
	unsigned absent = 0;
	u32 value;

	for (unsigned i = 0; i < ROWS; i++) {
		uptr va = address_of(i);

		if (rows[i].large)
			xi_map_large(s, va, frame & ~(xi_span(rows[i].level) - 1), P_URW, rows[i].level);
		else
			xi_map(s, va, frame, P_URW);
	}
	xi_flush();
	xi_ok(count_reaching() == ROWS, "without reserved bits all %u addresses work", (u32)ROWS);
	xi_checkpoint("before the reserved bits");

	for (unsigned i = 0; i < ROWS; i++)
		xi_set_entry(entry_of(i), *entry_of(i) | bits_of(&rows[i]));
	xi_flush();
	for (unsigned i = 0; i < ROWS; i++) {
		uptr va = address_of(i);

		xi_ok(xi_faulted_reserved(xi_try_load(va, &value)) && xi_faulted_reserved(xi_try_store(va, 1)) &&
			      xi_faulted_reserved(xi_try_user_load(va, &value)) &&
			      xi_faulted_reserved(xi_try_fetch(va + XI_TAG_OFFSET)),
		      "%s", rows[i].name);
	}
	xi_checkpoint("reserved bits set");

	for (unsigned i = 0; i < ROWS; i++)
		xi_set_entry(entry_of(i), *entry_of(i) & ~P_P);
	xi_flush();
	for (unsigned i = 0; i < ROWS; i++)
		absent += (unsigned)xi_faulted(xi_try_load(address_of(i), &value), 0);
	xi_ok(absent == ROWS, "in an entry that is not present nothing is reserved");
	xi_checkpoint("reserved bits in entries that are not present");

	for (unsigned i = 0; i < ROWS; i++)
		xi_set_entry(entry_of(i), (*entry_of(i) & ~bits_of(&rows[i])) | P_P);
	xi_flush();
	xi_ok(count_reaching() == ROWS, "with the bits cleared all work again");
	xi_checkpoint("reserved bits cleared");
}

#ifdef XI_NOPAE
/* With PSE-36 bits 20:13 of a 4 MiB entry are address bits, not reserved ones. */
static void high_address(void)
{
	u32 value;

	xi_set_entry(xi_entry(s, XI_ARENA2, 2, 1), P_RW | P_PS | 0xffu << 13);
	xi_flush();
	xi_ok(xi_try_load(XI_ARENA2, &value) == 0, "address bits above 32 of a 4 MiB page are not reserved");
	xi_checkpoint("a 4 MiB page far above 4 GiB");
}
#else
/* NX is reserved while EFER.NXE=0. The kernel's own entries have none. */
static void no_execute_reserved(void)
{
	const uptr leaf = XI_ARENA2, table = XI_ARENA2 + 2 * SPAN;
	u32 value;

	if (!xi_has_nx) {
		for (unsigned i = 0; i < 3; i++)
			xi_ok(1, "NX # SKIP the processor has none");
		return;
	}
	xi_map(s, leaf, frame, P_URW | P_NX);
	xi_map(s, table, frame, P_URW);
	xi_set_entry(xi_entry(s, table, 2, 0), *xi_entry(s, table, 2, 0) | P_NX);
	xi_flush();
	xi_ok(xi_reaches(leaf, frame) && xi_reaches(table, frame) &&
		      xi_faulted(xi_try_fetch(leaf + XI_TAG_OFFSET), PF_P) &&
		      xi_faulted(xi_try_fetch(table + XI_TAG_OFFSET), PF_P),
	      "with EFER.NXE, NX forbids the fetch alone");
	xi_set_efer(xi_efer() & ~EFER_NXE);
	xi_flush_global();
	xi_ok(xi_faulted_reserved(xi_try_load(leaf, &value)) && xi_faulted_reserved(xi_try_load(table, &value)) &&
		      xi_faulted_reserved(xi_try_user_store(leaf, 1)),
	      "without EFER.NXE it is reserved");
	xi_checkpoint("EFER.NXE off, NX reserved");
	xi_set_efer(xi_efer() | EFER_NXE);
	xi_flush_global();
	xi_ok(xi_reaches(leaf, frame) && xi_reaches(table, frame), "with EFER.NXE again the pages are back");
	xi_checkpoint("EFER.NXE on again");
}

/* The long modes ignore bits 62:52 (protection keys off); for PAE they are in the table above. */
static void high_bits_ignored(void)
{
	u64 ignored = XI_LEVELS > 3 ? 0x7ffull << 52 : 7ull << 9;

	xi_map(s, XI_ARENA2 + 5 * PAGE, frame, P_URW | ignored);
	xi_ok(xi_reaches(XI_ARENA2 + 5 * PAGE, frame), "bits that the mode ignores do no harm");
	xi_checkpoint("ignored bits set");
}
#endif

void scenario(void)
{
	s = xi_space_new();
	frame = xi_data_frame();
	xi_space_load(s);
	set_and_clear();
#ifdef XI_NOPAE
	high_address();
#else
	no_execute_reserved();
	high_bits_ignored();
#endif
	xi_space_load(xi_kernel_space);
	xi_ok(xi_faulted(xi_try_load(XI_ARENA, 0), 0), "the kernel's space has none of it");
}
