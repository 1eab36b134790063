/* What the processor can do, and its control registers. */
#include "xi_lib.h"

int xi_has_nx, xi_has_smep, xi_has_smap, xi_has_pku, xi_has_1g, xi_has_pge;

struct cpuid { u32 a, b, c, d; };

static struct cpuid cpuid(u32 leaf)
{
	struct cpuid r;

	asm volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(0));
	return r;
}

void xi_cpu_detect(void)
{
	u32 basic = cpuid(0).a;
	struct cpuid seven = { 0, 0, 0, 0 };
	u32 extended = 0;

	if (basic >= 7)
		seven = cpuid(7);
	if (cpuid(0x80000000u).a >= 0x80000001u)
		extended = cpuid(0x80000001u).d;
	xi_has_pge = (cpuid(1).d >> 13) & 1;
	xi_has_smep = (seven.b >> 7) & 1;
	xi_has_smap = (seven.b >> 20) & 1;
	/* 4-byte entries have no bit 63; keys and 1 GiB pages are the long modes' (SDM vol. 3A, 4.5, 4.6.2). */
	xi_has_nx = XI_LEVELS > 2 && ((extended >> 20) & 1);
	xi_has_pku = XI_LEVELS > 3 && ((seven.c >> 3) & 1);
	xi_has_1g = XI_LEVELS > 3 && ((extended >> 26) & 1);
#ifdef XI_LONG5
	if (!((seven.c >> 16) & 1))
		xi_panic("this processor has no 5-level paging");
#endif
}

uptr xi_cr0(void) { uptr v; asm volatile("mov %%cr0, %0" : "=r"(v)); return v; }
uptr xi_cr2(void) { uptr v; asm volatile("mov %%cr2, %0" : "=r"(v)); return v; }
uptr xi_cr3(void) { uptr v; asm volatile("mov %%cr3, %0" : "=r"(v)); return v; }
uptr xi_cr4(void) { uptr v; asm volatile("mov %%cr4, %0" : "=r"(v)); return v; }
void xi_set_cr0(uptr v) { asm volatile("mov %0, %%cr0" : : "r"(v) : "memory"); }
void xi_set_cr3(uptr v) { asm volatile("mov %0, %%cr3" : : "r"(v) : "memory"); }
void xi_set_cr4(uptr v) { asm volatile("mov %0, %%cr4" : : "r"(v) : "memory"); }

u64 xi_rdmsr(u32 msr)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return low | (u64)high << 32;
}

void xi_wrmsr(u32 msr, u64 value)
{
	asm volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

u64 xi_efer(void) { return xi_rdmsr(MSR_EFER); }
void xi_set_efer(u64 value) { xi_wrmsr(MSR_EFER, value); }

u32 xi_rdpkru(void)
{
	u32 value, high;

	if (!(xi_cr4() & CR4_PKE)) /* #UD without it */
		return 0;
	asm volatile(".byte 0x0f, 0x01, 0xee" : "=a"(value), "=d"(high) : "c"(0));
	return value;
}

void xi_wrpkru(u32 value)
{
	if (xi_cr4() & CR4_PKE)
		asm volatile(".byte 0x0f, 0x01, 0xef" : : "a"(value), "c"(0), "d"(0) : "memory");
}

void xi_invlpg(uptr va) { asm volatile("invlpg (%0)" : : "r"(va) : "memory"); }
void xi_flush(void) { xi_set_cr3(xi_cr3()); }

void xi_flush_global(void)
{
	uptr cr4 = xi_cr4();

	xi_set_cr4(cr4 ^ CR4_PGE);
	xi_set_cr4(cr4);
}
