/* The monitor: runs a guest until the processor leaves it, and hands over to the controller.
 *
 * It has no data of its own but the boot info and the blocks that the boot info names: it runs from ROM. GIF is 0
 * while it runs, so nothing interrupts it, but for a moment after each #VMEXIT: an NMI that made the guest leave is
 * still pending (15.13.2), and would make it leave for ever. An exception is a triple fault, which ends QEMU.
 * Source: AMD APM vol. 2, 15.5 (VMRUN), 15.17 (GIF).
 */
#include "../guest-kernels/lib/xi_abi.h"
#include "layout.h"
#include "svm.h"
#include "xi_monitor.h"

#define LEAF_FEATURES 7
#define CPUID_PKU 3 /* its bit in ECX */
#define CR4_PKE 0x400000
#define LAPIC_ICR 0xfee00300
#define LAPIC_LINT1 0xfee00360
#define LVT_NMI 0x400
#define ICR_OTHERS_INIT 0x000c4500    /* all excluding self, assert */
#define ICR_OTHERS_STARTUP 0x000c46f0 /* vector 0xf0: boot.S, as it shows at 0xf0000 */
#define INIT_PAUSES 1000
#define READS_PER_PAUSE 256

#define GPR(number) VCPU_GPR + 8 * number

	.section .monitor, "ax"
	.code64
	.globl monitor_entry
monitor_entry:
	movabsq $DIRECT_MAP, %r15
	movl XI_BOOT_INFO + 8(%r15), %r12d
	movabsq $idt_pointer, %rax
	lidt (%rax)
	clgi

	movl $1, %eax
	cpuid
	shrl $24, %ebx /* the APIC ID: with one package they count from 0 */
	cmpl XI_BOOT_INFO + 4(%r15), %ebx
	jae stay
	movl %ebx, %r13d
	leal 1(%rbx), %ebp
	imull $XI_VCPU_BYTES, %ebp
	addl %r12d, %ebp

	leal XI_VCPU_HSAVE(%ebp), %eax
	xorl %edx, %edx
	movl $MSR_VM_HSAVE_PA, %ecx
	wrmsr
	addq %r15, %rbp /* from here on: this vCPU's struct xi_vcpu */

	movl $LAPIC_LINT1, %edx
	addq %r15, %rdx
	movl $LVT_NMI, (%rdx) /* masked after reset: the controller's way to get a guest to leave */

	movl $0, VCPU_FEATURES(%rbp)
	xorl %eax, %eax
	cpuid
	cmpl $LEAF_FEATURES, %eax
	jb 1f
	movl $LEAF_FEATURES, %eax
	xorl %ecx, %ecx
	cpuid
	btl $CPUID_PKU, %ecx
	jnc 1f
	movl $CR4_PAE | CR4_PKE, %eax /* RDPKRU and WRPKRU are undefined without PKE */
	movq %rax, %cr4
	movl $XI_FEATURE_PKU, VCPU_FEATURES(%rbp)
1:
	movl $XI_MONITOR_VERSION, VCPU_VERSION(%rbp)
	movl %r13d, VCPU_INDEX(%rbp)
	movl $1, %eax
	movq %rax, VCPU_EXITS(%rbp)
	movl $XI_VCPU_MAGIC, VCPU_MAGIC(%rbp)

	testl %r13d, %r13d
	jnz await
	cmpl $1, XI_BOOT_INFO + 4(%r15)
	je await
	movl $LAPIC_ICR, %edx
	addq %r15, %rdx
	movl $ICR_OTHERS_INIT, (%rdx)
	movl $INIT_PAUSES, %ecx /* silicon wants 10 ms here, QEMU nothing */
1:	pause
	loop 1b
	movl $ICR_OTHERS_STARTUP, (%rdx)
	jmp await

/* RBP is the vCPU's block, and nothing else is worth keeping. */
hand_over:
	movq VCPU_EXITS(%rbp), %rax
	incq %rax
	movq %rax, VCPU_EXITS(%rbp)
await:
	movl $READS_PER_PAUSE, %ecx
1:	cmpq %rax, VCPU_ANSWERED(%rbp)
	je answered
	decl %ecx
	jnz 1b
	pause /* lets another vCPU have its turn where QEMU runs all of them on one thread */
	jmp await

