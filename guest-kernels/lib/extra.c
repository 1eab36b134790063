/* Geometry, linking and checking helpers for scenarios: see extra.h. */
#include "extra.h"

void xi_link(space_t s, uptr va, int level, uptr table)
{
	xi_set_entry(xi_entry(s, va, level, 1), (u64)table | xi_link_flags(level));
}

void xi_unlink(space_t s, uptr va, int level)
{
	pte_t *entry = xi_entry(s, va, level, 0);

	if (entry)
		xi_set_entry(entry, 0);
}

uptr xi_linked(space_t s, uptr va, int level)
{
	pte_t *entry = xi_entry(s, va, level, 0);

	return entry && (*entry & P_P) ? (uptr)(*entry & XI_FRAME_MASK) : 0;
}

int xi_reaches(uptr va, uptr frame)
{
	u32 value = 0;

	return xi_try_load(va + XI_TAG_OFFSET + 8, &value) == 0 && value == xi_tag(frame / PAGE);
}

int xi_faulted(u32 result, u32 code)
{
	return (result & ~PF_I) == (XI_PF | code);
}

int xi_faulted_reserved(u32 result)
{
	return (result & XI_PF) && (result & PF_RSVD);
}

u32 xi_seed(void)
{
	return xi_word(XI_BOOT_INFO)[3];
}

u32 xi_random(u32 *state)
{
	u32 x = *state;

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	return *state = x;
}

static u32 cpuid_eax(u32 leaf)
{
	u32 eax = leaf, ebx, ecx = 0, edx;

	asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
	return eax;
}

unsigned xi_physical_bits(void)
{
	if (cpuid_eax(0x80000000u) < 0x80000008u)
		return 36;
	return cpuid_eax(0x80000008u) & 0xff;
}
