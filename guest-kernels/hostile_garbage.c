/* hostile_garbage: page tables full of pseudo-random words, from the harness's seed, linked at every level of an arena.
 * The guest walks them in software and holds the processor's answers against that; the kernel's own mappings stay
 * intact.
 *
 * Words come in two kinds: fully random ones, most of which point past RAM or have reserved bits, and ones that
 * lead to a few frames of a block of our own, some of which hold more garbage. None leads to RAM outside the block: a
 * table that lay in the kernel's stack or in the mailbox would change under everybody's hands.
 */
#include "extra.h"

#define ROUNDS 2u
#define LINK_LEVELS (XI_LEVELS == 3 ? 1u : XI_LEVELS - 1u) /* PAE's directory pointers are checked at the CR3 load */
const unsigned xi_tests = 3u * ROUNDS * LINK_LEVELS + 5u;

#define SPAN (xi_span(2))
#define TARGETS 12u      /* frames of the block that garbage leads to */
#define DEEPER 4u        /* of them hold garbage too: a few words, or the number of paths would explode */
#define DEEPER_WORDS 5u
#define SAMPLES 400u
#define PLACES 40u       /* entries of a directory with garbage in place */

enum outcome { ABSENT, RESERVED, MAPPED, UNKNOWN };

static space_t s;
static uptr block;       /* SPAN bytes, aligned: large entries may lead to it as a whole */
static uptr witness;     /* a frame outside it */
static u32 random_state;

/* Where a table of garbage hangs whose entry is at `level`. */
static uptr linked_at(int level) { return XI_ARENA2 + 2 * xi_span(level); }

static u64 random_word(void)
{
	u64 high = xi_random(&random_state);

	return high << 32 | xi_random(&random_state);
}

/* A word that leads to one of the block's frames. PS is reserved in most places: rarer than chance, so that walks get
 * further down. */
static u64 near_word(void)
{
	u64 flags = random_word() & 0xfff;

	if (xi_random(&random_state) & 0x600)
		flags &= ~P_PS;
	return flags | (block + xi_random(&random_state) % TARGETS * PAGE);
}

/* A word that leads nowhere in RAM but to the block, at whatever level it is read. */
static u64 garbage_word(void)
{
	u64 word = random_word(), frame, limit = (u64)xi_ram_bytes;

	if (xi_random(&random_state) & 0x100)
		return near_word();
#ifdef XI_NOPAE
	word = (u32)word;
#endif
	/* Large entries ignore low frame bits, so that the bits above them decide what they cover. */
	frame = word & XI_FRAME_MASK;
	if (frame < limit || ((word & P_PS) && (frame & 0xffc00000ull) < limit && XI_LEVELS == 2) ||
	    (XI_LEVELS > 3 && (word & P_PS) && (frame & 0x000fffffc0000000ull) == 0))
		word = (word & 0xfff) | block;
	return word;
}

static void fill(uptr table)
{
	for (unsigned i = 0; i < XI_ENTRIES; i++)
		xi_set_entry((pte_t *)table + i, garbage_word());
}

/* New contents for the frames of the block that hold garbage too. */
static void fill_deeper(void)
{
	for (unsigned i = 0; i < DEEPER; i++) {
		pte_t *entries = (pte_t *)(block + (TARGETS - 1 - i) * PAGE);

		memset(entries, 0, PAGE);
		for (unsigned n = 0; n < DEEPER_WORDS; n++)
			xi_set_entry(&entries[xi_random(&random_state) % XI_ENTRIES], near_word() | P_P);
	}
}

/* Bits that must be 0 in a present entry (SDM vol. 3A, tables 4-4 to 4-20), EFER.NXE on where it exists. */
static u64 reserved_bits(int level, int large)
{
#ifdef XI_NOPAE
	(void)level;
	return large ? 1u << 21 : 0;
#else
	u64 bits = 0x000fffffffffffffull & ~((1ull << xi_physical_bits()) - 1);

	if (XI_LEVELS == 3)
		bits |= 0x7ffull << 52;
	if (!xi_has_nx)
		bits |= P_NX;
	if (level > 3 || (level == 3 && !xi_has_1g))
		bits |= P_PS;
	if (large)
		bits |= (xi_span(level) - 1) & ~0x1fffull; /* bit 12 is PAT */
	return bits;
#endif
}

/* What a supervisor load of `va` must find, going down from `table`, which is used at `level`. */
static enum outcome walk(uptr table, uptr va, int level)
{
	for (;; level--) {
		u64 entry = ((volatile pte_t *)table)[xi_index(va, level)];
		int large = (entry & P_PS) && (level == 2 || (level == 3 && xi_has_1g));

		if (!(entry & P_P))
			return ABSENT;
		if (entry & reserved_bits(level, large))
			return RESERVED;
		if (large || level == 1)
			return MAPPED;
		table = (uptr)(entry & XI_FRAME_MASK);
		if (table >= xi_ram_bytes)
			return UNKNOWN; /* what is read there is the machine's affair */
	}
}

/* A present entry of `table` if there is one, searched for from `from` on; else `from`. */
static uptr present_index(uptr table, uptr from)
{
	for (uptr i = 0; i < XI_ENTRIES; i++)
		if (((volatile pte_t *)table)[(from + i) & (XI_ENTRIES - 1)] & P_P)
			return (from + i) & (XI_ENTRIES - 1);
	return from & (XI_ENTRIES - 1);
}

