/* hostile_mmio: entries and whole tables that point at devices and at the firmware ROM. What a leaf leads to is only
 * loaded from, or stored to where a store is ignored; nothing is fetched from a device.
 */
#include "extra.h"

const unsigned xi_tests = 9u + (XI_LEVELS > 3);

#define SPAN (xi_span(2))
#define LOCAL_APIC 0xfee00000ul
#define IO_APIC 0xfec00000ul
#define HPET 0xfed00000ul
#define VGA_TEXT 0xb8000ul      /* no display adapter: nothing answers */
#define ROM_TOP 0xfffff000ul    /* the last page below 4 GiB, where the reset vector is */
#define ROM_LOW 0xff000ul       /* the same page as seen below 1 MiB */
#define APIC_VERSION 0x30ul

static space_t s;

static void device_pages(void)
{
	static const uptr devices[] = { LOCAL_APIC, IO_APIC, HPET, VGA_TEXT, ROM_TOP, ROM_LOW };
	unsigned completed = 0, same = 0;
	u32 value, low, high;

	for (uptr i = 0; i < 6; i++)
		xi_map(s, XI_ARENA + i * PAGE, devices[i], P_RW | P_PCD | P_PWT);
	xi_flush();
	for (uptr i = 0; i < 6; i++)
		completed += xi_try_load(XI_ARENA + i * PAGE, &value) == 0;
	xi_ok(completed == 6, "a load from each device's page completes");
	xi_ok(xi_try_load(XI_ARENA + APIC_VERSION, &value) == 0 && (value & 0xf0) == 0x10,
	      "the local APIC tells its version");
	for (uptr at = 0; at < PAGE; at += 64) {
		xi_try_load(XI_ARENA + 4 * PAGE + at, &high);
		xi_try_load(XI_ARENA + 5 * PAGE + at, &low);
		same += high == low;
	}
	xi_ok(same == PAGE / 64, "the firmware ROM is the same at both of its addresses");
	xi_try_load(XI_ARENA + 4 * PAGE + 0xff0, &high);
	xi_ok(xi_try_store(XI_ARENA + 4 * PAGE + 0xff0, ~high) == 0 &&
		      xi_try_load(XI_ARENA + 4 * PAGE + 0xff0, &low) == 0 && low == high,
	      "a store to the ROM is lost");
	xi_ok(xi_faulted(xi_try_user_load(XI_ARENA, &value), PF_P | PF_U), "ring 3 is kept out as from any page");
	xi_checkpoint("pages that are devices");

	xi_map_large(s, XI_ARENA + 4 * SPAN, LOCAL_APIC & ~(SPAN - 1), P_RW | P_PCD, 2);
	xi_ok(xi_try_load(XI_ARENA + 4 * SPAN + (LOCAL_APIC & (SPAN - 1)) + APIC_VERSION, &value) == 0 &&
		      (value & 0xf0) == 0x10,
	      "the local APIC inside a large page");
	xi_checkpoint("a large page over devices");
}

/* A walk through such a table reads a device's registers as entries. What it finds there is the device's affair; where
 * it finds zero the access faults as not present, and it must do no harm anywhere. */
static void device_tables(void)
{
	u32 value;

	xi_link(s, XI_ARENA + 6 * SPAN, 2, VGA_TEXT);
	xi_flush();
	xi_ok(xi_try_load(XI_ARENA + 6 * SPAN + 5 * PAGE, &value) & XI_PF,
	      "a table where no device answers maps nothing");
	xi_checkpoint("a table in the VGA hole");
#if XI_LEVELS > 3
	xi_link(s, XI_ARENA + 2 * xi_span(3), 3, VGA_TEXT);
	xi_flush();
	xi_ok(xi_try_load(XI_ARENA + 2 * xi_span(3) + 5 * SPAN, &value) & XI_PF, "nor does a directory");
	xi_checkpoint("a directory in the VGA hole");
#endif
	xi_link(s, XI_ARENA + 7 * SPAN, 2, LOCAL_APIC);
	xi_link(s, XI_ARENA + 8 * SPAN, 2, HPET);
	xi_link(s, XI_ARENA + 9 * SPAN, 2, ROM_TOP);
	xi_flush();
	xi_ok(xi_try_load(XI_ARENA + 7 * SPAN, &value) & XI_PF,
	      "the first word of the local APIC is zero: not present");
	xi_checkpoint("tables that are device registers and ROM");
}

void scenario(void)
{
	uptr frame = xi_data_frame();

	s = xi_space_new();
	xi_space_load(s);
	device_pages();
	device_tables();
	for (uptr i = 0; i < 6; i++)
		xi_unmap(s, XI_ARENA + i * PAGE);
	for (uptr i = 4; i < 10; i++)
		xi_unlink(s, XI_ARENA + i * SPAN, 2);
	xi_flush();
	xi_map(s, XI_ARENA + 7 * SPAN, frame, P_URW);
	xi_ok(xi_reaches(XI_ARENA + 7 * SPAN, frame), "a real table in the place of a device");
	xi_checkpoint("devices removed");
}
