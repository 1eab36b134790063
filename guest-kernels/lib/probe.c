/* Accesses on request: the scenario's own, and those that the harness asks for at a checkpoint. */
#include "xi_lib.h"

_Static_assert(__builtin_offsetof(struct xi_probe, va) == PROBE_VA, "probe layout");
_Static_assert(__builtin_offsetof(struct xi_probe, op) == PROBE_OP, "probe layout");
_Static_assert(__builtin_offsetof(struct xi_probe, value) == PROBE_VALUE, "probe layout");
_Static_assert(__builtin_offsetof(struct xi_probe, status) == PROBE_STATUS, "probe layout");
_Static_assert(__builtin_offsetof(struct xi_probe, code) == PROBE_CODE, "probe layout");
_Static_assert(__builtin_offsetof(struct xi_probe, cr2) == PROBE_CR2, "probe layout");
_Static_assert(sizeof(struct xi_probe) == 32, "probe layout");

#define TRY_FAULT 0x80000000u
#define TRY_EXCEPTION 0x40000000u

static u32 attempt(uptr va, u32 op, u32 *value)
{
	struct xi_probe probe = { .va = va, .op = op, .value = *value };

	xi_access(&probe);
	*value = probe.value;
	if (probe.status == XI_FAULT)
		return TRY_FAULT | probe.code;
	if (probe.status == XI_EXCEPTION)
		return TRY_EXCEPTION | probe.code;
	return 0;
}

static u32 attempt_load(uptr va, u32 op, u32 *value)
{
	u32 ignored = 0;

	return attempt(va, op, value ? value : &ignored);
}

u32 xi_try_load(uptr va, u32 *value) { return attempt_load(va, XI_LOAD, value); }
u32 xi_try_store(uptr va, u32 value) { return attempt(va, XI_STORE, &value); }
u32 xi_try_fetch(uptr va) { return attempt_load(va, XI_FETCH, 0); }
u32 xi_try_user_load(uptr va, u32 *value) { return attempt_load(va, XI_USER | XI_LOAD, value); }
u32 xi_try_user_store(uptr va, u32 value) { return attempt(va, XI_USER | XI_STORE, &value); }
u32 xi_try_user_fetch(uptr va) { return attempt_load(va, XI_USER | XI_FETCH, 0); }

static void serve(volatile struct xi_mailbox *box)
{
	u32 count = box->count < XI_PROBE_MAX ? box->count : XI_PROBE_MAX;

	for (u32 i = 0; i < count; i++)
		xi_access((struct xi_probe *)&box->probes[i]);
	box->done = count;
}

static void checkpoint(const char *name, u32 flags)
{
	volatile struct xi_mailbox *box = &xi_mailbox;

	box->magic = XI_MAGIC;
	box->version = XI_ABI_VERSION;
	box->checkpoint++;
	box->flags = flags;
	box->pkru = xi_rdpkru();
	for (unsigned i = 0; i < sizeof(box->name); i++) /* NULs to the end: nothing of the last name shows through */
		box->name[i] = *name && i < sizeof(box->name) - 1 ? *name++ : 0;
	for (;;) {
		xi_stop();
		if (box->command != XI_PROBE)
			return;
		/* Taken, so that a harness that goes away leaves a guest that runs on. */
		box->command = XI_RESUME;
		serve(box);
	}
}

void xi_checkpoint(const char *name) { checkpoint(name, XI_CP_COHERENT); }
void xi_checkpoint_stale(const char *name) { checkpoint(name, XI_CP_STALE); }
void xi_checkpoint_final(void) { checkpoint("final", XI_CP_COHERENT | XI_CP_FINAL); }
