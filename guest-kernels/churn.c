/* churn: the page-table work of a busy kernel, in bursts. Each generation forks (every entry copied, both sides
 * read-only), breaks copy-on-write in child and parent, maps and unmaps a burst of anonymous pages, and lets one of
 * the two exit; its tables and frames are used again by the next. This is the guest that is timed.
 */
#include "extra.h"

#define GENERATIONS 36u
#define CHILD_STORES 16u   /* pages that the child writes after the fork: one INVLPG each */
#define PARENT_STORES 8u
#define BURST 128u         /* anonymous pages mapped, then unmapped with one flush */
#define REPORT_EVERY 6u    /* generations between TAP lines */
const unsigned xi_tests = GENERATIONS / REPORT_EVERY * 3 + 3;

/* A process: 64 read-only pages of text, 192 of heap, 64 of stack. */
#define TEXT_PAGES 64u
#define HEAP_PAGES 192u
#define STACK_PAGES 64u
#define PAGES (TEXT_PAGES + HEAP_PAGES + STACK_PAGES)
#define ANONYMOUS (XI_ARENA + 6 * xi_span(2))
#define PROCESSES 3u
#define FRAMES 2048u

struct process {
	space_t space;
	int lives;
	u32 word[PAGES];   /* what the first word of each page must read as */
};

static struct process processes[PROCESSES];
static uptr pool;
static u16 free_frames[FRAMES];
static unsigned free_count;
static u8 references[FRAMES];
static u32 random_state;

/* What went wrong since the last TAP lines. */
static unsigned wrong_faults, wrong_words, refused_stores;
static unsigned entry_writes, copies, reuses; /* totals */

static uptr page_address(unsigned page)
{
	if (page < TEXT_PAGES)
		return XI_ARENA + page * PAGE;
	page -= TEXT_PAGES;
	if (page < HEAP_PAGES)
		return XI_ARENA + 2 * xi_span(2) + page * PAGE;
	return XI_ARENA2 + xi_span(2) - (page - HEAP_PAGES + 1) * PAGE; /* downwards, as stacks grow */
}

/* ---- frames, with a count of the entries that lead to each ---- */
static unsigned number_of(uptr frame) { return (unsigned)((frame - pool) / PAGE); }

static uptr take_frame(void)
{
	unsigned number;

	if (!free_count) {
		xi_puts("Bail out! churn has no frame left\n");
		xi_exit(XI_EXIT_FAIL);
	}
	number = free_frames[--free_count];
	references[number] = 1;
	return pool + number * PAGE;
}

static uptr take_zeroed(void)
{
	uptr frame = take_frame();

	memset((void *)frame, 0, PAGE);
	return frame;
}

static void drop_frame(uptr frame)
{
	unsigned number = number_of(frame);

	if (!--references[number])
		free_frames[free_count++] = (u16)number;
}

/* ---- entries and tables ---- */
static void write_entry(pte_t *entry, u64 value)
{
	xi_set_entry(entry, value);
	entry_writes++;
}

/* The level-1 entry of `va`; tables that are missing come from the pool. */
static pte_t *entry_of(space_t s, uptr va)
{
	for (int level = XI_LEVELS; level > 1; level--) {
		pte_t *above = xi_entry(s, va, level, 0);

		if (!(*above & P_P))
			write_entry(above, (u64)take_zeroed() | xi_link_flags(level));
	}
	return xi_entry(s, va, 1, 0);
}

/* Frees what lies below the level-`level` entry of `va`, and the entry. A table that is not of the pool (PAE's
 * directories, made with the root) stays. */
static void free_below(space_t s, uptr va, int level)
{
	pte_t *entry = xi_entry(s, va, level, 0);
	uptr table = (uptr)(*entry & XI_FRAME_MASK);
	uptr base = va & ~(xi_span(level) - 1);

	if (!(*entry & P_P))
		return;
	for (unsigned i = 0; level > 1 && i < XI_ENTRIES; i++)
		if (((pte_t *)table)[i] & P_P)
			free_below(s, base + i * xi_span(level - 1), level - 1);
	if (number_of(table) >= FRAMES)
		return;
	write_entry(entry, 0);
	drop_frame(table);
}

/* ---- processes ---- */
static struct process *vacant_process(void)
{
	struct process *p = processes;

	while (p->lives)
		p++;
	if (!p->space.root)
		p->space = xi_space_new();
	p->lives = 1;
	return p;
}

static struct process *first_process(void)
{
	struct process *p = vacant_process();

	for (unsigned page = 0; page < PAGES; page++) {
		uptr frame = take_zeroed();

		p->word[page] = 0xc0de0000u | page;
		*xi_word(frame) = p->word[page];
		write_entry(entry_of(p->space, page_address(page)), (u64)frame | (page < TEXT_PAGES ? P_UR : P_URW));
	}
	return p;
}

/* The parent is loaded: taking its write permissions needs a flush, which is one CR3 load at the end. */
static struct process *fork(struct process *parent)
{
	struct process *child = vacant_process();

	for (unsigned page = 0; page < PAGES; page++) {
		pte_t *from = xi_entry(parent->space, page_address(page), 1, 0);

		if (*from & P_W)
			write_entry(from, *from & ~P_W);
		write_entry(entry_of(child->space, page_address(page)), *from & ~(P_A | P_D));
		references[number_of((uptr)(*from & XI_FRAME_MASK))]++;
		child->word[page] = parent->word[page];
	}
	xi_flush();
	return child;
}

