/* What a scenario (guest-kernels/NAME.c) is written against. One image per scenario and paging mode: the
 * build defines exactly one of XI_NOPAE, XI_PAE, XI_LONG4, XI_LONG5. */
#ifndef XI_GUEST_H
#define XI_GUEST_H
#include "xi_abi.h"

typedef xi_u8 u8; typedef xi_u16 u16; typedef xi_u32 u32; typedef xi_u64 u64;
typedef unsigned long uptr;               /* as wide as a register */
#define PAGE 4096ul

#if defined(XI_NOPAE)
typedef u32 pte_t;
#define XI_LEVELS 2
#define XI_INDEX_BITS 10
#elif defined(XI_PAE)
typedef u64 pte_t;
#define XI_LEVELS 3
#define XI_INDEX_BITS 9
#elif defined(XI_LONG4)
typedef u64 pte_t;
#define XI_LEVELS 4
#define XI_INDEX_BITS 9
#else
typedef u64 pte_t;
#define XI_LEVELS 5
#define XI_INDEX_BITS 9
#endif

#define P_P 1ull
#define P_W 2ull
#define P_U 4ull
#define P_A 0x20ull
#define P_D 0x40ull
#define P_PS 0x80ull
#define P_G 0x100ull
#define P_NX (1ull << 63)                 /* only where xi_has_nx */

/* ---- the scenario's one entry point; paging is on, in the built mode, on xi_kernel_space ---- */
void scenario(void);
void xi_before_paging(void);              /* may be defined; called first of all, paging off, in 32-bit code only */
extern const unsigned xi_tests;           /* each scenario defines it: its TAP plan */

/* ---- console and TAP (serial, COM1) ---- */
void xi_puts(const char *s);
void xi_printf(const char *format, ...);  /* %s %d %u %x %lx(64-bit) %p */
void xi_ok(int condition, const char *format, ...);   /* "ok N - text" / "not ok N - text" */
void xi_exit(u32 code) __attribute__((noreturn));

/* ---- physical memory: identity-mapped in every address space below xi_ram_bytes (supervisor, writable,
 * 4 KiB pages; not 0xa0000-0xfffff, where a PC has no RAM), so tables and frames are reached at their physical
 * address. Image pages have A and D set from the start; one page of them, the ring 3 stubs, is user-accessible ---- */
extern uptr xi_ram_bytes;
uptr xi_frame(void);                      /* a fresh zeroed frame; panics when RAM is used up */
uptr xi_frames(unsigned n, uptr align);   /* n contiguous frames, not zeroed (they keep their tags) */
uptr xi_data_frame(void);                 /* a fresh frame that keeps its tag */

/* ---- address spaces ---- */
typedef struct { uptr root; } space_t;    /* root: physical address of the root table (CR3) */
extern space_t xi_kernel_space;
space_t xi_space_new(void);               /* shares the kernel's lower tables */
void xi_space_load(space_t s);            /* MOV CR3 */
pte_t *xi_entry(space_t s, uptr va, int level, int create); /* entry of va at level 1.. ; creates tables (P W U A) above it */
void xi_map(space_t s, uptr va, u64 pa, u64 flags);         /* 4 KiB, no flush */
void xi_map_large(space_t s, uptr va, u64 pa, u64 flags, int level);
void xi_unmap(space_t s, uptr va);                          /* clears the level-1 entry, no flush */
void xi_invlpg(uptr va);
void xi_flush(void);                      /* reload CR3 */
void xi_flush_global(void);               /* toggle CR4.PGE */
void xi_set_entry(pte_t *e, u64 value);   /* one store (two for 64-bit entries in 32-bit modes, low half last when setting, first when clearing P) */

/* A stretch of virtual addresses that is the scenario's own: nothing is mapped there at the start, and its
 * tables are not shared with the kernel's down to (not including) the root. At least 64 MiB. */
#if defined(XI_NOPAE) || defined(XI_PAE)
#define XI_ARENA 0x80000000ul
#define XI_ARENA2 0xc0000000ul            /* a second one, under another PAE PDPT entry */
#elif defined(XI_LONG4)
#define XI_ARENA 0x0000100000000000ul
#define XI_ARENA2 0xffff900000000000ul    /* upper half */
#else
#define XI_ARENA 0x0010000000000000ul     /* needs the fifth level */
#define XI_ARENA2 0xff90000000000000ul
#endif

/* ---- processor ---- */
extern int xi_has_nx, xi_has_smep, xi_has_smap, xi_has_pku, xi_has_1g, xi_has_pge;
uptr xi_cr0(void); void xi_set_cr0(uptr); uptr xi_cr2(void); uptr xi_cr3(void); void xi_set_cr3(uptr);
uptr xi_cr4(void); void xi_set_cr4(uptr); u64 xi_efer(void); void xi_set_efer(u64); void xi_wrpkru(u32);

#if XI_LEVELS >= 4
/* A long-mode image whose guest has `half32 = true` holds its scenario a second time, built for `pae` with
 * XI_HALF32 defined, run before the long mode is entered, its symbols prefixed with s32_. */
void xi_call32(void (*function)(void));   /* paging off, run an s32_ function, long mode again; CR3 and CR4 stay */
#endif
extern u64 xi_shared[8];                  /* one copy for both halves */
void xi_descriptors_load(void);           /* an s32_ function begins with this */

/* ---- one access of our own, for TAP checks: returns 0, or 0x80000000 | #PF code, or 0x40000000 | vector ---- */
u32 xi_try_load(uptr va, u32 *value);
u32 xi_try_store(uptr va, u32 value);
u32 xi_try_fetch(uptr va);                /* the target must hold a tag slot (xi_abi.h) */
u32 xi_try_user_load(uptr va, u32 *value);
u32 xi_try_user_store(uptr va, u32 value);
u32 xi_try_user_fetch(uptr va);
u32 xi_tag(uptr gfn);                     /* the load tag of a frame; it is at XI_TAG_OFFSET + 8 */

/* ---- checkpoints ---- */
void xi_checkpoint(const char *name);        /* coherent */
void xi_checkpoint_stale(const char *name);  /* changes are pending */

void *memset(void *, int, __SIZE_TYPE__); void *memcpy(void *, const void *, __SIZE_TYPE__);
#endif
