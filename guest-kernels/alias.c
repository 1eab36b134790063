/* alias: one frame at many virtual addresses with different rights; page tables edited through several of their
 * addresses, from both rings; a table under two parents; a recursive self-map; aliases that come and go.
 */
#include "extra.h"

const unsigned xi_tests = XI_LEVELS >= 4 ? 32u : 30u;

#define SPAN (xi_span(2))
#define SLOT(n) (XI_ARENA + (uptr)(n) * SPAN)

#define ALIASES 24u

static space_t space;
static uptr table;                        /* a level-1 table, linked at WINDOW */
#define WINDOW SLOT(8)

static uptr alias_address(unsigned i)
{
	return SLOT(i % 4) + (uptr)(i * 7 + 1) * PAGE; /* spread over four tables */
}

static void one_frame_many_addresses(void)
{
	static const u64 rights[4] = { P_RW, P_P, P_URW, P_UR };
	uptr frame = xi_data_frame();
	unsigned seen = 0, stores = 0, refused = 0, user = 0;
	u32 value;

	for (unsigned i = 0; i < ALIASES; i++)
		xi_map(space, alias_address(i), frame, rights[i % 4 ^ (i / 4 & 1)]);
	xi_flush();
	for (unsigned i = 0; i < ALIASES; i++) {
		uptr va = alias_address(i);
		u64 flags = rights[i % 4 ^ (i / 4 & 1)];
		u32 stored = xi_try_store(va + 4, i);

		seen += (unsigned)xi_reaches(va, frame);
		if (flags & P_W)
			stores += stored == 0 && *xi_word(frame + 4) == i;
		else
			refused += (unsigned)xi_faulted(stored, PF_P | PF_W);
		user += (xi_try_user_load(va, &value) == 0) == ((flags & P_U) != 0);
	}
	xi_ok(seen == ALIASES, "%u of %u addresses reach the one frame", seen, ALIASES);
	xi_ok(stores == ALIASES / 2, "a store through each writable one is seen in the frame");
	xi_ok(refused == ALIASES / 2, "a store through each read-only one faults");
	xi_ok(user == ALIASES, "ring 3 gets in where the entry says so");
	xi_checkpoint("one frame at many addresses");

	for (unsigned i = 0; i < ALIASES; i += 2) {
		xi_unmap(space, alias_address(i));
		xi_invlpg(alias_address(i));
	}
	seen = 0;
	for (unsigned i = 0; i < ALIASES; i++)
		seen += (unsigned)xi_reaches(alias_address(i), frame);
	xi_ok(seen == ALIASES / 2, "half of the addresses are left");
	xi_checkpoint("half of the addresses removed");
}

/* Stores an entry that maps `frame` as page `n` of WINDOW by way of `address`, where the table is mapped. */
static int edit_through(uptr address, unsigned n, uptr frame)
{
	xi_set_entry((pte_t *)address + n, (u64)frame | P_URW);
	return xi_reaches(WINDOW + n * PAGE, frame);
}

static void table_at_several_addresses(void)
{
	const uptr supervisor = SLOT(4) + 3 * PAGE, user = SLOT(5) + 7 * PAGE, late = SLOT(6) + 9 * PAGE;
	uptr frame = xi_data_frame(), other = xi_data_frame();
	pte_t *late_entry;

	xi_entry(space, WINDOW, 1, 1);
	table = xi_linked(space, WINDOW, 2);
	xi_ok(edit_through(table, 0, frame), "a table edited at its identity address");
	xi_map(space, supervisor, table, P_RW);
	xi_flush();
	xi_ok(edit_through(supervisor, 1, frame), "a table edited through a supervisor alias");
	xi_checkpoint("table edited through a supervisor alias");

	xi_map(space, user, table, P_URW);
	xi_flush();
	xi_ok(xi_try_user_store(user + 2 * sizeof(pte_t), (u32)(frame | P_URW)) == 0, "ring 3 writes an entry");
	xi_ok(xi_reaches(WINDOW + 2 * PAGE, frame), "and the page it maps is there");
	xi_checkpoint("table edited from ring 3");

	/* The next alias is itself made by an entry that is written through an alias of another table. */
	late_entry = xi_entry(space, late, 1, 1);
	xi_map(space, SLOT(4) + 4 * PAGE, (uptr)late_entry & ~(PAGE - 1), P_RW);
	xi_flush();
	xi_set_entry((pte_t *)(SLOT(4) + 4 * PAGE + ((uptr)late_entry & (PAGE - 1))), (u64)table | P_RW);
	xi_ok(edit_through(late, 3, frame), "a table edited through an alias made through an alias");
	xi_checkpoint("alias made through an alias");

	xi_set_entry(late_entry, (u64)table | P_P);
	xi_invlpg(late);
	xi_ok(xi_faulted(xi_try_store(late, 0), PF_P | PF_W), "the alias made read-only: a store faults");
	xi_set_entry(late_entry, (u64)table | P_RW);
	xi_invlpg(late);
	xi_ok(edit_through(late, 4, other), "and writable again: an entry written through it");
	xi_checkpoint("alias read-only and writable again");

	xi_unmap(space, late);
	xi_unmap(space, user);
	xi_invlpg(late);
	xi_invlpg(user);
	xi_ok(xi_faulted(xi_try_store(late, 0), PF_W), "a removed alias faults");
	xi_ok(xi_faulted(xi_try_user_store(user, 0), PF_W | PF_U), "so does the one of ring 3");
	xi_ok(edit_through(supervisor, 5, frame), "the alias that is left still works");
	xi_set_entry((pte_t *)supervisor + 4, (u64)frame | P_RW);
	xi_invlpg(WINDOW + 4 * PAGE);
	xi_ok(xi_reaches(WINDOW + 4 * PAGE, frame), "an entry changed through it and flushed");
	xi_checkpoint("aliases removed");
}

