/* Helpers that several scenarios share and that the start code does not need: the geometry of the built
 * paging mode, linking of tables, and checks of what an address reaches.
 */
#ifndef XI_EXTRA_H
#define XI_EXTRA_H
#include "xi_guest.h"

#define XI_ENTRIES (1u << XI_INDEX_BITS)
#define P_PWT 8ull
#define P_PCD 0x10ull
#define P_PAT_LARGE 0x1000ull              /* PAT in an entry that maps a large page */
#define CR4_PSE (1ul << 4)
#define CR4_PGE (1ul << 7)
#define EFER_NXE (1ull << 11)
#define PF_P 1u
#define PF_W 2u
#define PF_U 4u
#define PF_RSVD 8u
#define PF_I 16u
#define XI_PF 0x80000000u                  /* what xi_try_* or's into a #PF's error code */

/* The bits of an entry that hold a frame (of a 4 KiB page or of a table). */
#ifdef XI_NOPAE
#define XI_FRAME_MASK 0xfffff000ull
#else
#define XI_FRAME_MASK 0x000ffffffffff000ull
#endif

/* Rights of a scenario's usual leaf entries. */
#define P_RW (P_P | P_W)
#define P_URW (P_P | P_W | P_U)
#define P_UR (P_P | P_U)

/* ---- geometry ---- */
static inline unsigned xi_shift(int level) { return 12u + (unsigned)(level - 1) * XI_INDEX_BITS; }
static inline uptr xi_span(int level) { return (uptr)1 << xi_shift(level); }   /* bytes under one entry */
static inline unsigned xi_index(uptr va, int level) { return (unsigned)(va >> xi_shift(level)) & (XI_ENTRIES - 1); }

/* Flags of an entry at `level` that leads to a table: everything, for the leaf to restrict. A PAE PDPTE has
 * no rights bits (SDM table 4-8: bits 2:1 are reserved). */
static inline u64 xi_link_flags(int level)
{
#ifdef XI_PAE
	if (level == XI_LEVELS)
		return P_P;
#endif
	(void)level;
	return P_P | P_W | P_U | P_A;
}

/* Makes the level-`level` entry of `va` lead to the table at `table`, creating the tables above it. No flush. */
void xi_link(space_t s, uptr va, int level, uptr table);
/* Clears the level-`level` entry of `va`. No flush. */
void xi_unlink(space_t s, uptr va, int level);
/* The frame that the level-`level` entry of `va` leads to; 0 when it is not present. */
uptr xi_linked(space_t s, uptr va, int level);

/* ---- plain memory, at its identity address or through any mapping ---- */
static inline volatile u32 *xi_word(uptr address) { return (volatile u32 *)address; }

/* ---- what an address reaches ---- */
/* Whether a load through `va` shows the tag of the tagged frame `frame` (both page-aligned). */
int xi_reaches(uptr va, uptr frame);
/* Whether the last xi_try_* result is a #PF with exactly `code`. The fetch bit is left out of the comparison:
 * only some modes report it. */
int xi_faulted(u32 result, u32 code);
/* Whether it is a #PF for a reserved bit. P is not looked at: QEMU 7.2 clears it there, silicon sets it. */
int xi_faulted_reserved(u32 result);

/* ---- pseudo-random numbers, reproducible from the harness's seed ---- */
u32 xi_seed(void);                 /* the seed of the boot information */
u32 xi_random(u32 *state);         /* xorshift; *state must not be 0 */

/* Bits of a physical address that the processor implements (CPUID 0x80000008; 36 without that leaf). */
unsigned xi_physical_bits(void);
#endif
