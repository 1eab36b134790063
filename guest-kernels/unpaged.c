/* Paging off, on, off, on; other paging modes in between; tables edited while nothing walks them.
 *
 * The 32-bit builds change to the other 32-bit mode and back. A long-mode image runs the pae build of this file
 * first (its 32-bit half), then turns the long mode off and on again.
 */
#include "xi_guest.h"

#define PAGES 4
#define CR0_PG 0x80000000ul
#define CR4_PAE 0x20ul
#define ADDRESS 0x000ffffffffff000ull
#define LEAF (P_P | P_W | P_U)

#define HALF_TESTS 7
#if XI_LEVELS < 4
#define LONG_TESTS 0
#else
#define LONG_TESTS 3
#endif
#ifndef XI_HALF32
const unsigned xi_tests = HALF_TESTS + LONG_TESTS;
#endif

static uptr frame[PAGES + 1];

static uptr page(unsigned i)
{
	return (i & 1 ? XI_ARENA2 : XI_ARENA) + i * 0x3000ul;
}

static void take_frames(void)
{
	for (unsigned i = 0; i <= PAGES; i++)
		frame[i] = xi_data_frame();
}

/* Whether page i shows frame f; f < 0: whether it is not mapped. */
static int shows(unsigned i, int f)
{
	u32 value = 0;
	u32 fault = xi_try_user_load(page(i) + XI_TAG_OFFSET + 8, &value);

	return f < 0 ? fault == 0x80000004u : !fault && value == xi_tag(frame[f] / PAGE);
}

#if XI_LEVELS < 4
#ifdef XI_NOPAE
static const struct { int levels, bits, bytes; } other = { 3, 9, 8 };
#define OTHER_NAME "pae"
#else
static const struct { int levels, bits, bytes; } other = { 2, 10, 4 };
#define OTHER_NAME "nopae"
#endif

static void other_set(uptr entry, u64 value)
{
	if (other.bytes == 8)
		((volatile u32 *)entry)[1] = (u32)(value >> 32);
	*(volatile u32 *)entry = (u32)value;
}

static uptr other_entry(uptr root, uptr va)
{
	uptr table = root;

	for (int level = other.levels;; level--) {
		uptr index = (va >> (12 + other.bits * (level - 1))) & ((1ul << other.bits) - 1);
		uptr entry = table + index * (uptr)other.bytes;

		if (level == 1)
			return entry;
		if (!(*(volatile u32 *)entry & P_P)) /* rights are reserved bits in pae's top entries */
			other_set(entry, xi_frame() | (level == 3 ? P_P : P_P | P_W | P_U | P_A));
		table = *(volatile u32 *)entry & ~(PAGE - 1);
	}
}

static void copy_page(space_t from, uptr root, uptr va)
{
	const pte_t *entry = xi_entry(from, va, 1, 0);

	if (entry && *entry & P_P)
		other_set(other_entry(root, va), *entry & (ADDRESS | P_P | P_W | P_U | P_A | P_D));
}

/* The same address space in the other mode's format. */
static uptr other_root(space_t from)
{
	uptr root = xi_frame();

	for (uptr va = 0; va < xi_ram_bytes; va += PAGE)
		copy_page(from, root, va);
	for (unsigned i = 0; i < PAGES; i++) {
		other_entry(root, page(i)); /* the tables are there before pae's top entries are loaded */
		copy_page(from, root, page(i));
	}
	return root;
}

static void paging(int on)
{
	xi_set_cr0(on ? xi_cr0() | CR0_PG : xi_cr0() & ~CR0_PG);
}

/* With paging off, or the change of CR4.PAE would take the ground from under the code. */
static void change_mode(uptr root)
{
	xi_set_cr4(xi_cr4() ^ CR4_PAE);
	xi_set_cr3(root);
}

void xi_before_paging(void)
{
	xi_checkpoint("before paging");
}

