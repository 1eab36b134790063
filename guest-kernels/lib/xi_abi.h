/* The one definition of what a guest and the harness share in memory.
 *
 * harness/machine/mailbox.py holds the same layout as a numpy dtype; tests/machine/test_mailbox.py compiles
 * this header and compares sizes and offsets.
 *
 * A guest that wants to be checked by its own probe server has a `struct xi_mailbox xi_mailbox` and a
 * function symbol `xi_stop` (`outb %al, $XI_STOP_PORT` and a return). At a checkpoint it fills in the header and
 * calls xi_stop, where the harness has a breakpoint (observe mode) or intercepts the port (live mode). On return
 * it serves `command` and calls xi_stop again until the command is XI_RESUME. With no harness attached `command`
 * is never set, and the guest just runs on.
 */
#ifndef XI_ABI_H
#define XI_ABI_H

#define XI_MAGIC 0x424d4958u /* "XIMB" */
#define XI_ABI_VERSION 1u
#define XI_PROBE_MAX 8192u

/* xi_mailbox.flags */
#define XI_CP_COHERENT 0u /* every change so far has been flushed as the architecture asks */
#define XI_CP_STALE 1u    /* changes are pending: the TLB may give the old or the new translation */
#define XI_CP_FINAL 2u    /* the last checkpoint: may be or'ed in */

/* xi_mailbox.command, harness to guest */
#define XI_RESUME 0u
#define XI_PROBE 1u

/* xi_probe.op */
#define XI_LOAD 0u
#define XI_STORE 1u
#define XI_FETCH 2u
#define XI_USER 4u /* or'ed in: from ring 3 */

/* xi_probe.status, guest to harness */
#define XI_NOT_RUN 0u
#define XI_DONE 1u      /* the access completed; `value` is what was loaded, or EAX after a fetch */
#define XI_FAULT 2u     /* #PF; `code` is the error code, `cr2` the address */
#define XI_EXCEPTION 3u /* another exception; `code` is the vector */

#ifndef __ASSEMBLER__
typedef unsigned char xi_u8;
typedef unsigned short xi_u16;
typedef unsigned int xi_u32;
typedef unsigned long long xi_u64;

struct xi_probe { /* 32 bytes */
	xi_u64 va;     /* 32-bit guests use the low half */
	xi_u32 op;
	xi_u32 value;  /* in: what a store writes; out: what a load or fetch gave */
	xi_u32 status;
	xi_u32 code;
	xi_u64 cr2;
};

struct xi_mailbox {
	xi_u32 magic;
	xi_u32 version;
	xi_u32 checkpoint; /* counts up from 1 at each checkpoint */
	xi_u32 flags;
	xi_u32 pkru;       /* as of this checkpoint; 0 where there is none */
	xi_u32 command;
	xi_u32 count;      /* how many probes to run */
	xi_u32 done;       /* how many were run */
	char name[64];     /* the checkpoint's name, NUL-terminated */
	xi_u64 reserved[20];
	struct xi_probe probes[XI_PROBE_MAX];
} __attribute__((aligned(4096)));
#endif

/* Firmware to guest: the harness writes this into guest RAM before reset; the firmware enters `entry` in
 * 32-bit protected mode: flat segments CS=0x08 DS=ES=SS=FS=GS=0x10, interrupts off, paging off, A20 on,
 * ESP = 0x7000, EAX = XI_BOOT_MAGIC, EBX = XI_BOOT_INFO. */
#define XI_BOOT_INFO 0x0500u
#define XI_BOOT_MAGIC 0x54424958u /* "XIBT" */
/* layout at XI_BOOT_INFO: u32 magic; u32 entry; u32 ram_bytes; u32 seed */

/* I/O ports: COM1 0x3f8 is the console; a 32-bit write of V to XI_EXIT_PORT ends QEMU with status (V<<1)|1. */
#define XI_EXIT_PORT 0xf4u
#define XI_EXIT_PASS 0x10u
#define XI_EXIT_FAIL 0x11u
#define XI_EXIT_NO_GUEST 0x12u /* the firmware found no boot info, or one that makes no sense */
#define XI_EXIT_NO_SVM 0x13u   /* the firmware was asked for its monitor, and the processor has no SVM */
/* A byte written here, by xi_stop, is a checkpoint in live mode. No device of the machine answers. */
#define XI_STOP_PORT 0xe4u

/* Tagged frames. Before reset the harness writes, in every RAM frame that the guest's image does not
 * occupy, 16 bytes at XI_TAG_OFFSET: code that a fetch probe can execute, a word that a load probe reads
 * and a word that a store probe writes. Guests may overwrite them at will: the harness looks before it
 * relies on one, and plants another where it must. All dwords are even, so that in a page table the
 * slot is four (or two) entries that are not present.
 *   +0  b8 imm32 cd 80 90   mov eax, code_tag(gfn); int 0x80; nop
 *   +8  u32 load_tag(gfn)
 *   +12 u32 store slot
 */
#define XI_TAG_OFFSET 0xe40u
/* INT 0x80 (DPL 3) ends a fetch probe from either ring: the handler takes EAX as the value. */

#endif
