/* hostile_past_ram: entries of every level that point past the end of RAM: leaves, where accesses go nowhere, and
 * tables, where the walk itself reads what is not there.
 */
#include "extra.h"

const unsigned xi_tests = 8u + 2u * (XI_LEVELS == 3 ? 1 : XI_LEVELS - 1);

#define SPAN (xi_span(2))

static space_t s;

/* Physical addresses that no device claims on a PC of this much memory; the last one needs more than 32 bits. */
static const u64 nowhere[] = {
	0x08000000ull, 0x7ffff000ull, 0xb0000000ull,
#ifndef XI_NOPAE
	0xfffffff000ull,
#endif
};
#define NOWHERES (sizeof(nowhere) / sizeof(nowhere[0]))

static void leaves(void)
{
	unsigned completed = 0;
	u32 value;

	xi_map(s, XI_ARENA, xi_ram_bytes - PAGE, P_URW);
	xi_map(s, XI_ARENA + PAGE, xi_ram_bytes, P_URW);
	for (unsigned i = 0; i < NOWHERES; i++)
		xi_map(s, XI_ARENA + (2 + i) * PAGE, nowhere[i], i & 1 ? P_UR : P_RW);
	xi_flush();
	xi_ok(xi_reaches(XI_ARENA, xi_ram_bytes - PAGE), "the last frame of RAM");
	for (unsigned i = 0; i < 1 + NOWHERES; i++)
		completed += xi_try_load(XI_ARENA + (1 + i) * PAGE, &value) == 0;
	xi_ok(completed == 1 + NOWHERES, "loads past the end of RAM raise no fault");
	xi_ok(xi_try_store(XI_ARENA + PAGE, 1) == 0, "nor does a store");
	xi_ok(xi_faulted(xi_try_store(XI_ARENA + 3 * PAGE, 1), PF_P | PF_W), "but rights are checked as ever");
	xi_checkpoint("pages past the end of RAM");

	xi_map_large(s, XI_ARENA + 4 * SPAN, xi_ram_bytes, P_URW, 2);
	xi_map_large(s, XI_ARENA + 5 * SPAN, nowhere[0] & ~(u64)(SPAN - 1), P_RW, 2);
	xi_ok(xi_try_load(XI_ARENA + 4 * SPAN + 7 * PAGE, &value) == 0 && xi_try_load(XI_ARENA + 5 * SPAN, &value) == 0,
	      "large pages past the end of RAM");
	xi_checkpoint("large pages past the end of RAM");
}

/* `level`: of the entry that points past RAM. Each has a region of its own, so that all stay to the end. The processor
 * finds nothing present there, or all ones: a fault either way. */
static void tables(void)
{
	for (int level = 2; level <= XI_LEVELS; level++) {
		uptr va = XI_ARENA2 + 2 * xi_span(level);
		u32 value;

#ifdef XI_PAE
		if (level == XI_LEVELS)
			continue; /* a directory pointer is checked when CR3 is loaded, and all four are in use */
#endif
		xi_set_entry(xi_entry(s, va, level, 1), nowhere[0] | xi_link_flags(level));
		xi_flush();
		xi_ok(xi_try_load(va, &value) & XI_PF,
		      "a level-%u table past the end of RAM maps nothing", (u32)level - 1);
		xi_set_entry(xi_entry(s, va + xi_span(level), level, 1), nowhere[NOWHERES - 1] | xi_link_flags(level));
		xi_flush();
		xi_ok(xi_try_load(va + xi_span(level), &value) & XI_PF, "the same, far past it");
		xi_checkpoint("a table past the end of RAM");
	}
}

void scenario(void)
{
	uptr frame = xi_data_frame();

	s = xi_space_new();
	xi_space_load(s);
	leaves();
	tables();
	for (uptr i = 0; i < NOWHERES + 2; i++)
		xi_unmap(s, XI_ARENA + i * PAGE);
	xi_unlink(s, XI_ARENA + 4 * SPAN, 2);
	xi_unlink(s, XI_ARENA + 5 * SPAN, 2);
	xi_flush();
	xi_ok(xi_try_load(XI_ARENA + PAGE, 0) & XI_PF, "unmapped again");
	xi_map(s, XI_ARENA + 4 * SPAN, frame, P_URW);
	xi_ok(xi_reaches(XI_ARENA + 4 * SPAN, frame), "a real table in the place of a large page past RAM");
	xi_checkpoint("entries past RAM removed");
	xi_space_load(xi_kernel_space);
	xi_ok(xi_faulted(xi_try_load(XI_ARENA, 0), 0), "the kernel's space never had any of it");
}
