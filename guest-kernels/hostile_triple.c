/* hostile_triple: a guest that pages as usual and then loads an empty IDT and faults. The fault cannot be delivered,
 * nor the double fault: the processor shuts down, and the run must end as a crash.
 */
#include "extra.h"

const unsigned xi_tests = 4; /* the last one can never be reported */

void scenario(void)
{
	struct { u16 limit; uptr base; } __attribute__((packed)) no_idt = { 0, 0 };
	space_t s = xi_space_new();
	uptr frame = xi_data_frame(), other = xi_data_frame();

	xi_map(s, XI_ARENA, frame, P_URW);
	xi_space_load(s);
	xi_ok(xi_reaches(XI_ARENA, frame), "a page mapped");
	xi_checkpoint("before the crash: a page mapped");
	xi_map(s, XI_ARENA, other, P_UR);
	xi_invlpg(XI_ARENA);
	xi_ok(xi_reaches(XI_ARENA, other), "and moved");
	xi_unmap(s, XI_ARENA);
	xi_flush();
	xi_ok(xi_faulted(xi_try_store(XI_ARENA, 1), PF_W), "and unmapped");
	xi_checkpoint("before the crash: a page unmapped");
	xi_puts("# loading an empty IDT\n");
	asm volatile("lidt %0" : : "m"(no_idt));
	*xi_word(XI_ARENA) = 1;
	xi_ok(0, "still running after a fault that nothing can take");
}
