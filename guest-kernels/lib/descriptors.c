/* GDT, IDT and TSS in the width that this file is compiled for. */
#include "xi_lib.h"

#define GATE_INTERRUPT 0x8e00u
#define GATE_DPL3 0x6000u
#define TRAP_STACK 4096

extern u64 xi_gdt[GDT_SLOTS];
extern char xi_gdt_pointer[];

#ifdef __x86_64__
struct gate { u16 low, selector; u32 attributes_and_middle, high, zero; };
struct tss { u32 zero; uptr sp0; u32 rest[21]; u16 trap, iomap; } __attribute__((packed));
#else
struct gate { u16 low, selector; u32 attributes_and_middle; };
struct tss { u32 link, sp0, ss0, rest[22]; u16 trap, iomap; } __attribute__((packed));
#endif

static struct gate idt[256];
static struct tss tss;
/* Ring 3 traps land here. Ring 0's stack must stay as it is: xi_access returns through it. */
static char trap_stack[TRAP_STACK] __attribute__((aligned(16)));

static void set_gate(unsigned vector, uptr handler, u32 attributes)
{
	struct gate *gate = &idt[vector];

	gate->low = (u16)handler;
	gate->selector = SEL_CODE;
	gate->attributes_and_middle = ((u32)handler & 0xffff0000u) | attributes;
#ifdef __x86_64__
	gate->high = (u32)(handler >> 32);
#endif
}

void xi_descriptors_load(void)
{
	struct { u16 limit; uptr base; } __attribute__((packed)) idt_pointer = { sizeof(idt) - 1, (uptr)idt };
	uptr base = (uptr)&tss;

	for (unsigned i = 0; i < VECTORS; i++)
		set_gate(i, xi_vectors[i], GATE_INTERRUPT);
	set_gate(VECTOR_PROBE_END, (uptr)xi_vector_probe_end, GATE_INTERRUPT | GATE_DPL3);

	tss.sp0 = (uptr)trap_stack + TRAP_STACK;
	tss.iomap = sizeof(tss);
#ifndef __x86_64__
	tss.ss0 = SEL_DATA;
#endif
	/* Written afresh each time: LTR refuses a TSS that an earlier LTR has marked busy. */
	xi_gdt[SEL_TSS / 8] = (sizeof(tss) - 1) | ((u64)(base & 0xffffff) << 16) | (0x89ull << 40) |
			      ((u64)((base >> 24) & 0xff) << 56);
	xi_gdt[SEL_TSS / 8 + 1] = 0;

	asm volatile("lgdt %0" : : "m"(*(char(*)[10])xi_gdt_pointer));
	asm volatile("lidt %0" : : "m"(idt_pointer));
	asm volatile("ltr %w0" : : "r"(SEL_TSS));
	/* DS and ES serve both rings, so that no IRET to ring 3 clears them (SDM vol. 2, IRET). */
	asm volatile("mov %w0, %%ds\n\tmov %w0, %%es\n\tmov %w0, %%fs\n\tmov %w0, %%gs" : : "r"(SEL_USER_DATA));
	asm volatile("mov %w0, %%ss" : : "r"(SEL_DATA));
}
