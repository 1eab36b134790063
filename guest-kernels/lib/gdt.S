/* The one GDT layout of every mode: a 64-bit image may run 32-bit code and come back. Accessed bits are set. */
#include "xi_lib.h"

	.data
	.balign 8
	.globl xi_gdt, xi_gdt_pointer
xi_gdt:
	.quad 0
	.quad 0x00cf9b000000ffff /* 0x08 ring 0 code, 32-bit */
	.quad 0x00cf93000000ffff /* 0x10 ring 0 data */
	.quad 0x00cffb000000ffff /* 0x18 ring 3 code, 32-bit */
	.quad 0x00cff3000000ffff /* 0x20 ring 3 data */
	.quad 0, 0               /* 0x28 the TSS, by descriptors.c */
	.quad 0x00af9b000000ffff /* 0x38 ring 0 code, 64-bit */
	.quad 0x00affb000000ffff /* 0x40 ring 3 code, 64-bit */
xi_gdt_pointer:
	.word GDT_SLOTS * 8 - 1
#ifdef __x86_64__
	.quad xi_gdt
#else
	.long xi_gdt
#endif

	.section .note.GNU-stack, "", @progbits
