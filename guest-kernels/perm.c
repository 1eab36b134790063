/* Rights: every combination of R/W, U/S and NX in the leaf and in the level-2 entry above it, each upper level
 * restricted in turn, under CR0.WP, CR4.SMEP, CR4.SMAP, EFER.NXE and protection keys; all accesses, both rings.
 *
 * What each access must give is worked out here from the rights alone, as SDM vol. 3A, 4.6 has them.
 */
#include "xi_guest.h"

#define CR0_WP 0x10000ul
#define CR4_SMEP 0x100000ul
#define CR4_SMAP 0x200000ul
#define CR4_PKE 0x400000ul
#define EFER_NXE 0x800ull
#define KEY_SHIFT 59
#define RIGHTS 8 /* combinations of W, U, NX: bits 0, 1, 2 of an index */
#define KEYS 4
#define MAX_PAGES 160

/* The upper levels with rights of their own; PAE's top entries have none. */
#ifdef XI_PAE
#define TOP_LEVEL 2
#else
#define TOP_LEVEL XI_LEVELS
#endif

#define F_P 1u
#define F_W 2u
#define F_U 4u
#define F_RSVD 8u
#define F_I 0x10u
#define F_PK 0x20u
#define FAULT 0x80000000u
#define NO_FAULT 0u

struct page { /* one page, with the rights of all levels combined */
	uptr va;
	int write, user, no_execute;
	unsigned key;
};

struct phase {
	const char *name;
	uptr cr0, cr4; /* of WP, and of SMEP, SMAP, PKE */
	u64 efer;      /* of NXE */
	u32 pkru;      /* AD and WD, two bits a key */
};

static const struct phase phases[] = {
	{ "WP", CR0_WP, 0, EFER_NXE, 0 },
	{ "no WP", 0, 0, EFER_NXE, 0 },
	{ "WP SMEP", CR0_WP, CR4_SMEP, EFER_NXE, 0 },
	{ "WP SMAP", CR0_WP, CR4_SMAP, EFER_NXE, 0 },
	{ "WP SMEP SMAP", CR0_WP, CR4_SMEP | CR4_SMAP, EFER_NXE, 0 },
	{ "SMEP SMAP, no WP", 0, CR4_SMEP | CR4_SMAP, EFER_NXE, 0 },
	{ "WP, no NXE", CR0_WP, 0, 0, 0 },
	{ "WP SMEP, no NXE", CR0_WP, CR4_SMEP, 0, 0 },
	/* Key 1: no access; key 2: no writes; key 3: neither; then 1 and 2 the other way round. */
	{ "WP, keys", CR0_WP, CR4_PKE, EFER_NXE, 0xe4 },
	{ "keys, no WP", 0, CR4_PKE, EFER_NXE, 0xe4 },
	{ "WP SMEP, other keys", CR0_WP, CR4_PKE | CR4_SMEP, EFER_NXE, 0x18 },
	{ "WP again", CR0_WP, 0, EFER_NXE, 0 },
};
#define PHASES (sizeof(phases) / sizeof(*phases))

const unsigned xi_tests = PHASES;

static struct page pages[MAX_PAGES];
static unsigned page_count;
static space_t space;

static u64 rights_bits(unsigned rights)
{
	return (rights & 1 ? P_W : 0) | (rights & 2 ? P_U : 0) | (rights & 4 ? P_NX : 0);
}

static int usable(unsigned rights)
{
	return !(rights & 4) || xi_has_nx;
}

/* Maps a page whose entry at `level` has rights `upper`, its leaf `leaf`, every other entry all rights. */
static void add(uptr va, int level, unsigned upper, unsigned leaf, unsigned key)
{
	struct page *page = &pages[page_count++];
	u64 keys = (u64)key << KEY_SHIFT;

	if (page_count > MAX_PAGES)
		xi_exit(XI_EXIT_FAIL);
	xi_map(space, va, xi_data_frame(), P_P | rights_bits(leaf) | (XI_LEVELS > 3 ? keys : 0));
	if (level > 1) {
		pte_t *entry = xi_entry(space, va, level, 0);

		xi_set_entry(entry, (*entry & ~(u64)(P_W | P_U)) | rights_bits(upper));
	}
	*page = (struct page){ va, leaf & upper & 1, (leaf & upper & 2) >> 1, ((leaf | upper) & 4) >> 2, key };
}

/* The lowest address at or after `va` under a fresh entry of `level`. */
static uptr next_entry(uptr va, int level)
{
	unsigned shift = 12 + XI_INDEX_BITS * (unsigned)(level - 1);

	return ((va >> shift) + 1) << shift;
}

