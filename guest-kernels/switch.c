/* switch: many address spaces with private and shared lower tables, loaded in several orders; global pages and
 * CR4.PGE; a table that becomes data and data that becomes a table; spaces destroyed and their frames used again.
 */
#include "extra.h"

const unsigned xi_tests = XI_LEVELS > 2 ? 23u : 22u;

#define SPAN (xi_span(2))
#define SPACES 12u
#define PRIVATE XI_ARENA                   /* a table of its own in each space */
#define SHARED (XI_ARENA + 2 * SPAN)       /* one level-1 table under all of them */
#define GLOBAL (XI_ARENA + 4 * SPAN)       /* one level-1 table whose pages are global */
#define FIRST (XI_ARENA + 6 * SPAN)        /* used by single phases */

static space_t spaces[SPACES];
static uptr frames[SPACES];                /* what PRIVATE leads to in each space */
static uptr shared_table, global_table;
static uptr common;                        /* a frame that all share */

static void make_spaces(void)
{
	common = xi_data_frame();
	shared_table = xi_frame();
	global_table = xi_frame();
	xi_set_entry((pte_t *)shared_table, (u64)common | P_URW);
	xi_set_entry((pte_t *)global_table, (u64)common | P_RW | P_G);
	for (unsigned i = 0; i < SPACES; i++) {
		spaces[i] = xi_space_new();
		frames[i] = xi_data_frame();
		xi_map(spaces[i], PRIVATE, frames[i], P_URW);
		xi_map(spaces[i], PRIVATE + (1 + i) * PAGE, common, P_UR);
		xi_link(spaces[i], SHARED, 2, shared_table);
		xi_link(spaces[i], GLOBAL, 2, global_table);
	}
}

/* Loads each space in the order given by a step through them; whether each showed its own frame and the shared one. */
static int visit(unsigned start, unsigned step, unsigned count)
{
	int right = 1;

	for (unsigned n = 0, i = start; n < count; n++, i = (i + step) % SPACES) {
		xi_space_load(spaces[i]);
		right &= xi_reaches(PRIVATE, frames[i]) && xi_reaches(PRIVATE + (1 + i) * PAGE, common) &&
			 xi_reaches(SHARED, common);
	}
	return right;
}

static void orders(void)
{
	u32 value;

	xi_ok(visit(0, 1, SPACES), "%u spaces, loaded upwards: one address, as many frames", SPACES);
	xi_checkpoint("spaces loaded upwards");
	xi_ok(visit(SPACES - 1, SPACES - 1, SPACES), "loaded downwards");
	xi_ok(visit(3, 5, 2 * SPACES), "loaded in steps of five");
	xi_ok(visit(7, 0, 4), "one loaded four times over");
	xi_ok(xi_faulted(xi_try_load(PRIVATE + 2 * PAGE, &value), 0),
	      "a page that only another space has is not there");
	xi_checkpoint("spaces loaded in other orders");
}

/* A store into a table that is shared counts in every space, loaded or not. */
static void shared_edits(void)
{
	uptr frame = xi_data_frame();
	unsigned right = 0;

	xi_space_load(spaces[5]);
	xi_set_entry((pte_t *)shared_table + 1, (u64)frame | P_URW);
	for (unsigned i = 0; i < SPACES; i++) {
		xi_space_load(spaces[i]);
		right += (unsigned)xi_reaches(SHARED + PAGE, frame);
	}
	xi_ok(right == SPACES, "a page added to a shared table is in all %u spaces", right);

	xi_space_load(spaces[6]);
	xi_set_entry((pte_t *)shared_table, (u64)frame | P_UR);
	xi_invlpg(SHARED);
	xi_ok(xi_reaches(SHARED, frame), "a shared page moved, seen at once after INVLPG");
	xi_checkpoint("shared table edited");
	xi_space_load(spaces[2]);
	xi_ok(xi_reaches(SHARED, frame), "and in another space after its load");
	/* A private table edited while another space is loaded takes effect at the load of its own. */
	xi_set_entry(xi_entry(spaces[4], PRIVATE + 20 * PAGE, 1, 1), (u64)frame | P_RW);
	xi_set_entry(xi_entry(spaces[4], PRIVATE, 1, 0), (u64)frame | P_RW);
	xi_space_load(spaces[4]);
	xi_ok(xi_reaches(PRIVATE + 20 * PAGE, frame) && xi_reaches(PRIVATE, frame), "a space edited while not loaded");
	xi_checkpoint("space edited from outside");
	xi_set_entry(xi_entry(spaces[4], PRIVATE, 1, 0), (u64)frames[4] | P_URW);
	xi_invlpg(PRIVATE);
	xi_set_entry((pte_t *)shared_table, (u64)common | P_URW);
	xi_invlpg(SHARED);
}