static void two_parents(void)
{
	const uptr twin = SLOT(9);
	uptr frame = xi_data_frame();

	xi_link(space, twin, 2, table);
	xi_ok(xi_reaches(twin, xi_linked(space, WINDOW, 1)), "a table under two parents maps its pages twice");
	xi_set_entry((pte_t *)table + 6, (u64)frame | P_URW);
	xi_ok(xi_reaches(twin + 6 * PAGE, frame) && xi_reaches(WINDOW + 6 * PAGE, frame),
	      "one store, two new mappings");
	/* The table maps itself: page 7 under each parent is an alias of the table. */
	xi_set_entry((pte_t *)table + 7, (u64)table | P_RW);
	xi_ok(edit_through(twin + 7 * PAGE, 8, frame), "the table edited through itself, second parent");
	xi_ok(edit_through(WINDOW + 7 * PAGE, 9, frame), "the table edited through itself, first parent");
	xi_checkpoint("a table under two parents");
	/* Watched again since the checkpoint: this store is seen at the second parent's address or not at all. */
	xi_set_entry((pte_t *)(twin + 7 * PAGE) + 11, (u64)frame | P_RW);
	xi_checkpoint("edited through the second parent");
	xi_unlink(space, twin, 2);
	xi_flush();
	xi_ok(edit_through(WINDOW + 7 * PAGE, 10, frame), "one parent gone: the other is an alias still");
	xi_checkpoint("one parent removed");
}

/* ---- the recursive self-map ----
 * An entry of the root that leads to the root makes every table a page: the level-1 tables appear as an array of
 * entries indexed by page number at window(1), the level-2 tables at window(2), and so on. PAE's root is too small
 * for that: there the last four entries of the last directory lead to the four directories instead, which
 * gives the same two arrays.
 */
#if defined(XI_NOPAE)
#define SELF_SLOT 0x3feu
#define SELF_BASE 0xff800000ul
#elif defined(XI_PAE)
#define SELF_SLOT 508u
#define SELF_BASE 0xff800000ul
#elif defined(XI_LONG4)
#define SELF_SLOT 301u
#define SELF_BASE 0xffff968000000000ul
#else
#define SELF_SLOT 401u
#define SELF_BASE 0xff91000000000000ul
#endif
#if defined(XI_NOPAE) || defined(XI_PAE)
#define VA_MASK 0xfffffffful
#elif defined(XI_LONG4)
#define VA_MASK 0x0000fffffffffffful
#else
#define VA_MASK 0x01fffffffffffffful
#endif

/* The entry of `va` at `level` (at most 2 in PAE) as the recursive window shows it: the window's entry for an address
 * is the level-1 entry of that address, so the step is taken once for each level. */
static pte_t *window_entry(uptr va, int level)
{
	while (level-- > 0)
		va = SELF_BASE + ((va & VA_MASK) >> 12) * sizeof(pte_t);
	return (pte_t *)va;
}

