/* The ROM: from the reset vector to the guest's entry, nothing in between; or, in live mode, to the monitor.
 *
 * The processor starts in real mode at 0xfffffff0 with the CS base at 0xffff0000, so the whole ROM is within
 * reach of near jumps and CS-relative loads. The guest is in RAM already: the harness put it there through
 * the RAM map, together with the boot info that says where to enter (guest-kernels/lib/xi_abi.h). A20 is open
 * after reset on QEMU's machines, and no device needs setting up for a guest that only polls COM1.
 */
#include "../guest-kernels/lib/xi_abi.h"
#include "layout.h"
#include "svm.h"
#include "xi_monitor.h"

#define COM1 0x3f8
#define MSR_APIC_BASE 0x1b
#define APIC_BSP 0x100
#define CPUID_EXTENDED 0x80000001
#define CPUID_SVM 2 /* its bit in ECX */
#define CPUID_LM 29 /* and in EDX */
#define CR0_ON 0x80010031 /* PG WP NE ET PE */
#define PTE_TABLE 0x03
#define PTE_LARGE 0x83

/* Also where further vCPUs start: the ROM shows at 0xf0000 as well, and a SIPI with vector 0xf0 begins there. */
	.section .boot, "ax"
	.code16
	.globl real_mode
real_mode:
	cli
	cld
	/* A 32-bit operand size, or the base would be cut to 24 bits; CS-relative (real_mode
	 * is at offset 0 of the ROM), since DS still has base 0. */
	lgdtl %cs:(gdt_pointer - real_mode)
	/* PE alone, and the caches on: the reset value has CD and NW set. ET is hard-wired. */
	movl $0x11, %eax
	movl %eax, %cr0
	ljmpl $CODE_SELECTOR, $protected_mode

	.code32
protected_mode:
	movw $DATA_SELECTOR, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movw %ax, %fs
	movw %ax, %gs
	movl $0x7000, %esp
	movl $XI_BOOT_INFO, %ebx

	movl $MSR_APIC_BASE, %ecx
	rdmsr
	testl $APIC_BSP, %eax
	jnz first_processor
	cmpl $XI_MONITOR_MAGIC, (%ebx)
	je long_mode
	jmp halt

first_processor:
	/* COM1 at 115200 8N1, no interrupts: the guest's console finds it ready. */
	movl $uart_setup, %esi
	movl $(uart_setup_end - uart_setup) / 2, %ecx
1:	movzbl (%esi), %edx
	addl $COM1, %edx
	movb 1(%esi), %al
	outb %al, %dx
	addl $2, %esi
	loop 1b

	cmpl $XI_MONITOR_MAGIC, (%ebx)
	je live_mode
	movl $no_boot_info, %esi
	cmpl $XI_BOOT_MAGIC, (%ebx)
	jne refuse
	movl 4(%ebx), %edx
	movl $bad_entry, %esi
	cmpl 8(%ebx), %edx /* an entry past the end of RAM would run into nothing */
	jae refuse
	/* Beyond what the guest is told the registers hold nothing, as in live mode: where the ROM ends is not its affair. */
	xorl %esi, %esi
	xorl %edx, %edx
	movl $XI_BOOT_MAGIC, %eax
	jmp *4(%ebx)

live_mode:
	movl $CPUID_EXTENDED, %eax
	cpuid
	movl $no_svm, %esi
	movl $XI_EXIT_NO_SVM, %edi
	btl $CPUID_SVM, %ecx
	jnc refuse_with
	btl $CPUID_LM, %edx
	jnc refuse_with
	movl $XI_BOOT_INFO, %ebx
	movl $bad_area, %esi
	movl 8(%ebx), %edi
	testl $0xfffff, %edi
	jnz refuse
	testl %edi, %edi
	jz refuse
	movl 4(%ebx), %eax /* vCPUs, each with a block; the first block is the area's own */
	testl %eax, %eax
	jz refuse
	cmpl $0x1000, %eax
	jae refuse
	incl %eax
	imull $XI_VCPU_BYTES, %eax
	cmpl 12(%ebx), %eax
	ja refuse

	movl %edi, %ebp
	xorl %eax, %eax
	movl $HOST_TABLES_BYTES / 4, %ecx
	rep stosl
	leal HOST_PDPT | PTE_TABLE(%ebp), %eax
	movl %eax, HOST_PML4(%ebp)
	movl %eax, HOST_PML4 + DIRECT_SLOT * 8(%ebp)
	leal HOST_PML4 | PTE_TABLE(%ebp), %eax
	movl %eax, HOST_PML5(%ebp)
	movl %eax, HOST_PML5 + 511 * 8(%ebp)
	leal HOST_PDS | PTE_TABLE(%ebp), %eax
	leal HOST_PDPT(%ebp), %edi
	movl $4, %ecx
