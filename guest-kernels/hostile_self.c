/* hostile_self: tables that lead back to themselves at every level, rings of two tables, and a table that serves as a
 * page table and as a directory at once. A walk ends all the same, because it counts levels.
 *
 * The PAE root takes no part: its four entries have reserved bits where others have rights and A and D, and a
 * walk that used them as such would set bits that make the next CR3 load fault on a real processor.
 */
#include "extra.h"

#define SELF 77u   /* the entry that leads back; free in every table here, the root included */
#define LOOP_LEVELS (XI_LEVELS == 3 ? 2 : XI_LEVELS)
const unsigned xi_tests = 3u * LOOP_LEVELS + 3u * (XI_LEVELS > 2) + 3u * (XI_LEVELS != 3) + 3u * (XI_LEVELS > 2) + 1u;

#define SPAN (xi_span(2))

static space_t s;

/* The address whose indexes at `level` and below are all `index`, in the region of `va` above. */
static uptr spiral(uptr va, int level, unsigned index)
{
	va &= ~(xi_span(level) * XI_ENTRIES - 1);
#if XI_LEVELS > 3
	if (level == XI_LEVELS)
		va = 0; /* the spiral decides every bit; SELF lies in the lower, canonical half */
#elif defined(XI_NOPAE)
	if (level == XI_LEVELS)
		va = 0;
#endif
	for (int at = level; at >= 1; at--)
		va |= (uptr)index << xi_shift(at);
	return va;
}

static uptr frame_of(pte_t entry) { return (uptr)(entry & XI_FRAME_MASK); }

static void self_at(int level)
{
	uptr va = XI_ARENA + (level == 1 ? 3 * SPAN : 0), frame = xi_data_frame(), base;
	pte_t *table = (pte_t *)((uptr)xi_entry(s, va, level, 1) & ~(PAGE - 1));
	pte_t *through;
	u32 value;

	base = spiral(va, level, SELF);
	through = (pte_t *)base;
	xi_set_entry(&table[SELF], (u64)(uptr)table | P_RW | P_A);
	xi_flush();
	xi_ok(frame_of(through[SELF]) == (uptr)table, "level %u: a table seen through its own entry", (u32)level);
	xi_set_entry(&through[SELF + 1], (u64)frame | P_RW);
	xi_ok(xi_reaches(base + PAGE, frame), "level %u: an entry written through it maps a page", (u32)level);
	xi_checkpoint("a table that leads to itself");
	xi_set_entry(&through[SELF + 1], 0);
	xi_flush();
	xi_ok(xi_faulted(xi_try_load(base + PAGE, &value), 0), "level %u: and is cleared through it", (u32)level);
}

#if XI_LEVELS > 2
/* Two directories, each the page table of one entry of the other. */
static void ring_of_directories(void)
{
	uptr one = XI_ARENA, two = XI_ARENA2, frame = xi_data_frame();
	const unsigned ring = SELF + 2;
	pte_t *a = (pte_t *)((uptr)xi_entry(s, one, 2, 1) & ~(PAGE - 1));
	pte_t *b = (pte_t *)((uptr)xi_entry(s, two, 2, 1) & ~(PAGE - 1));
	pte_t *a_seen = (pte_t *)spiral(one, 2, ring), *b_seen = (pte_t *)spiral(two, 2, ring);

	xi_set_entry(&a[ring], (u64)(uptr)b | P_RW | P_A);
	xi_set_entry(&b[ring], (u64)(uptr)a | P_RW | P_A);
	xi_flush();
	xi_ok(frame_of(a_seen[ring]) == (uptr)b && frame_of(b_seen[ring]) == (uptr)a,
	      "two directories show each other");
	xi_set_entry(&a_seen[ring + 1], (u64)frame | P_RW);
	xi_ok(xi_reaches((uptr)b_seen + PAGE, frame), "an entry of one, written by way of the other, maps a page");
	xi_set_entry(&b_seen[ring + 1], (u64)frame | P_RW);
	xi_ok(xi_reaches((uptr)a_seen + PAGE, frame), "and the other way round");
	xi_checkpoint("a ring of two directories");
	xi_set_entry(&a[ring], 0);
	xi_set_entry(&b[ring], 0);
	xi_set_entry(&a[ring + 1], 0);
	xi_set_entry(&b[ring + 1], 0);
	xi_flush();
}

