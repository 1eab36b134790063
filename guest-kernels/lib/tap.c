/* The test protocol on the console (TAP 13) and the ways to end. */
#include "xi_lib.h"

void xi_exit(u32 code)
{
	asm volatile("outl %0, %w1" : : "a"(code), "Nd"(XI_EXIT_PORT));
	for (;;)
		asm volatile("cli\n\thlt");
}

void xi_ok(int condition, const char *format, ...)
{
	__builtin_va_list args;

	if (!condition)
		xi_state.failed++;
	xi_printf("%sok %u - ", condition ? "" : "not ", ++xi_state.tests);
	__builtin_va_start(args, format);
	xi_vprintf(format, args);
	__builtin_va_end(args);
	xi_puts("\n");
}

void xi_panic(const char *format, ...)
{
	__builtin_va_list args;

	xi_puts("Bail out! ");
	__builtin_va_start(args, format);
	xi_vprintf(format, args);
	__builtin_va_end(args);
	xi_puts("\n");
	xi_exit(XI_EXIT_FAIL);
}

void xi_stray_trap(struct xi_registers *r, uptr cr2)
{
	xi_printf("# panic: vector %u code %x at %x:%p flags %x cr0 %p cr2 %p cr3 %p cr4 %p\n", (u32)r->vector,
		  (u32)r->code, (u32)r->cs, r->ip, (u32)r->flags, xi_cr0(), cr2, xi_cr3(), xi_cr4());
	xi_printf("# ax %p bx %p cx %p dx %p si %p di %p bp %p\n", r->ax, r->bx, r->cx, r->dx, r->si, r->di, r->bp);
#ifdef __x86_64__
	xi_printf("# r8 %p r9 %p r10 %p r11 %p r12 %p r13 %p r14 %p r15 %p\n", r->r8, r->r9, r->r10, r->r11, r->r12,
		  r->r13, r->r14, r->r15);
#endif
	xi_panic("exception %u outside a probe", (u32)r->vector);
}