1:	movl %eax, (%edi)
	addl $4096, %eax
	addl $8, %edi
	loop 1b
	movl $PTE_LARGE, %eax
	leal HOST_PDS(%ebp), %edi
	movl $4 * 512, %ecx
1:	movl %eax, (%edi)
	addl $2 << 20, %eax
	addl $8, %edi
	loop 1b

/* Every processor of a live machine. EBX is the boot info. */
long_mode:
	movl $CR4_PAE, %eax
	movl %eax, %cr4
	movl 8(%ebx), %ebp
	leal HOST_PML4(%ebp), %eax
	movl %eax, %cr3
	movl $MSR_EFER, %ecx
	movl $EFER_LME | EFER_NXE | EFER_SVME, %eax
	xorl %edx, %edx
	wrmsr
	movl $CR0_ON, %eax
	movl %eax, %cr0
	ljmpl $CODE64_SELECTOR, $upwards

	.code64
upwards:
	movabsq $monitor_entry, %rax
	jmp *%rax

/* The monitor comes here to change between four and five levels, which needs paging to be off: EAX is the new CR4, EDX
 * the new CR3, EBP the vCPU's block. Only their lower halves survive the way. */
	.globl change_levels
change_levels:
	ljmpl *change_pointer(%rip)
	.code32
2:	movl %cr0, %ecx
	andl $~CR0_PG, %ecx
	movl %ecx, %cr0
	movl %eax, %cr4
	movl %edx, %cr3
	orl $CR0_PG, %ecx
	movl %ecx, %cr0
	ljmpl $CODE64_SELECTOR, $1f
	.code64
1:	movabsq $levels_changed, %rax
	jmp *%rax
change_pointer:
	.long 2b
	.word CODE_SELECTOR

	.code32
/* Prints the line at ESI and ends QEMU. */
refuse:
	movl $XI_EXIT_NO_GUEST, %edi
refuse_with: /* with the status in EDI */
	movl $COM1, %edx
1:	lodsb
	testb %al, %al
	jz 2f
	outb %al, %dx
	jmp 1b
2:	movl $XI_EXIT_PORT, %edx
	movl %edi, %eax
	outl %eax, %dx
halt:	hlt /* no exit device: stay here, in sight of a debugger */
	jmp halt

no_boot_info:
	.asciz "xi-firmware: no boot info at 0x500: no guest was loaded into RAM\r\n"
bad_entry:
	.asciz "xi-firmware: the boot info's entry lies outside RAM\r\n"
no_svm:
	.asciz "xi-firmware: this processor has no SVM: live mode needs -cpu max, or a model with +svm\r\n"
bad_area:
	.asciz "xi-firmware: the boot info's monitor area makes no sense\r\n"

/* Pairs of register offset and value: DLAB, divisor 1, 8N1, FIFO on, DTR and RTS. */
uart_setup:
	.byte 1, 0x00, 3, 0x80, 0, 0x01, 1, 0x00, 3, 0x03, 2, 0x07, 4, 0x03
uart_setup_end:

/* Flat segments, with the accessed bit set beforehand: the processor cannot set it in a ROM. */
	.balign 8
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff
	.quad 0x00cf93000000ffff
	.quad 0x00af9b000000ffff
gdt_pointer:
	.word gdt_pointer - gdt - 1
	.long gdt

/* The monitor's IDT: NMIs, which make a guest leave, are dropped. Nothing else is expected. */
	.balign 8
idt:
	.fill 2 * 16, 1, 0
	.word drop_nmi - real_mode, CODE64_SELECTOR, 0x8e00, ROM >> 16
	.quad 0
	.globl idt_pointer
idt_pointer:
	.word idt_pointer - idt - 1
	.quad idt
	.code64
drop_nmi:
	iretq

	.section .reset, "ax"
	.code16
	jmp real_mode