answered:
	movq %cr4, %rax
	movl %eax, %edx
	andl $~XI_HOST_CR4, %eax
	orl VCPU_HOST_CR4(%rbp), %eax
	cmpl %edx, %eax
	jne change_cr4
cr4_is_right:
	cmpl $XI_RUN, VCPU_COMMAND(%rbp)
	je run
	leaq XI_VCPU_STACK + XI_VCPU_STACK_BYTES(%rbp), %rsp
	movq %rbp, %rdi
	call xi_command
	jmp hand_over

run:
	testl $XI_FEATURE_PKU, VCPU_FEATURES(%rbp)
	jz 1f
	xorl %ecx, %ecx
	rdpkru /* clears EDX */
	cmpl %eax, VCPU_PKRU(%rbp)
	je 1f /* WRPKRU costs a flush of the TLB (QEMU 7.2) */
	movl VCPU_PKRU(%rbp), %eax
	wrpkru
1:	movq %rbp, %rsp /* what #VMEXIT gives back: RSP, and RAX with the VMCB's address */
	movq VCPU_VMCB(%rsp), %rax
	movq GPR(1)(%rsp), %rcx
	movq GPR(2)(%rsp), %rdx
	movq GPR(3)(%rsp), %rbx
	movq GPR(5)(%rsp), %rbp
	movq GPR(6)(%rsp), %rsi
	movq GPR(7)(%rsp), %rdi
	movq GPR(8)(%rsp), %r8
	movq GPR(9)(%rsp), %r9
	movq GPR(10)(%rsp), %r10
	movq GPR(11)(%rsp), %r11
	movq GPR(12)(%rsp), %r12
	movq GPR(13)(%rsp), %r13
	movq GPR(14)(%rsp), %r14
	movq GPR(15)(%rsp), %r15
	vmload %rax
	vmrun %rax
	vmsave %rax
	movq %rcx, GPR(1)(%rsp)
	movq %rdx, GPR(2)(%rsp)
	movq %rbx, GPR(3)(%rsp)
	movq %rbp, GPR(5)(%rsp)
	movq %rsi, GPR(6)(%rsp)
	movq %rdi, GPR(7)(%rsp)
	movq %r8, GPR(8)(%rsp)
	movq %r9, GPR(9)(%rsp)
	movq %r10, GPR(10)(%rsp)
	movq %r11, GPR(11)(%rsp)
	movq %r12, GPR(12)(%rsp)
	movq %r13, GPR(13)(%rsp)
	movq %r14, GPR(14)(%rsp)
	movq %r15, GPR(15)(%rsp)
	movq %rsp, %rbp
	leaq XI_VCPU_STACK + XI_VCPU_STACK_BYTES(%rbp), %rsp
	stgi
	clgi
	testl $XI_FEATURE_PKU, VCPU_FEATURES(%rbp)
	jz hand_over
	xorl %ecx, %ecx
	rdpkru
	movl %eax, VCPU_PKRU(%rbp)
	jmp hand_over

change_cr4: /* from EDX to EAX */
	xorl %eax, %edx
	testl $CR4_LA57, %edx
	jnz 1f
	movq %rax, %cr4
	jmp cr4_is_right
1:	movabsq $DIRECT_MAP, %rcx
	movl XI_BOOT_INFO + 8(%rcx), %edx
	leal HOST_PML5 - HOST_PML4(%rdx), %ecx
	testl $CR4_LA57, %eax
	cmovnzl %ecx, %edx /* HOST_PML4 is at the start of the area */
	movabsq $change_levels, %rcx
	jmp *%rcx
	.globl levels_changed
levels_changed: /* from boot.S */
	movabsq $DIRECT_MAP, %rax
	movl %ebp, %ebp
	addq %rax, %rbp
	jmp cr4_is_right

stay: /* a processor that the boot info does not count */
	hlt
	jmp stay

/* void xi_run_probe(u64 vmcb, u64 va): VMRUN with RBX = va. The VMCB is a machine address. */
	.globl xi_run_probe
	.type xi_run_probe, @function
xi_run_probe:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rdi, %rax
	movq %rsi, %rbx
	vmrun %rax
	stgi
	clgi
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret

	.section .note.GNU-stack, "", @progbits
