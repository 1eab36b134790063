/* Accessed and dirty bits at every level: cleared, then set by one access from either ring, and by nothing else.
 *
 * The harness's own accesses at a checkpoint set bits too: each of our checks clears them first and reads them
 * before the next checkpoint.
 */
#include "xi_guest.h"

#define FULL (P_P | P_W | P_U)
#define RESERVED_FOR_LARGE 0x00400000ul /* 4 MiB: one large page of any 32-bit mode, two of the others */

/* PAE's top-level entries have no accessed bit (SDM vol. 3A, table 4-8). */
#ifdef XI_PAE
#define TOP_LEVEL 2
#else
#define TOP_LEVEL XI_LEVELS
#endif

enum target { LEAF_4K, LEAF_LARGE, LEAF_1G, TARGETS };
static const char *const target_name[] = { "4 KiB page", "large page", "1 GiB page" };

enum kind { LOAD, STORE, FETCH, USER_LOAD, USER_STORE, USER_FETCH, KINDS };
static const char *const kind_name[] = { "load", "store", "fetch", "ring 3 load", "ring 3 store", "ring 3 fetch" };

#define PER_TARGET (KINDS + 4)
#if XI_LEVELS > 3
#define LARGE_TARGETS 2
#else
#define LARGE_TARGETS 1
#endif
const unsigned xi_tests = (1 + LARGE_TARGETS) * PER_TARGET;

static space_t space;

static u32 do_access(uptr va, enum kind kind)
{
	u32 value;

	switch (kind) {
	case LOAD:
		return xi_try_load(va + XI_TAG_OFFSET + 8, &value);
	case STORE:
		return xi_try_store(va + XI_TAG_OFFSET + 12, 0xadu << 1);
	case FETCH:
		return xi_try_fetch(va + XI_TAG_OFFSET);
	case USER_LOAD:
		return xi_try_user_load(va + XI_TAG_OFFSET + 8, &value);
	case USER_STORE:
		return xi_try_user_store(va + XI_TAG_OFFSET + 12, 0xadu << 1);
	default:
		return xi_try_user_fetch(va + XI_TAG_OFFSET);
	}
}

static int is_store(enum kind kind)
{
	return kind == STORE || kind == USER_STORE;
}

static u64 read_entry(uptr va, int level)
{
	return *(volatile pte_t *)xi_entry(space, va, level, 0);
}

/* Clears A and D in every entry on the way to va, and has the TLB forget them. */
static void clear(uptr va, int leaf)
{
	for (int level = leaf; level <= TOP_LEVEL; level++)
		xi_set_entry(xi_entry(space, va, level, 0), read_entry(va, level) & ~(P_A | P_D));
	xi_flush();
}

/* Whether every entry on the way has A as `accessed`, the leaf D as `dirty`, and no other entry D. */
static int bits_are(uptr va, int leaf, int accessed, int dirty)
{
	int right = 1;

	for (int level = leaf; level <= TOP_LEVEL; level++) {
		u64 entry = read_entry(va, level);

		right &= !!(entry & P_A) == accessed;
		right &= !!(entry & P_D) == (dirty && level == leaf);
	}
	return right;
}

static void run(enum target target, uptr va, int leaf, int with_checkpoints)
{
	const char *name = target_name[target];
	pte_t *entry = xi_entry(space, va, leaf, 0);
	u64 size = leaf > 1 ? P_PS : 0;
	u64 frame = *entry & ~0xfffull;
	u64 refused = target == LEAF_1G ? P_D : P_A | P_D;

	for (enum kind kind = 0; kind < KINDS; kind++) {
		clear(va, leaf);
		if (kind == LOAD && with_checkpoints) {
			xi_checkpoint("A and D clear");
			clear(va, leaf);
		}
		xi_ok(!do_access(va, kind) && bits_are(va, leaf, 1, is_store(kind)), "%s: A%s after a %s", name,
		      is_store(kind) ? " and D" : " alone", kind_name[kind]);
		if (with_checkpoints) {
			clear(va, leaf);
			do_access(va, kind);
			xi_checkpoint(kind_name[kind]);
		}
	}

	clear(va, leaf);
	do_access(va, LOAD);
	do_access(va, STORE);
	xi_ok(bits_are(va, leaf, 1, 1), "%s: a store through an entry that the TLB holds clean sets D", name);

	clear(va, leaf);
	xi_ok(bits_are(va, leaf, 0, 0), "%s: nothing is set by itself", name);

	/* What may not be done leaves the leaf alone. Only of a 1 GiB page QEMU 7.2 sets A before it looks at the
	 * rights; the manual leaves that open (SDM vol. 3A, 4.8). */
	xi_set_entry(entry, frame | size | P_P | P_U);
	xi_flush();
	xi_ok(do_access(va, USER_STORE) == 0x80000007u && !(read_entry(va, leaf) & refused),
	      "%s: a refused store does not mark the leaf", name);
	if (with_checkpoints)
		xi_checkpoint("read-only, A and D clear");
	xi_set_entry(entry, frame | size | FULL | P_A | P_D);
	xi_flush();
	do_access(va, LOAD);
	xi_ok(bits_are(va, leaf, 1, 1), "%s: bits that are set stay set", name);
	if (with_checkpoints)
		xi_checkpoint("A and D set beforehand");
}

/* A checkpoint while upper levels lack A and the leaf has it, then the other way round. */
static void run_partial(uptr va)
{
	for (int odd = 0; odd < 2; odd++) {
		for (int level = 1; level <= TOP_LEVEL; level++)
			if (level % 2 == odd)
				xi_set_entry(xi_entry(space, va, level, 0), read_entry(va, level) & ~P_A);
		xi_flush();
		xi_checkpoint(odd ? "A clear at odd levels" : "A clear at even levels");
	}
}

void scenario(void)
{
	uptr large = XI_ARENA2;

	space = xi_space_new();
	xi_space_load(space);
	xi_map(space, XI_ARENA, xi_data_frame(), FULL);
	run(LEAF_4K, XI_ARENA, 1, 1);
	run_partial(XI_ARENA);

	xi_map_large(space, large, xi_frames(RESERVED_FOR_LARGE / PAGE, RESERVED_FOR_LARGE), FULL, 2);
	run(LEAF_LARGE, large, 2, 1);
#if XI_LEVELS > 3
	/* Most of it lies past the end of RAM: too wide for a checkpoint's idea of a page, but the bits are there.
	 * Frame 0 is the first of RAM and tagged like any other. */
	if (xi_has_1g) {
		large = XI_ARENA + (1ul << 30);
		xi_map_large(space, large, 0, FULL, 3);
		run(LEAF_1G, large, 3, 0);
		xi_set_entry(xi_entry(space, large, 3, 0), 0);
		xi_flush();
	} else {
		for (unsigned i = 0; i < PER_TARGET; i++)
			xi_ok(1, "1 GiB page # SKIP not on this processor");
	}
#endif
	xi_checkpoint("a 4 KiB and a large page, all used");
	xi_space_load(xi_kernel_space);
}
