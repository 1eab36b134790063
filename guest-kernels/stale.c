/* Entries changed without a flush, one change at a time, then flushed: by INVLPG of that page, by a CR3 load, or,
 * for global pages, by a toggle of CR4.PGE. The page is used before each change, so that the TLB holds it.
 *
 * Each change has a page and a table of its own, and its page is the only one mapped, so that one INVLPG makes
 * everything coherent, whatever level was changed. A shadow that ignores INVLPG, or does not resync at a CR3
 * load, still shows the old entry at the coherent checkpoint that follows.
 */
#include "xi_guest.h"

#define MEMORY_FLAGS (P_P | P_W | P_U)
#define TABLE_SPAN 0x00400000ul /* at least what one level-1 table covers, in every mode */
#define FAULT 0x80000000u

/* PAE's top-level entries are loaded with CR3 only: they are no matter of INVLPG. */
#ifdef XI_PAE
#define TOP_LEVEL 2
#else
#define TOP_LEVEL XI_LEVELS
#endif

enum access { LOAD, STORE, FETCH };

/* What is done to the entry of `level`: bits cleared and set, another frame; and which ring 3 access then
 * answers what. The fault's I bit is left out: `nopae` does not report it. */
struct change {
	const char *name;
	int level;
	u64 clear, set;
	int remap;
	enum access access;
	u32 result;
};

static const struct change changes[] = {
	{ "unmap", 1, ~0ull, 0, 0, LOAD, FAULT | 4 },
	{ "remap", 1, 0, 0, 1, LOAD, 0 },
	{ "tighten W", 1, P_W, 0, 0, STORE, FAULT | 7 },
	{ "tighten U", 1, P_U, 0, 0, LOAD, FAULT | 5 },
	{ "set NX", 1, 0, P_NX, 0, FETCH, FAULT | 5 },
	{ "tighten W at level 2", 2, P_W, 0, 0, STORE, FAULT | 7 },
	{ "unlink at level 2", 2, ~0ull, 0, 0, LOAD, FAULT | 4 },
#if TOP_LEVEL > 2
	{ "unlink at level 3", 3, ~0ull, 0, 0, LOAD, FAULT | 4 },
	{ "unlink at level 4", 4, ~0ull, 0, 0, LOAD, FAULT | 4 },
#endif
#if TOP_LEVEL > 4
	{ "unlink at level 5", 5, ~0ull, 0, 0, LOAD, FAULT | 4 },
#endif
};
#define CHANGES (sizeof(changes) / sizeof(*changes))

enum flush { BY_INVLPG, BY_CR3, FLUSHES };
static const char *const flush_name[] = { "INVLPG", "CR3 load" };

/* Two lines for each change and flush; three for global pages, one for wider rights. */
const unsigned xi_tests = 2 * FLUSHES * CHANGES + 4;

static space_t space;
static uptr frame[2];

static u32 do_access(uptr va, enum access access, u32 *value)
{
	u32 fault;

	if (access == LOAD)
		return xi_try_user_load(va + XI_TAG_OFFSET + 8, value);
	if (access == STORE)
		return xi_try_user_store(va + XI_TAG_OFFSET + 12, 0x57a1e000u);
	fault = xi_try_user_fetch(va + XI_TAG_OFFSET);
	return fault & FAULT ? fault & ~0x10u : fault;
}

/* Whether the page is usable in every way and shows `which` frame; the TLB holds it afterwards. */
static int touch(uptr va, unsigned which)
{
	u32 value = 0;

	return !xi_try_store(va + XI_TAG_OFFSET + 12, 2) && !xi_try_user_store(va + XI_TAG_OFFSET + 12, 4) &&
	       !xi_try_user_fetch(va + XI_TAG_OFFSET) && !xi_try_user_load(va + XI_TAG_OFFSET + 8, &value) &&
	       value == xi_tag(frame[which] / PAGE);
}

static void flush(enum flush how, uptr va)
{
	if (how == BY_INVLPG)
		xi_invlpg(va);
	else
		xi_flush();
}

/* One change from a usable page to its new state, and away with the page. */
static void run_change(const struct change *change, enum flush how, uptr va)
{
	pte_t *entry;
	u64 before, after;
	u32 value = 0, result;

	xi_map(space, va, frame[0], MEMORY_FLAGS | P_A | P_D);
	entry = xi_entry(space, va, change->level, 0);
	before = *entry;
	after = (before & ~change->clear) | change->set;
	if (change->remap)
		after = frame[1] | MEMORY_FLAGS | P_A | P_D;
	xi_ok(touch(va, 0), "%s by %s: used before", change->name, flush_name[how]);
	/* The state that the stale checkpoint may still show. */
	xi_checkpoint("used");

	xi_set_entry(entry, after);
	xi_checkpoint_stale(change->name);
	/* Whatever the checkpoint's accesses have done, the flush is due. */
	flush(how, va);
	xi_checkpoint(flush_name[how]);
	result = do_access(va, change->access, &value);
	xi_ok(result == change->result && (!change->remap || value == xi_tag(frame[1] / PAGE)),
	      "%s by %s: seen after", change->name, flush_name[how]);

	xi_set_entry(entry, before);
	xi_unmap(space, va);
	flush(how, va);
}

/* A CR3 load spares global pages; the toggle of PGE does not. */
static void run_global(uptr va)
{
	xi_map(space, va, frame[0], MEMORY_FLAGS | P_A | P_D | P_G);
	xi_ok(touch(va, 0), "global page: used before");
	xi_checkpoint("global page used");
	xi_map(space, va, frame[1], MEMORY_FLAGS | P_A | P_D | P_G);
	xi_flush();
	xi_checkpoint_stale("global page remapped, CR3 load only");
	xi_flush_global();
	xi_checkpoint("CR4.PGE toggled");
	xi_ok(touch(va, 1), "global page: remapped after the toggle");
	xi_unmap(space, va);
	xi_flush_global();
	xi_checkpoint("global page unmapped");
	xi_ok(xi_try_load(va, 0) == FAULT, "global page: gone");
}

/* Wider rights need no flush: the first access that the old entry would refuse walks again. */
static void run_wider(uptr va)
{
	u64 narrow = P_P | P_A | P_D;

	if (xi_has_nx)
		narrow |= P_NX;
	xi_map(space, va, frame[0], narrow);
	xi_try_load(va, 0);
	xi_checkpoint("narrow rights");
	xi_map(space, va, frame[0], MEMORY_FLAGS | P_A | P_D);
	xi_checkpoint("wider rights, no flush");
	xi_ok(touch(va, 0), "wider rights are seen without a flush");
	xi_unmap(space, va);
	xi_invlpg(va);
}

void scenario(void)
{
	uptr va = XI_ARENA;

	space = xi_space_new();
	frame[0] = xi_data_frame();
	frame[1] = xi_data_frame();
	xi_space_load(space);
	for (enum flush how = 0; how < FLUSHES; how++) {
		for (unsigned i = 0; i < CHANGES; i++, va += TABLE_SPAN + PAGE) {
			if ((changes[i].set & P_NX) && !xi_has_nx) {
				xi_ok(1, "%s # SKIP no NX", changes[i].name);
				xi_ok(1, "%s # SKIP no NX", changes[i].name);
				continue;
			}
			run_change(&changes[i], how, va);
		}
	}
	if (xi_has_pge)
		run_global(va);
	else
		for (unsigned i = 0; i < 3; i++)
			xi_ok(1, "global page # SKIP no PGE");
	run_wider(va + TABLE_SPAN);
	xi_space_load(xi_kernel_space);
}
