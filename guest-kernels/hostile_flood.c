/* hostile_flood: about a mebibyte on the console, some of it one long line and some not text at all, then an
 * ordinary end. Who reads the console must neither block the guest nor lose the TAP lines in the noise.
 */
#include "extra.h"

const unsigned xi_tests = 3;

#define COM1 0x3f8
#define LONG_LINE (256u << 10)
#define LINES 9216u

/* Straight to the port with a string instruction: faster than the polled console, and every byte value may go out.
 * The transmitter of QEMU's UART is ready at once unless its reader is slow; a byte that is lost then is noise lost. */
static void blast(const char *bytes, uptr count)
{
	asm volatile("cld; rep outsb" : "+S"(bytes), "+c"(count) : "d"(COM1) : "memory");
}

/* Every byte value but the two that end a line. */
static unsigned binary_noise(char *to)
{
	unsigned n = 0;

	for (unsigned i = 0; i < 256; i++)
		if (i != '\n' && i != '\r')
			to[n++] = (char)i;
	return n;
}

void scenario(void)
{
	static char line[80], noise[256];
	uptr frame = xi_data_frame();
	unsigned n;

	xi_map(xi_kernel_space, XI_ARENA, frame, P_URW);
	xi_flush();
	xi_ok(xi_reaches(XI_ARENA, frame), "a page mapped before the flood");
	xi_checkpoint("before the flood");

	for (unsigned i = 0; i < sizeof(line) - 1; i++)
		line[i] = (char)('!' + i);
	line[0] = '#';
	line[sizeof(line) - 1] = '\n';
	for (unsigned i = 0; i < LINES; i++)
		blast(line, sizeof(line));
	xi_puts("\n# one long line: ");
	for (unsigned i = 0; i < LONG_LINE / 64; i++)
		blast(line, 64);
	xi_puts("\n# not text: ");
	n = binary_noise(noise);
	for (unsigned i = 0; i < 64; i++)
		blast(noise, n);
	xi_puts("\n");

	xi_ok(xi_reaches(XI_ARENA, frame), "the page is still there after the flood");
	xi_unmap(xi_kernel_space, XI_ARENA);
	xi_invlpg(XI_ARENA);
	xi_ok(xi_faulted(xi_try_store(XI_ARENA, 1), PF_W), "and can be unmapped");
	xi_checkpoint("after the flood");
}