/* Makes the window in `s`; ARENA2's tables must exist. No flush. */
static void make_window(space_t s)
{
#ifdef XI_PAE
	pte_t *directory = (pte_t *)xi_linked(s, XI_ARENA2, 3);

	for (unsigned i = 0; i < 4; i++) {
		uptr linked = xi_linked(s, (uptr)i << 30, 3);

		if (linked)
			xi_set_entry(&directory[SELF_SLOT + i], (u64)linked | P_RW);
	}
#else
	xi_set_entry((pte_t *)s.root + SELF_SLOT, (u64)s.root | P_RW);
#endif
}

static void remove_window(space_t s)
{
#ifdef XI_PAE
	for (uptr i = 0; i < 4; i++)
		xi_unlink(s, SELF_BASE + i * SPAN, 2);
#else
	xi_unlink(s, SELF_BASE, XI_LEVELS);
#endif
}

static void recursive_map(void)
{
	const uptr near = XI_ARENA2 + 5 * PAGE, far = XI_ARENA2 + 3 * SPAN + 6 * PAGE;
	uptr frame = xi_data_frame(), other = xi_data_frame(), fresh = xi_frame();
	u32 value;

	xi_map(space, XI_ARENA2, frame, P_RW); /* creates the tables of the first SPAN */
	make_window(space);
	xi_flush();
	xi_ok((*window_entry(XI_ARENA2, 1) & XI_FRAME_MASK) == frame, "the window shows a level-1 entry");
	xi_ok((*window_entry(XI_ARENA2, 2) & XI_FRAME_MASK) == xi_linked(space, XI_ARENA2, 2), "and a level-2 entry");
	xi_checkpoint("recursive self-map");

	xi_set_entry(window_entry(near, 1), (u64)other | P_URW);
	xi_ok(xi_reaches(near, other), "a page mapped through the window");
	xi_set_entry(window_entry(far, 2), (u64)fresh | xi_link_flags(2));
	xi_set_entry(window_entry(far, 1), (u64)frame | P_RW);
	xi_ok(xi_reaches(far, frame), "a table linked, then filled, through the window");
	xi_checkpoint("pages and a table made through the window");

	xi_set_entry(window_entry(near, 1), (u64)frame | P_UR);
	xi_invlpg(near);
	xi_set_entry(window_entry(far, 1), 0);
	xi_invlpg(far);
	xi_ok(xi_reaches(near, frame) && xi_faulted(xi_try_load(far, &value), 0), "a page moved and one unmapped");
	xi_set_entry(window_entry(far, 2), 0);
	xi_flush();
	xi_ok(xi_faulted(xi_try_load((uptr)window_entry(far, 1), &value), 0), "a table unlinked leaves the window");
	xi_checkpoint("edited and unlinked through the window");
}

#if XI_LEVELS >= 4
static void upper_levels_through_window(void)
{
	const uptr va = XI_ARENA2 + 5 * xi_span(3) + 2 * SPAN + 9 * PAGE;
	uptr frame = xi_data_frame();

	for (int level = 3; level > 1; level--)
		xi_set_entry(window_entry(va, level), (u64)xi_frame() | xi_link_flags(level));
	xi_set_entry(window_entry(va, 1), (u64)frame | P_URW);
	xi_ok(xi_reaches(va, frame), "a directory, a table and a page made through the window");
	xi_ok((*window_entry(SELF_BASE, XI_LEVELS) & XI_FRAME_MASK) == space.root,
	      "the window shows the root's own entry");
	xi_checkpoint("upper levels made through the window");
}
#endif

/* Two spaces have the same window address; each shows its own tables. */
static void window_of_another_space(void)
{
	const uptr va = XI_ARENA2 + 7 * PAGE;
	space_t twin = xi_space_new();
	uptr frame = xi_data_frame();
	u32 value;

	xi_map(twin, XI_ARENA2, frame, P_RW);
	make_window(twin);
	xi_space_load(twin);
	xi_set_entry(window_entry(va, 1), (u64)frame | P_RW);
	xi_ok(xi_reaches(va, frame), "another space: a page mapped through its window");
	xi_checkpoint("the window in another space");
	xi_space_load(space);
	xi_ok(xi_faulted(xi_try_load(va, &value), 0), "which the first space does not have");
	remove_window(space);
	xi_flush();
	xi_ok(xi_faulted(xi_try_load((uptr)window_entry(XI_ARENA2, 1), &value), 0), "the window removed");
	xi_checkpoint("recursive self-map removed");
}

void scenario(void)
{
	space = xi_kernel_space;
	one_frame_many_addresses();
	table_at_several_addresses();
	two_parents();
	recursive_map();
#if XI_LEVELS >= 4
	upper_levels_through_window();
#endif
	window_of_another_space();
}
