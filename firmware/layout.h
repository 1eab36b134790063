/* Where the monitor is in its own address space.
 *
 * All of the first 4 GiB of machine memory, and so the ROM too, are mapped at DIRECT_MAP: a range that Linux leaves to
 * hypervisors (Documentation/arch/x86/x86_64/mm.rst) and no test guest uses, so that breakpoints of QEMU's gdbstub, which
 * match virtual addresses in every address space, are the guest's alone.
 */
#ifndef XI_LAYOUT_H
#define XI_LAYOUT_H

#define DIRECT_MAP 0xffff870000000000
#define DIRECT_SLOT 270 /* its entry in the PML4 */

/* Host page tables at the start of the area. The low 4 GiB are mapped onto themselves as well: the way in and the way
 * between four and five levels need that, and GDT and IDT are there. */
#define HOST_PML4 0x0000
#define HOST_PDPT 0x1000
#define HOST_PDS 0x2000 /* four */
#define HOST_PML5 0x6000
#define HOST_TABLES_BYTES 0x7000

#define CR0_PG 0x80000000
#define CR4_PAE 0x20
#define CR4_LA57 0x1000

#define ROM 0xffff0000

#define CODE_SELECTOR 0x08
#define DATA_SELECTOR 0x10
#define CODE64_SELECTOR 0x18

#endif
