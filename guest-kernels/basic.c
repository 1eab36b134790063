/* Map, unmap and remap: what every kernel does all day, flushed as the architecture requires. */
#include "xi_guest.h"

#define PAGES 8
#define SECOND_TABLE 0x00800000ul /* far enough for another level-1 table in every mode */

const unsigned xi_tests = 9;

static uptr frame[PAGES];

static uptr page(unsigned i)
{
	static const uptr base[] = { XI_ARENA, XI_ARENA + SECOND_TABLE, XI_ARENA2, XI_ARENA2 + SECOND_TABLE };

	return base[i % 4] + (i / 4) * PAGE;
}

/* How many of the pages show the frame that `expected` says (0: none), by its tag. */
static unsigned count_right(const uptr *expected)
{
	unsigned right = 0;

	for (unsigned i = 0; i < PAGES; i++) {
		u32 value = 0;
		u32 fault = xi_try_load(page(i) + XI_TAG_OFFSET + 8, &value);

		right += expected[i] ? !fault && value == xi_tag(expected[i] / PAGE) : fault == 0x80000000u;
	}
	return right;
}

void scenario(void)
{
	space_t s = xi_space_new();
	uptr now[PAGES];

	for (unsigned i = 0; i < PAGES; i++) {
		frame[i] = xi_data_frame();
		now[i] = 0;
	}
	xi_checkpoint("kernel space");
	xi_space_load(s);
	xi_checkpoint("new space, arenas empty");
	xi_ok(count_right(now) == PAGES, "nothing is mapped in the arenas");

	for (unsigned i = 0; i < PAGES; i++) {
		xi_map(s, page(i), frame[i], P_P | P_W | P_U);
		now[i] = frame[i];
	}
	xi_checkpoint("mapped, no flush needed");
	xi_ok(count_right(now) == PAGES, "a new mapping is seen without a flush");

	for (unsigned i = 0; i < PAGES; i += 2) {
		xi_unmap(s, page(i));
		xi_invlpg(page(i));
		now[i] = 0;
	}
	xi_checkpoint("every other page unmapped");
	xi_ok(count_right(now) == PAGES, "unmapped pages are gone, the others stay");

	for (unsigned i = 0; i < PAGES; i++) {
		now[i] = frame[PAGES - 1 - i];
		xi_map(s, page(i), now[i], P_P | P_W | P_U);
		xi_invlpg(page(i));
	}
	xi_checkpoint("remapped in reverse");
	xi_ok(count_right(now) == PAGES, "every page shows its new frame");

	for (unsigned i = 0; i < PAGES; i++)
		xi_map(s, page(i), now[i], P_P | P_U | P_A);
	xi_flush();
	xi_checkpoint("read-only by a CR3 load");
	xi_ok(xi_try_store(page(1), 1) == 0x80000003u, "a store to a read-only page faults");
	xi_ok(xi_try_user_store(page(2), 1) == 0x80000007u, "and from ring 3");
	xi_ok(count_right(now) == PAGES, "it can still be read");

	for (unsigned i = 0; i < PAGES; i += 2) {
		xi_map(s, page(i), now[i], P_P | P_W);
		xi_invlpg(page(i));
	}
	xi_checkpoint("even pages supervisor and writable");
	xi_ok(xi_try_user_load(page(0), 0) == 0x80000005u, "ring 3 cannot read a supervisor page");

	for (unsigned i = 0; i < PAGES; i++)
		xi_unmap(s, page(i));
	xi_flush();
	for (unsigned i = 0; i < PAGES; i++)
		now[i] = 0;
	xi_checkpoint("all unmapped by a CR3 load");
	xi_ok(count_right(now) == PAGES, "the arenas are empty again");
	xi_space_load(xi_kernel_space);
}