/* Global pages are the same in all spaces, as the architecture asks; INVLPG or a change of CR4.PGE drops them. */
static void global_pages(void)
{
	pte_t *table = (pte_t *)global_table;
	uptr frame = xi_data_frame();
	int right = 1;

	if (!xi_has_pge) {
		for (unsigned i = 0; i < 4; i++)
			xi_ok(1, "global pages # SKIP the processor has none");
		return;
	}
	xi_set_cr4(xi_cr4() | CR4_PGE);
	for (unsigned i = 0; i < SPACES; i += 3) {
		xi_space_load(spaces[i]);
		right &= xi_reaches(GLOBAL, common);
	}
	xi_ok(right, "a global page reached from several spaces");
	xi_checkpoint("CR4.PGE on, global pages");
	xi_set_entry(&table[0], (u64)frame | P_RW | P_G);
	xi_invlpg(GLOBAL);
	xi_space_load(spaces[1]);
	xi_ok(xi_reaches(GLOBAL, frame), "moved, with INVLPG, then another space loaded");
	xi_set_entry(&table[0], (u64)common | P_UR | P_G);
	xi_flush_global();
	xi_ok(xi_reaches(GLOBAL, common), "moved, with CR4.PGE toggled");
	xi_checkpoint("CR4.PGE toggled");
	xi_set_cr4(xi_cr4() & ~CR4_PGE);
	xi_set_entry(&table[0], (u64)frame | P_RW | P_G);
	xi_space_load(spaces[2]);
	xi_ok(xi_reaches(GLOBAL, frame), "without CR4.PGE a CR3 load is enough");
	xi_checkpoint("CR4.PGE off");
	xi_set_cr4(xi_cr4() | CR4_PGE);
}

static void table_becomes_data(void)
{
	space_t s = spaces[3];
	uptr table = xi_linked(s, PRIVATE, 2);
	unsigned wrong = 0;
	u32 value;

	xi_space_load(s);
	xi_unlink(s, PRIVATE, 2);
	xi_flush();
	xi_ok(xi_faulted(xi_try_load(PRIVATE, &value), 0), "a table unlinked");
	xi_map(s, FIRST, table, P_URW);
	for (unsigned i = 0; i < PAGE / 4; i++)
		xi_word(FIRST)[i] = 0x2468ace1u * i; /* every other word would be a present entry */
	for (unsigned i = 0; i < PAGE / 4; i++)
		wrong += xi_word(table)[i] != 0x2468ace1u * i;
	xi_ok(wrong == 0, "its frame takes any words as data");
	xi_checkpoint("a table became data");

	/* And back: entries are laid out as data first, then the frame is linked, still mapped for writing. */
	memset((void *)FIRST, 0, PAGE);
	xi_set_entry((pte_t *)FIRST, (u64)frames[3] | P_URW);
	xi_set_entry((pte_t *)FIRST + 4, (u64)common | P_UR);
	xi_link(s, PRIVATE, 2, table);
	xi_ok(xi_reaches(PRIVATE, frames[3]) && xi_reaches(PRIVATE + 4 * PAGE, common), "data became a table");
	xi_checkpoint("data became a table");
	xi_set_entry((pte_t *)FIRST + 5, (u64)common | P_RW);
	xi_ok(xi_reaches(PRIVATE + 5 * PAGE, common), "which is edited through its data mapping");
	xi_unmap(s, FIRST);
	xi_invlpg(FIRST);
	xi_checkpoint("the table's data mapping removed");
}

