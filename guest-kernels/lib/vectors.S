/* One access with a safety net, and the exception entries that are the net.
 *
 * xi_access sets xi_catch_sp, does what the probe asks and never fails: an exception, or the INT 0x80 that
 * ends a fetch or a ring 3 access, abandons whatever was going on, takes the stack back from xi_catch_sp and
 * returns to xi_access's caller. With xi_catch_sp clear an exception is a panic.
 */
#include "xi_abi.h"
#include "xi_lib.h"

#ifdef __x86_64__
#define R(name) %r##name
#define M(symbol) symbol(%rip)
#define IRET iretq
#define WORD 8
#else
#define R(name) %e##name
#define M(symbol) symbol
#define IRET iretl
#define WORD 4
#endif

	.macro keep
	push R(bx)
	push R(bp)
#ifdef __x86_64__
	push %r12
	push %r13
	push %r14
	push %r15
#else
	push %esi
	push %edi
#endif
	.endm

	.macro restore
#ifdef __x86_64__
	pop %r15
	pop %r14
	pop %r13
	pop %r12
#else
	pop %edi
	pop %esi
#endif
	pop R(bp)
	pop R(bx)
	.endm

	.text
#ifndef XI_HALF32 /* one breakpoint in an image: the same bytes serve both widths */
	.section .control, "ax"
	.globl xi_stop
	.type xi_stop, @function
xi_stop:
	outb %al, $XI_STOP_PORT
	ret
	.text
#endif

	.globl xi_access
	.type xi_access, @function
xi_access:
	keep
#ifndef __x86_64__
	movl 5 * WORD(%esp), %edi
#endif
	mov R(di), M(xi_catch_probe)
	mov R(sp), M(xi_catch_sp)
	movl PROBE_OP(R(di)), %ecx
	mov PROBE_VA(R(di)), R(dx)
	movl PROBE_VALUE(R(di)), %eax
	testl $XI_USER, %ecx
	jnz user_access
	cmpl $XI_STORE, %ecx
	je ring0_store
	ja ring0_fetch
	movl (R(dx)), %eax
	jmp access_done
ring0_store:
	movl %eax, (R(dx))
	jmp access_done
ring0_fetch:
	jmp *R(dx)

user_access:
	mov $xi_user_load, R(bx)
	cmpl $XI_USER | XI_STORE, %ecx
	jb 1f
	mov $xi_user_store, R(bx)
	je 1f
	mov R(dx), R(bx)
1:	push $SEL_USER_DATA
	push $0 /* no stack: nothing in ring 3 uses one */
	push $2 /* IF, AC and IOPL clear */
	push $SEL_USER_CODE
	push R(bx)
	IRET

access_done: /* R(di) is the probe, EAX the value, the stack as xi_access left it */
	movl %eax, PROBE_VALUE(R(di))
	movl $0, PROBE_CODE(R(di))
	movl $XI_DONE, PROBE_STATUS(R(di))
leave_access:
	movl $0, M(xi_catch_sp)
	cld /* fetched code may have done anything to the flags */
	restore
	ret

	.globl xi_vector_probe_end
xi_vector_probe_end: /* INT 0x80 */
	cmpl $0, M(xi_catch_sp)
	je 1f
	mov M(xi_catch_sp), R(sp)
	mov M(xi_catch_probe), R(di)
	jmp access_done
1:	push $0
	push $VECTOR_PROBE_END
	jmp stray

page_fault:
	cmpl $0, M(xi_catch_sp)
	je 1f
	pop R(dx)
	mov M(xi_catch_sp), R(sp)
	mov M(xi_catch_probe), R(di)
	mov %cr2, R(ax)
	mov R(ax), PROBE_CR2(R(di))
#ifndef __x86_64__
	movl $0, PROBE_CR2 + 4(%edi)
#endif
	movl %edx, PROBE_CODE(R(di))
	movl $XI_FAULT, PROBE_STATUS(R(di))
	jmp leave_access
1:	push $VECTOR_PF
	jmp stray

other_exception: /* vector and error code are on the stack */
	cmpl $0, M(xi_catch_sp)
	je stray
	pop R(dx)
	mov M(xi_catch_sp), R(sp)
	mov M(xi_catch_probe), R(di)
	movl %edx, PROBE_CODE(R(di))
	movl $XI_EXCEPTION, PROBE_STATUS(R(di))
	jmp leave_access

stray: /* push what struct xi_registers holds, and say so */
	push R(ax)
	push R(bx)
	push R(cx)
	push R(dx)
	push R(bp)
	push R(si)
	push R(di)
	cld
#ifdef __x86_64__
	push %r8
	push %r9
	push %r10
	push %r11
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, %rdi
	mov %cr2, %rsi
	and $-16, %rsp
#else
	mov %esp, %eax
	mov %cr2, %ecx
	push %ecx
	push %eax
#endif
	call xi_stray_trap

/* The vectors 8, 10 to 14, 17, 21, 29 and 30 push an error code (SDM vol. 3A, table 6-1; APM vol. 2, 8.2). */
	.macro entry n
vector_\n:
	.if \n == VECTOR_PF
	jmp page_fault
	.else
	.if ((1 << \n) & 0x60227d00) == 0
	push $0
	.endif
	push $\n
	jmp other_exception
	.endif
	.section .rodata
#ifdef __x86_64__
	.quad vector_\n
#else
	.long vector_\n
#endif
	.text
	.endm

	.section .rodata
	.balign 8
	.globl xi_vectors
xi_vectors:
	.text
	.altmacro
	.set n, 0
	.rept VECTORS
	entry %n
	.set n, n + 1
	.endr
	.noaltmacro

/* The one page of the image that ring 3 may execute. */
	.section .user, "ax"
xi_user_load:
	movl (R(dx)), %eax
	int $VECTOR_PROBE_END
xi_user_store:
	movl %eax, (R(dx))
	int $VECTOR_PROBE_END

	.bss
	.balign 8
xi_catch_sp:
	.quad 0
xi_catch_probe:
	.quad 0

	.section .note.GNU-stack, "", @progbits