/* One frame as a page table under one entry and as a directory under another. */
static void table_and_directory(void)
{
#ifdef XI_PAE
	const uptr as_directory = 0x40000000ul;
#else
	const uptr as_directory = XI_ARENA + 5 * xi_span(3);
#endif
	const uptr as_table = XI_ARENA2 + 9 * SPAN;
	uptr both = xi_frame(), below = xi_frame(), frame = xi_data_frame(), other = xi_data_frame();

	xi_link(s, as_table, 2, both);
	xi_link(s, as_directory, 3, both);
	xi_set_entry((pte_t *)both + 3, (u64)frame | P_URW | P_A);
	xi_set_entry((pte_t *)both + 4, (u64)below | P_URW | P_A);
	xi_set_entry((pte_t *)below + 5, (u64)other | P_RW);
	xi_flush();
	xi_ok(xi_reaches(as_table + 3 * PAGE, frame), "as a page table it maps a page");
	xi_ok(xi_reaches(as_directory + 4 * SPAN + 5 * PAGE, other), "as a directory it links a table");
	xi_set_entry((pte_t *)(as_table + 4 * PAGE) + 6, (u64)frame | P_UR);
	xi_ok(xi_reaches(as_directory + 4 * SPAN + 6 * PAGE, frame), "which is edited through the first role");
	xi_checkpoint("a frame that is page table and directory");
}
#endif

#ifndef XI_PAE
/* Two roots, each a table of the other: walks go from root to root until the levels are used up. */
static void ring_of_roots(void)
{
	const unsigned ring = SELF + 4;
	space_t t = xi_space_new();
	uptr end = XI_LEVELS % 2 ? t.root : s.root; /* where an odd or even number of steps from s ends */
	uptr frame = xi_data_frame();
	pte_t *through = (pte_t *)spiral(0, XI_LEVELS, ring);

	xi_set_entry((pte_t *)s.root + ring, (u64)t.root | P_RW | P_A);
	xi_set_entry((pte_t *)t.root + ring, (u64)s.root | P_RW | P_A);
	xi_flush();
	xi_ok(frame_of(through[ring]) == frame_of(((pte_t *)end)[ring]), "two roots in a ring, seen from the first");
	xi_checkpoint("a ring of two roots, first loaded");
	xi_space_load(t);
	end = XI_LEVELS % 2 ? s.root : t.root;
	xi_ok(frame_of(through[ring]) == frame_of(((pte_t *)end)[ring]), "and from the second");
	xi_set_entry((pte_t *)s.root + ring + 1, (u64)frame | P_RW);
	xi_set_entry((pte_t *)t.root + ring + 1, (u64)frame | P_RW);
	xi_ok(xi_reaches((uptr)through + PAGE, frame), "a page mapped at the end of the ring");
	xi_checkpoint("a ring of two roots, second loaded");
	xi_space_load(s);
	xi_set_entry((pte_t *)s.root + ring, 0);
	xi_set_entry((pte_t *)s.root + ring + 1, 0);
	xi_flush();
}
#endif

void scenario(void)
{
	uptr frame = xi_data_frame();

	s = xi_space_new();
	xi_map(s, XI_ARENA, frame, P_URW);
	xi_map(s, XI_ARENA2, frame, P_URW);
	xi_space_load(s);
	for (int level = 1; level <= LOOP_LEVELS; level++)
		self_at(level);
#if XI_LEVELS > 2
	ring_of_directories();
	table_and_directory();
#endif
#ifndef XI_PAE
	ring_of_roots();
#endif
	xi_space_load(xi_kernel_space);
	xi_ok(xi_faulted(xi_try_load(spiral(XI_ARENA, LOOP_LEVELS, SELF), 0), 0),
	      "the kernel's space has no such entry");
	xi_checkpoint("back in the kernel's space");
}
