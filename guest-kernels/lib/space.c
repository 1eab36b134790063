/* Address spaces: tables in frames of their own, reached at their physical addresses. */
#include "xi_lib.h"

#define ENTRIES (1ul << XI_INDEX_BITS)
#define ADDRESS 0x000ffffffffff000ull
#define TABLE_FLAGS (P_P | P_W | P_U | P_A)
#define HOLE_START 0xa0000ul /* video memory and ROMs: not RAM, whatever the size of RAM */
#define HOLE_END 0x100000ul

space_t xi_kernel_space;

static unsigned index_of(uptr va, int level)
{
	return (va >> (12 + XI_INDEX_BITS * (level - 1))) & (ENTRIES - 1);
}

/* PAE's top-level entries have no rights and no accessed bit: those bits are reserved (SDM vol. 3A, table 4-8). */
static u64 table_flags(int level)
{
#ifdef XI_PAE
	if (level == 3)
		return P_P;
#endif
	(void)level;
	return TABLE_FLAGS;
}

void xi_set_entry(pte_t *entry, u64 value)
{
#ifdef XI_PAE
	/* Two stores: the entry must not be present while it is half old, half new. */
	volatile u32 *half = (volatile u32 *)entry;

	if (value & P_P) {
		half[1] = (u32)(value >> 32);
		half[0] = (u32)value;
	} else {
		half[0] = (u32)value;
		half[1] = (u32)(value >> 32);
	}
#else
	*(volatile pte_t *)entry = (pte_t)value;
#endif
}

pte_t *xi_entry(space_t s, uptr va, int level, int create)
{
	pte_t *table = (pte_t *)(s.root & ~(PAGE - 1));

	for (int at = XI_LEVELS; at > level; at--) {
		pte_t *entry = &table[index_of(va, at)];
		u64 value = *(volatile pte_t *)entry;

		if (!(value & P_P)) {
			if (!create)
				return 0;
			value = xi_frame() | table_flags(at);
			xi_set_entry(entry, value);
		} else if (value & P_PS) {
			if (!create)
				return 0;
			xi_panic("a large page is in the way at %p, level %d", va, at);
		}
		table = (pte_t *)(uptr)(value & ADDRESS);
	}
	return &table[index_of(va, level)];
}

void xi_map(space_t s, uptr va, u64 pa, u64 flags)
{
	xi_set_entry(xi_entry(s, va, 1, 1), pa | flags);
}

void xi_map_large(space_t s, uptr va, u64 pa, u64 flags, int level)
{
	xi_set_entry(xi_entry(s, va, level, 1), pa | flags | P_PS);
}

void xi_unmap(space_t s, uptr va)
{
	pte_t *entry = xi_entry(s, va, 1, 0);

	if (entry)
		xi_set_entry(entry, 0);
}

/* PAE loads its four top-level entries with CR3 and not on each walk (SDM vol. 3A, 4.4.1). All four are there
 * from the start, so that a new table below them never needs a CR3 load. */
static space_t new_root(void)
{
	space_t s = { xi_frame() };

#ifdef XI_PAE
	for (uptr i = 0; i < 4; i++)
		xi_set_entry((pte_t *)s.root + i, xi_frame() | P_P);
#endif
	return s;
}

/* Accessed and dirty are set beforehand in the image, where the library itself runs and writes: what it
 * touches while it serves probes then changes no table. */
static u64 kernel_flags(uptr pa)
{
	if (pa >= (uptr)xi_user_start && pa < (uptr)xi_user_end)
		return P_P | P_U | P_A;
	if (pa >= (uptr)xi_image_start && pa < (uptr)xi_image_end)
		return P_P | P_W | P_A | P_D;
	return P_P | P_W;
}

void xi_kernel_space_build(void)
{
	pte_t *entry = 0;

	xi_kernel_space = new_root();
	for (uptr pa = 0; pa < xi_ram_bytes; pa += PAGE) {
		if (!index_of(pa, 1))
			entry = xi_entry(xi_kernel_space, pa, 1, 1);
		if (pa < HOLE_START || pa >= HOLE_END)
			xi_set_entry(entry, pa | kernel_flags(pa));
		entry++;
	}
}

space_t xi_space_new(void)
{
	space_t s = new_root();
	pte_t *to = (pte_t *)s.root;
	const pte_t *from = (const pte_t *)xi_kernel_space.root;

	for (unsigned i = 0; i <= index_of(xi_ram_bytes - 1, XI_LEVELS); i++)
		xi_set_entry(&to[i], from[i]);
	return s;
}

void xi_space_load(space_t s)
{
	xi_set_cr3(s.root);
}
