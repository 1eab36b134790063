/* From the firmware's 32-bit protected mode to C in the built mode's register width.
 *
 * The 32-bit modes go to C with paging off and turn it on there. The long modes need tables first: 2 MiB pages
 * over RAM, good enough until C has built the kernel's own.
 */
#include "xi_abi.h"
#include "xi_lib.h"

#define STACK_BYTES 16384

	.section .start, "ax"
	.code32
	.globl _start
_start:
	movl $xi_stack_top, %esp
#ifndef __x86_64__
	call xi_start_c
#else
	/* The 32-bit half, where there is one, runs first: nothing of the long modes is on yet. */
	movl $s32_xi_start_c, %eax
	testl %eax, %eax
	jz 1f
	call *%eax
1:
	/* One PD entry for each 2 MiB of RAM, at most the GiB that one PD covers. */
	movl XI_BOOT_INFO + 8, %ecx
	addl $0x1fffff, %ecx
	shrl $21, %ecx
	cmpl $512, %ecx
	jbe 2f
	movl $512, %ecx
2:	movl $0x83, %eax
	movl $boot_pd, %edi
3:	movl %eax, (%edi)
	addl $0x200000, %eax
	addl $8, %edi
	loop 3b
	movl $boot_pd + 3, boot_pdpt
	movl $boot_pdpt + 3, boot_pml4
	movl $boot_pml4, %eax
	movl $CR4_PAE, %edx
#ifdef XI_LONG5
	movl $boot_pml4 + 3, boot_pml5
	movl $boot_pml5, %eax
	orl $CR4_LA57, %edx
#endif
	movl %edx, %cr4
	movl %eax, %cr3
	movl $MSR_EFER, %ecx
	rdmsr
	orl $EFER_LME | EFER_NXE, %eax
	wrmsr
	movl %cr0, %eax
	orl $CR0_PG | CR0_WP, %eax
	movl %eax, %cr0
	lgdt xi_gdt_pointer
	ljmpl $SEL_CODE64, $long_mode
	.code64
long_mode:
	xorl %ebp, %ebp
	call xi_start_c
#endif

	.bss
	.balign 4096
	.space STACK_BYTES
xi_stack_top:
#ifdef __x86_64__
	.weak s32_xi_start_c
boot_pd:
	.space 4096
boot_pdpt:
	.space 4096
boot_pml4:
	.space 4096
#ifdef XI_LONG5
boot_pml5:
	.space 4096
#endif
#endif
	.section .note.GNU-stack, "", @progbits