/* Frames of dead spaces come back in other roles: a root as a level-1 table, a level-1 table as a root, a root as
 * data. The kernel's part of a root is copied, so that the new space runs. */
static void destroyed_and_used_again(void)
{
	uptr old_root = spaces[8].root, old_table = xi_linked(spaces[9], PRIVATE, 2), data = spaces[10].root;
	space_t reborn;
	u32 value;

	for (unsigned i = 8; i <= 10; i++) {
		xi_space_load(spaces[i]);   /* each was in use a moment ago */
		xi_reaches(PRIVATE, frames[i]);
	}
	xi_space_load(spaces[0]);
	xi_unlink(spaces[9], PRIVATE, 2);
	xi_unlink(spaces[8], PRIVATE, 2);
	xi_unlink(spaces[10], PRIVATE, 2);

	memset((void *)old_root, 0, PAGE);
	xi_set_entry((pte_t *)old_root + 2, (u64)frames[8] | P_URW);
	xi_link(spaces[0], FIRST + SPAN, 2, old_root);
	xi_ok(xi_reaches(FIRST + SPAN + 2 * PAGE, frames[8]), "a dead root serves as a level-1 table");

	memset((void *)data, 0x5b, PAGE);
	xi_map(spaces[0], FIRST + 3 * PAGE, data, P_URW);
	xi_ok(xi_try_user_store(FIRST + 3 * PAGE + 16, 77) == 0 && *xi_word(data + 16) == 77,
	      "a dead root serves as data");
	xi_checkpoint("frames of dead spaces used again");

	memcpy((void *)old_table, (void *)xi_kernel_space.root, PAGE);
	reborn.root = old_table;
	xi_link(reborn, XI_ARENA2, 2, shared_table);
	xi_space_load(reborn);
	xi_ok(xi_reaches(XI_ARENA2, common), "a dead level-1 table serves as a root");
	xi_ok(xi_faulted(xi_try_load(FIRST + 3 * PAGE, &value), 0), "and the new space has only what it was given");
	xi_checkpoint("a dead table became a root");
	xi_ok(visit(0, 1, 3) && visit(5, 1, 3), "the spaces that live are as they were");
	xi_space_load(xi_kernel_space);
}

/* Spaces that share more than a level-1 table: everything below one entry of the root. */
static void shared_below_the_root(void)
{
#ifndef XI_NOPAE
	uptr frame = xi_data_frame();
	unsigned right = 0;

	xi_map(spaces[0], XI_ARENA2, common, P_URW);
	for (unsigned i = 1; i < 6; i++)
		xi_link(spaces[i], XI_ARENA2, XI_LEVELS, xi_linked(spaces[0], XI_ARENA2, XI_LEVELS));
	xi_space_load(spaces[1]);
	xi_map(spaces[1], XI_ARENA2 + SPAN + PAGE, frame, P_UR); /* a new table, under the shared directory */
	for (unsigned i = 0; i < 6; i++) {
		xi_space_load(spaces[i]);
		right += (unsigned)(xi_reaches(XI_ARENA2, common) && xi_reaches(XI_ARENA2 + SPAN + PAGE, frame));
	}
	xi_ok(right == 6, "a directory shared by six spaces");
	xi_checkpoint("a directory shared by six spaces");
#endif
}

void scenario(void)
{
	make_spaces();
	orders();
	shared_edits();
	global_pages();
	table_becomes_data();
	shared_below_the_root();
	destroyed_and_used_again();
}
