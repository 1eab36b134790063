/* From start.S to the scenario and out again. */
#include "xi_lib.h"

void __attribute__((weak)) xi_before_paging(void)
{
}

static void paging_on(void)
{
	uptr cr4 = xi_cr4() | CR4_PSE | (xi_has_pge ? CR4_PGE : 0);

#ifdef XI_PAE
	cr4 |= CR4_PAE;
#endif
	xi_set_cr4(cr4);
	if (xi_has_nx)
		xi_set_efer(xi_efer() | EFER_NXE);
	xi_space_load(xi_kernel_space);
	xi_set_cr0(xi_cr0() | CR0_PG | CR0_WP);
}

void xi_start_c(void)
{
	xi_ram_bytes = ((const volatile u32 *)XI_BOOT_INFO)[2];
	xi_descriptors_load();
	xi_cpu_detect();
	if (!xi_state.announced)
		xi_printf("TAP version 13\n1..%u\n", xi_tests);
	xi_state.announced = 1;
#ifndef __x86_64__
	xi_before_paging();
#endif
	xi_kernel_space_build();
	paging_on();
	scenario();
#ifdef XI_HALF32
	xi_set_cr0(xi_cr0() & ~(uptr)CR0_PG); /* start.S goes on to the long mode */
#else
	xi_checkpoint_final();
	if (xi_state.tests != xi_tests)
		xi_printf("# %u tests were planned, %u ran\n", xi_tests, xi_state.tests);
	xi_exit(xi_state.failed || xi_state.tests != xi_tests ? XI_EXIT_FAIL : XI_EXIT_PASS);
#endif
}
