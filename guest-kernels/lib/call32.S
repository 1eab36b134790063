/* xi_call32(function): out of the long mode, paging off, into a function of the 32-bit half, and back.
 *
 * The function finds flat 32-bit segments and nothing else: it loads its own descriptor tables. CR3 and CR4 stay,
 * so that what it does to the tables is what the long mode finds again.
 */
#include "xi_lib.h"

	.text
	.code64
	.globl xi_call32
	.type xi_call32, @function
xi_call32:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	movl %edi, %ebx
	/* A trap from ring 3 leaves SS null in the long mode (SDM vol. 3A, 6.14.4): good for no 32-bit stack. */
	movl $SEL_DATA, %eax
	movw %ax, %ss
	push $SEL_CODE32
	push $leave
	lretq

	.code32
leave:
	movl %cr0, %eax
	andl $~CR0_PG, %eax
	movl %eax, %cr0
	/* LME can change only with paging off, and off it must be for PG to select anything else. */
	movl $MSR_EFER, %ecx
	rdmsr
	andl $~EFER_LME, %eax
	wrmsr

	call *%ebx

	movl $MSR_EFER, %ecx
	rdmsr
	orl $EFER_LME, %eax
	wrmsr
	lgdt xi_gdt_pointer
	movl %cr0, %eax
	orl $CR0_PG, %eax
	movl %eax, %cr0
	ljmpl $SEL_CODE64, $back

	.code64
back:
	movl %esp, %esp /* the upper half is not defined after 32-bit code */
	call xi_descriptors_load
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret

	.section .note.GNU-stack, "", @progbits