void scenario(void)
{
	space_t s = xi_space_new();
	uptr root;

	take_frames();
	xi_space_load(s);
	for (unsigned i = 0; i < PAGES - 1; i++)
		xi_map(s, page(i), frame[i], LEAF);
	xi_checkpoint("paging on");
	xi_ok(shows(0, 0) && shows(1, 1) && shows(2, 2) && shows(3, -1), "paging on: three pages mapped");

	paging(0);
	xi_checkpoint("paging off");
	xi_ok(!xi_try_user_store(frame[0] + 64, 1), "paging off: ring 3 reaches a kernel frame");
	xi_unmap(s, page(0));
	xi_map(s, page(1), frame[PAGES], LEAF);
	xi_map(s, page(3), frame[3], LEAF);
	xi_checkpoint("tables edited while paging is off");
	paging(1);
	xi_checkpoint("paging on again");
	xi_ok(shows(0, -1) && shows(1, PAGES) && shows(2, 2) && shows(3, 3), "what was edited unseen is in force");

	paging(0);
	root = other_root(s);
	change_mode(root);
	xi_checkpoint("off, about to change the mode");
	paging(1);
	xi_checkpoint(OTHER_NAME " after a change of mode");
	xi_ok(shows(0, -1) && shows(1, PAGES) && shows(2, 2) && shows(3, 3), OTHER_NAME ": the same pages");
	other_set(other_entry(root, page(0)), frame[0] | LEAF);
	other_set(other_entry(root, page(2)), 0);
	xi_invlpg(page(2));
	xi_checkpoint(OTHER_NAME " tables edited");
	xi_ok(shows(0, 0) && shows(2, -1), OTHER_NAME ": one page more, one less");

	paging(0);
	change_mode(s.root);
	paging(1);
	xi_checkpoint("back in the first mode");
	xi_ok(shows(0, -1) && shows(2, 2), "the first mode's tables are as they were");
	xi_unmap(s, page(2));
	xi_invlpg(page(2));
	xi_checkpoint("and can be edited");
	xi_ok(shows(2, -1), "an edit after two changes of mode");
	xi_space_load(xi_kernel_space);
}

#ifdef XI_HALF32
/* Called from the long mode, which has left (address of an entry, value) pairs. */
void interlude(void)
{
	xi_descriptors_load();
	xi_checkpoint("long mode left, paging off");
	for (unsigned i = 0; i + 1 < sizeof(xi_shared) / sizeof(*xi_shared) && xi_shared[i]; i += 2)
		xi_set_entry((pte_t *)(uptr)xi_shared[i], xi_shared[i + 1]);
	xi_checkpoint("long-mode tables edited while paging is off");
}
#endif

#else
extern void s32_interlude(void);

void scenario(void)
{
	space_t s = xi_space_new();

	take_frames();
	xi_space_load(s);
	for (unsigned i = 0; i < PAGES; i++)
		xi_map(s, page(i), frame[i], LEAF);
	xi_checkpoint("long mode after pae");
	xi_ok(shows(0, 0) && shows(1, 1) && shows(2, 2) && shows(3, 3), "long mode after pae: four pages");

	xi_shared[0] = (uptr)xi_entry(s, page(0), 1, 0);
	xi_shared[1] = 0;
	xi_shared[2] = (uptr)xi_entry(s, page(1), 1, 0);
	xi_shared[3] = frame[PAGES] | LEAF;
	xi_call32(s32_interlude);
	xi_checkpoint("long mode again");
	xi_ok(shows(0, -1) && shows(1, PAGES) && shows(2, 2), "what the 32-bit half edited is in force");
	xi_map(s, page(0), frame[0], LEAF);
	xi_unmap(s, page(3));
	xi_invlpg(page(3));
	xi_checkpoint("and can be edited");
	xi_ok(shows(0, 0) && shows(3, -1), "an edit after the return");
	xi_space_load(xi_kernel_space);
}
#endif