/* Ring 3 stores; the write fault is answered as a kernel answers it: a shared frame is copied, a frame with one owner
 * is made writable. */
static void store(struct process *p, unsigned page, u32 value)
{
	uptr va = page_address(page), frame, copy;
	pte_t *entry = xi_entry(p->space, va, 1, 0);
	int writable = (*entry & P_W) != 0;
	u32 fault = xi_try_user_store(va, value);

	p->word[page] = value;
	if (writable) {
		wrong_faults += fault != 0;
		return;
	}
	wrong_faults += !xi_faulted(fault, PF_P | PF_W | PF_U);
	frame = (uptr)(*entry & XI_FRAME_MASK);
	if (references[number_of(frame)] > 1) {
		copy = take_frame();
		memcpy((void *)copy, (void *)frame, PAGE);
		write_entry(entry, (u64)copy | P_URW);
		drop_frame(frame);
		copies++;
	} else {
		write_entry(entry, *entry | P_W);
		reuses++;
	}
	xi_invlpg(va);
	refused_stores += xi_try_user_store(va, value) != 0;
}

static void store_many(struct process *p, unsigned count, u32 *state, u32 mark)
{
	while (count--)
		store(p, TEXT_PAGES + xi_random(state) % (HEAP_PAGES + STACK_PAGES), mark << 16 | count);
}

static void map_and_unmap(struct process *p)
{
	u32 value;

	for (unsigned i = 0; i < BURST; i++)
		write_entry(entry_of(p->space, ANONYMOUS + i * PAGE), (u64)take_zeroed() | P_URW);
	for (unsigned i = 0; i < BURST; i += 16) {
		wrong_faults += xi_try_user_store(ANONYMOUS + i * PAGE, i) != 0;
		wrong_words += xi_try_user_load(ANONYMOUS + i * PAGE, &value) != 0 || value != i;
	}
	for (unsigned i = 0; i < BURST; i++) {
		pte_t *entry = xi_entry(p->space, ANONYMOUS + i * PAGE, 1, 0);
		uptr frame = (uptr)(*entry & XI_FRAME_MASK);

		write_entry(entry, 0);
		drop_frame(frame);         /* not taken again before the flush */
	}
	xi_flush();
	for (unsigned i = 0; i < BURST; i += 32)
		wrong_faults += !xi_faulted(xi_try_user_load(ANONYMOUS + i * PAGE, &value), PF_U);
}

/* Reads every third page of the process, which is loaded. */
static void verify(struct process *p, unsigned generation)
{
	for (unsigned page = generation % 3; page < PAGES; page += 3) {
		u32 value = 0;

		wrong_faults += xi_try_user_load(page_address(page), &value) != 0;
		wrong_words += value != p->word[page];
	}
}

/* The dying process is not loaded. Its root is kept for the next one that is born. */
static void exit_process(struct process *p)
{
	for (uptr va = XI_ARENA; va < ANONYMOUS + xi_span(2); va += xi_span(XI_LEVELS))
		free_below(p->space, va, XI_LEVELS);
	free_below(p->space, XI_ARENA2, XI_LEVELS);
	p->lives = 0;
}

static struct process *generation(struct process *parent, unsigned number)
{
	struct process *child = fork(parent), *heir = number % 3 ? child : parent;
	struct process *other = heir == child ? parent : child;
	u32 childs_pages;

	if (number == 0)
		xi_checkpoint("after the first fork");
	xi_space_load(child->space);
	childs_pages = random_state;
	store_many(child, CHILD_STORES, &random_state, number);
	if (number == GENERATIONS / 3)
		xi_checkpoint("copy-on-write broken in the child");
	map_and_unmap(child);
	verify(child, number);
	xi_space_load(parent->space);
	/* Half of the parent's stores go where the child has made its copies: the parent owns those frames alone. */
	store_many(parent, PARENT_STORES / 2, &childs_pages, number | 0x4000);
	store_many(parent, PARENT_STORES / 2, &random_state, number | 0x8000);
	verify(parent, number);
	if (number == GENERATIONS / 2)
		xi_checkpoint("parent and child have diverged");
	xi_space_load(heir->space);
	exit_process(other);
	verify(heir, number + 1);
	return heir;
}

void scenario(void)
{
	struct process *current;
	unsigned at_start;

	random_state = xi_seed() | 1;
	pool = xi_frames(FRAMES, PAGE);
	while (free_count < FRAMES) {
		free_frames[free_count] = (u16)free_count;
		free_count++;
	}
	at_start = free_count;
	current = first_process();
	xi_space_load(current->space);
	for (unsigned i = 0; i < GENERATIONS; i++) {
		current = generation(current, i);
		if ((i + 1) % REPORT_EVERY)
			continue;
		xi_ok(!wrong_faults, "generation %u: accesses fault where they must (%u wrong)", i + 1, wrong_faults);
		xi_ok(!refused_stores,
		      "generation %u: a broken page takes the store (%u refused)", i + 1, refused_stores);
		xi_ok(!wrong_words,
		      "generation %u: every page holds its process's words (%u wrong)", i + 1, wrong_words);
		wrong_faults = refused_stores = wrong_words = 0;
	}
	xi_checkpoint("last generation");
	xi_ok(entry_writes >= GENERATIONS * (2 * PAGES + 2 * BURST), "%u entries written", entry_writes);
	xi_ok(copies > GENERATIONS && reuses > GENERATIONS, "%u pages copied, %u taken over", copies, reuses);
	xi_space_load(xi_kernel_space);
	exit_process(current);
	xi_ok(free_count == at_start, "every frame came back");
}