/* An address below the level-`level` entry of `va`, which leads to `table` (0: unknown): every other one follows
 * present entries as far down as there are any in the block, or the deeper garbage would hardly ever be reached. */
static uptr sample(uptr table, uptr va, int level, unsigned i)
{
	for (int at = level - 1; at >= 1; at--) {
		uptr index = at == level - 1 ? i * 7 : xi_random(&random_state);

		if ((i & 1) && table)
			index = present_index(table, index);
		index &= XI_ENTRIES - 1;
		va |= index << xi_shift(at);
		if (table) {
			u64 entry = ((volatile pte_t *)table)[index];

			table = (entry & P_P) ? (uptr)(entry & XI_FRAME_MASK) : 0;
			if (table < block || table >= block + TARGETS * PAGE)
				table = 0;
		}
	}
	return va;
}

/* Loads from `va` and holds the outcome against the walk from `table`; returns whether they agree. */
static int agrees(uptr table, uptr va, int level, unsigned outcomes[4])
{
	enum outcome expected = walk(table, va, level);
	u32 value, got = xi_try_load(va, &value);

	outcomes[expected]++;
	switch (expected) {
	case ABSENT:
		return xi_faulted(got, 0);
	case RESERVED:
		return xi_faulted_reserved(got);
	case MAPPED:
		return got == 0;
	default:
		return 1;
	}
}

static void report(int level, const unsigned outcomes[4], unsigned wrong)
{
	xi_ok(!wrong,
	      "level %u: %u absent, %u reserved, %u mapped, %u beyond RAM; %u wrong", (u32)level, outcomes[ABSENT],
	      outcomes[RESERVED], outcomes[MAPPED], outcomes[UNKNOWN], wrong);
	xi_ok(outcomes[ABSENT] && outcomes[RESERVED] + outcomes[MAPPED],
	      "level %u: the samples tell something", (u32)level);
}

/* Garbage under the level-`level` entry of the second arena. */
static void garbage_at(int level, unsigned round)
{
	uptr va = linked_at(level), table = xi_frame();
	unsigned outcomes[4] = { 0, 0, 0, 0 }, wrong = 0;

	fill(table);
	fill_deeper();
	if (round) /* the second time the garbage replaces what was linked and in use */
		memcpy((void *)xi_linked(s, va, level), (void *)table, PAGE);
	else
		xi_link(s, va, level, table);
	table = xi_linked(s, va, level);
	xi_flush_global(); /* garbage may be global */

	for (unsigned i = 0; i < SAMPLES; i++)
		wrong += !agrees(table, sample(table, va, level, i), level - 1, outcomes);
	report(level, outcomes, wrong);
	xi_checkpoint(round ? "garbage replaced by other garbage" : "a table of garbage linked");
	xi_ok(xi_word(XI_BOOT_INFO)[0] == XI_BOOT_MAGIC && xi_reaches(witness, witness),
	      "level %u: the kernel's own mappings are intact", (u32)level);
}

/* Garbage in place: words in some entries of a directory that is otherwise sound. */
static void garbage_among_sound_entries(void)
{
	uptr directory = (uptr)xi_entry(s, XI_ARENA, 2, 1) & ~(PAGE - 1);
	unsigned outcomes[4] = { 0, 0, 0, 0 }, wrong = 0;

	xi_map(s, XI_ARENA, witness, P_URW);
	for (unsigned i = 1; i <= PLACES; i++)
		xi_set_entry(xi_entry(s, XI_ARENA + i * SPAN, 2, 0), garbage_word());
	xi_flush_global();
	for (unsigned i = 0; i < SAMPLES; i++)
		wrong += !agrees(directory, XI_ARENA + (1 + i % PLACES) * SPAN + i * 13 % XI_ENTRIES * PAGE, 2,
				 outcomes);
	report(2, outcomes, wrong);
	xi_ok(xi_reaches(XI_ARENA, witness), "the sound entry beside the garbage works");
	xi_checkpoint("garbage among sound entries");
	for (unsigned i = 1; i <= PLACES; i++)
		xi_unlink(s, XI_ARENA + i * SPAN, 2);
	xi_flush_global();
}

void scenario(void)
{
	unsigned gone = 0;

	random_state = xi_seed() | 1;
	s = xi_space_new();
	witness = xi_data_frame();
	block = xi_frames(XI_ENTRIES, SPAN);
	xi_space_load(s);
	garbage_among_sound_entries();
	for (unsigned round = 0; round < ROUNDS; round++)
		for (int level = 2; level < 2 + (int)LINK_LEVELS; level++)
			garbage_at(level, round);
	for (int level = 2; level < 2 + (int)LINK_LEVELS; level++)
		xi_unlink(s, linked_at(level), level);
	xi_flush_global();
	for (unsigned i = 0; i < 32; i++)
		for (int level = 2; level < 2 + (int)LINK_LEVELS; level++)
			gone += (unsigned)xi_faulted(xi_try_load(sample(0, linked_at(level), level, i), 0), 0);
	xi_ok(gone == 32 * LINK_LEVELS, "unlinked, the garbage maps nothing");
	xi_map(s, linked_at(2), witness, P_URW);
	xi_ok(xi_reaches(linked_at(2), witness), "a real table in its place");
	xi_checkpoint("garbage removed");
	xi_space_load(xi_kernel_space);
}
