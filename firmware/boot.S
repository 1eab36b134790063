/* The ROM: from the reset vector to the guest's entry, nothing in between.
 *
 * The processor starts in real mode at 0xfffffff0 with the CS base at 0xffff0000, so the whole ROM is within
 * reach of near jumps and CS-relative loads. The guest is in RAM already: the harness put it there through
 * the RAM map, together with the boot info that says where to enter (guest-kernels/lib/xi_abi.h). A20 is open
 * after reset on QEMU's machines, and no device needs setting up for a guest that only polls COM1.
 */
#include "../guest-kernels/lib/xi_abi.h"

#define COM1 0x3f8
#define CODE_SELECTOR 0x08
#define DATA_SELECTOR 0x10

	.section .text, "ax"
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

	/* COM1 at 115200 8N1, no interrupts: the guest's console finds it ready. */
	movl $uart_setup, %esi
	movl $(uart_setup_end - uart_setup) / 2, %ecx
1:	movzbl (%esi), %edx
	addl $COM1, %edx
	movb 1(%esi), %al
	outb %al, %dx
	addl $2, %esi
	loop 1b

	movl $XI_BOOT_INFO, %ebx
	movl $no_boot_info, %esi
	cmpl $XI_BOOT_MAGIC, (%ebx)
	jne refuse
	movl 4(%ebx), %edx
	movl $bad_entry, %esi
	cmpl 8(%ebx), %edx /* an entry past the end of RAM would run into nothing */
	jae refuse
	movl $XI_BOOT_MAGIC, %eax
	jmp *%edx

/* Prints the line at ESI and ends QEMU. */
refuse:
	movl $COM1, %edx
1:	lodsb
	testb %al, %al
	jz 2f
	outb %al, %dx
	jmp 1b
2:	movl $XI_EXIT_PORT, %edx
	movl $XI_EXIT_NO_GUEST, %eax
	outl %eax, %dx
3:	hlt /* no exit device: stay here, in sight of a debugger */
	jmp 3b

no_boot_info:
	.asciz "xi-firmware: no boot info at 0x500: no guest was loaded into RAM\r\n"
bad_entry:
	.asciz "xi-firmware: the boot info's entry lies outside RAM\r\n"

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
gdt_pointer:
	.word gdt_pointer - gdt - 1
	.long gdt

	.section .reset, "ax"
	.code16
	jmp real_mode
