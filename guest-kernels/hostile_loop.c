/* hostile_loop: a guest that stops making progress with interrupts off. Its deadline ends the run. */
#include "extra.h"

const unsigned xi_tests = 2; /* the second can never be reported */

void scenario(void)
{
	uptr frame = xi_data_frame();

	xi_map(xi_kernel_space, XI_ARENA, frame, P_URW);
	xi_flush();
	xi_ok(xi_reaches(XI_ARENA, frame), "a page mapped");
	xi_checkpoint("before the endless loop");
	xi_puts("# looping for ever\n");
	for (;;)
		asm volatile("cli\n0:\tjmp 0b");
}
