/* What the library's own files share, C and assembly. Scenarios include xi_guest.h only. */
#ifndef XI_LIB_H
#define XI_LIB_H

#define SEL_CODE32 0x08
#define SEL_DATA 0x10
#define SEL_USER_CODE32 0x1b
#define SEL_USER_DATA 0x23
#define SEL_TSS 0x28 /* two slots in the long modes */
#define SEL_CODE64 0x38
#define SEL_USER_CODE64 0x43
#define GDT_SLOTS 9

#ifdef __x86_64__
#define SEL_CODE SEL_CODE64
#define SEL_USER_CODE SEL_USER_CODE64
#else
#define SEL_CODE SEL_CODE32
#define SEL_USER_CODE SEL_USER_CODE32
#endif

#define VECTORS 32 /* the exceptions; INT 0x80 comes on top */
#define VECTOR_GP 13
#define VECTOR_PF 14
#define VECTOR_PROBE_END 0x80

#define CR0_WP 0x00010000
#define CR0_PG 0x80000000
#define CR4_PSE 0x10
#define CR4_PAE 0x20
#define CR4_PGE 0x80
#define CR4_LA57 0x1000
#define CR4_SMEP 0x100000
#define CR4_SMAP 0x200000
#define CR4_PKE 0x400000
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100
#define EFER_NXE 0x800

/* Offsets in struct xi_probe; probe.c asserts them. */
#define PROBE_VA 0
#define PROBE_OP 8
#define PROBE_VALUE 12
#define PROBE_STATUS 16
#define PROBE_CODE 20
#define PROBE_CR2 24

#ifndef __ASSEMBLER__
#include "xi_guest.h"

/* What the 32-bit and the 64-bit half of a long-mode image share; the widths of its members are fixed. */
struct xi_state {
	u32 next_frame; /* byte address of the first frame never handed out; 0 before the first use */
	u32 tests;      /* TAP lines printed */
	u32 failed;
	u32 announced;  /* whether the plan is on the console */
};
extern struct xi_state xi_state;
extern struct xi_mailbox xi_mailbox;
extern char xi_image_start[], xi_image_end[], xi_user_start[], xi_user_end[];

struct xi_registers { /* as vectors.S pushes them */
#ifdef __x86_64__
	uptr r15, r14, r13, r12, r11, r10, r9, r8;
#endif
	uptr di, si, bp, dx, cx, bx, ax;
	uptr vector, code, ip, cs, flags;
};

void xi_stop(void);
void xi_access(struct xi_probe *probe); /* one access, whatever comes of it is in *probe */
extern uptr xi_vectors[VECTORS];
void xi_vector_probe_end(void);
void xi_stray_trap(struct xi_registers *r, uptr cr2) __attribute__((noreturn));

void xi_descriptors_load(void);
void xi_cpu_detect(void);
void xi_kernel_space_build(void);
void xi_checkpoint_final(void);
void xi_start_c(void);
void xi_panic(const char *format, ...) __attribute__((noreturn));
void xi_vprintf(const char *format, __builtin_va_list args);
u32 xi_rdpkru(void);
u64 xi_rdmsr(u32 msr);
void xi_wrmsr(u32 msr, u64 value);
#endif
#endif
