/* Frames of RAM, handed out from the end of the image upwards and never taken back. */
#include "xi_lib.h"

uptr xi_ram_bytes;

uptr xi_frames(unsigned n, uptr align)
{
	uptr at = xi_state.next_frame ? xi_state.next_frame : (uptr)xi_image_end;

	if (align < PAGE)
		align = PAGE;
	at = (at + align - 1) & ~(align - 1);
	if (at > xi_ram_bytes || n > (xi_ram_bytes - at) / PAGE)
		xi_panic("RAM is used up: %u frames wanted at %p", n, at);
	xi_state.next_frame = (u32)(at + n * PAGE);
	return at;
}

uptr xi_data_frame(void)
{
	return xi_frames(1, PAGE);
}

uptr xi_frame(void)
{
	uptr at = xi_frames(1, PAGE);

	memset((void *)at, 0, PAGE);
	return at;
}

u32 xi_tag(uptr gfn)
{
	return 0x5a000000u | (u32)(gfn << 1);
}