static void map_all(void)
{
	uptr va = XI_ARENA;

	for (unsigned upper = 0; upper < RIGHTS; upper++) {
		if (!usable(upper))
			continue;
		for (unsigned leaf = 0; leaf < RIGHTS; leaf++, va += PAGE)
			if (usable(leaf))
				add(va, 2, upper, leaf, 0);
		va = next_entry(va, 2);
	}
	for (unsigned key = 1; key < KEYS; key++)
		for (unsigned leaf = 0; leaf < RIGHTS; leaf++, va += PAGE)
			if (usable(leaf))
				add(va, 1, 3, leaf, key);
	/* Each level from 3 up: without W, without U, with NX. */
	for (int level = 3; level <= TOP_LEVEL; level++) {
		static const unsigned restricted[] = { 2, 1, 7 };

		for (unsigned i = 0; i < 3; i++) {
			va = next_entry(va, level);
			if (!usable(restricted[i]))
				continue;
			add(va, level, restricted[i], 3, 0);
			add(va + PAGE, level, restricted[i], 2, 0);
		}
	}
}

/* The fault that `access` must give, or NO_FAULT. */
static u32 expected(const struct phase *phase, const struct page *page, unsigned access)
{
	int user = access & XI_USER, kind = access & 3;
	int store = kind == XI_STORE, fetch = kind == XI_FETCH;
	int nxe = xi_has_nx && phase->efer;
	int tells_fetch = nxe || (phase->cr4 & CR4_SMEP);
	u32 code = (store ? F_W : 0) | (user ? F_U : 0) | (fetch && tells_fetch ? F_I : 0);
	unsigned key = phase->pkru >> (2 * page->key);

	if (page->no_execute && !nxe)
		return FAULT | F_RSVD | code; /* P apart: QEMU 7.2 leaves it clear */
	code |= FAULT | F_P;
	/* PK is reported whenever the key refuses, also where something else does (SDM vol. 3A, 4.7). */
	if (page->user && !fetch && (phase->cr4 & CR4_PKE) &&
	    ((key & 1) || (store && (key & 2) && (user || phase->cr0))))
		return code | F_PK;
	if (user && !page->user)
		return code;
	if (fetch)
		return page->no_execute || (!user && page->user && (phase->cr4 & CR4_SMEP)) ? code : NO_FAULT;
	if (!user && page->user && (phase->cr4 & CR4_SMAP))
		return code;
	return store && !page->write && (user || phase->cr0) ? code : NO_FAULT;
}

static u32 do_access(uptr va, unsigned access)
{
	switch (access) {
	case XI_LOAD:
		return xi_try_load(va + XI_TAG_OFFSET + 8, 0);
	case XI_STORE:
		return xi_try_store(va + XI_TAG_OFFSET + 12, 0x9e4u);
	case XI_FETCH:
		return xi_try_fetch(va + XI_TAG_OFFSET);
	case XI_USER | XI_LOAD:
		return xi_try_user_load(va + XI_TAG_OFFSET + 8, 0);
	case XI_USER | XI_STORE:
		return xi_try_user_store(va + XI_TAG_OFFSET + 12, 0x9e4u);
	default:
		return xi_try_user_fetch(va + XI_TAG_OFFSET);
	}
}

static void set_controls(const struct phase *phase)
{
	uptr cr4 = xi_cr4() & ~(CR4_SMEP | CR4_SMAP | CR4_PKE);

	xi_set_cr0((xi_cr0() & ~CR0_WP) | phase->cr0);
	xi_set_cr4(cr4 | phase->cr4);
	if (xi_has_nx)
		xi_set_efer((xi_efer() & ~EFER_NXE) | phase->efer);
	xi_wrpkru(phase->pkru);
	/* Changes of CR0.WP and EFER.NXE flush nothing by themselves (SDM vol. 3A, 4.10.4.1). */
	xi_flush();
}

static int possible(const struct phase *phase)
{
	return (xi_has_smep || !(phase->cr4 & CR4_SMEP)) && (xi_has_smap || !(phase->cr4 & CR4_SMAP)) &&
	       (xi_has_pku || !(phase->cr4 & CR4_PKE)) && (xi_has_nx || phase->efer);
}

static void run(const struct phase *phase)
{
	static const unsigned accesses[] = { 0, 1, 2, 4, 5, 6 };
	unsigned wrong = 0, done = 0;

	set_controls(phase);
	xi_checkpoint(phase->name);
	for (unsigned i = 0; i < page_count; i++) {
		for (unsigned j = 0; j < sizeof(accesses) / sizeof(*accesses); j++, done++) {
			u32 want = expected(phase, &pages[i], accesses[j]);
			u32 got = do_access(pages[i].va, accesses[j]);

			if (want & got & F_RSVD)
				got &= ~F_P;
			if (got != want && !wrong++)
				xi_printf("# %s: access %u at %p gave %x, not %x\n", phase->name, accesses[j],
					  pages[i].va, got, want);
		}
	}
	xi_ok(!wrong, "%s: %u accesses, %u wrong", phase->name, done, wrong);
}

void scenario(void)
{
	space = xi_space_new();
	xi_space_load(space);
	map_all();
	for (unsigned i = 0; i < PHASES; i++) {
		if (possible(&phases[i]))
			run(&phases[i]);
		else
			xi_ok(1, "%s # SKIP not in this mode or processor", phases[i].name);
	}
	xi_space_load(xi_kernel_space);
}
