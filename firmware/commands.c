/* What the monitor does for the controller between two runs of the guest. */
#include "../guest-kernels/lib/xi_abi.h"
#include "layout.h"
#include "svm.h"
#include "xi_monitor.h"

typedef xi_u32 u32;
typedef xi_u64 u64;

_Static_assert(__builtin_offsetof(struct xi_vcpu, magic) == VCPU_MAGIC, "vcpu layout");
_Static_assert(__builtin_offsetof(struct xi_vcpu, version) == VCPU_VERSION, "vcpu layout");
_Static_assert(__builtin_offsetof(struct xi_vcpu, index) == VCPU_INDEX, "vcpu layout");
_Static_assert(__builtin_offsetof(struct xi_vcpu, features) == VCPU_FEATURES, "vcpu layout");
_Static_assert(__builtin_offsetof(struct xi_vcpu, exits) == VCPU_EXITS, "vcpu layout");
_Static_assert(__builtin_offsetof(struct xi_vcpu, answered) == VCPU_ANSWERED, "vcpu layout");
_Static_assert(__builtin_offsetof(struct xi_vcpu, command) == VCPU_COMMAND, "vcpu layout");
_Static_assert(__builtin_offsetof(struct xi_vcpu, pkru) == VCPU_PKRU, "vcpu layout");
_Static_assert(__builtin_offsetof(struct xi_vcpu, vmcb) == VCPU_VMCB, "vcpu layout");
_Static_assert(__builtin_offsetof(struct xi_vcpu, gpr) == VCPU_GPR, "vcpu layout");
_Static_assert(__builtin_offsetof(struct xi_vcpu, host_cr4) == VCPU_HOST_CR4, "vcpu layout");
_Static_assert(sizeof(struct vmcb) == 4096, "VMCB layout");

void xi_command(struct xi_vcpu *vcpu);
void xi_run_probe(u64 vmcb, u64 va);

static void *machine(u64 address) { return (void *)(DIRECT_MAP + address); }

static void cpuid(struct xi_vcpu *vcpu)
{
	u32 a = vcpu->argument[0], b, c = vcpu->argument[1], d;

	__asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	vcpu->result[0] = a;
	vcpu->result[1] = b;
	vcpu->result[2] = c;
	vcpu->result[3] = d;
}

static void copy(struct xi_vcpu *vcpu)
{
	volatile unsigned char *to = machine(vcpu->argument[0]);
	const volatile unsigned char *from = machine(vcpu->argument[1]);
	u64 bytes = vcpu->argument[2], i = 0;

	if (((vcpu->argument[0] | vcpu->argument[1]) & 7) == 0)
		for (; i + 8 <= bytes; i += 8)
			*(volatile u64 *)(to + i) = *(const volatile u64 *)(from + i);
	for (; i < bytes; i++)
		to[i] = from[i];
}

static void read(struct xi_vcpu *vcpu)
{
	volatile void *at = machine(vcpu->argument[0]);

	switch (vcpu->argument[1]) {
	case 1: vcpu->result[0] = *(volatile unsigned char *)at; break;
	case 2: vcpu->result[0] = *(volatile unsigned short *)at; break;
	case 4: vcpu->result[0] = *(volatile u32 *)at; break;
	case 8: vcpu->result[0] = *(volatile u64 *)at; break;
	}
}

static void write(struct xi_vcpu *vcpu)
{
	volatile void *at = machine(vcpu->argument[0]);
	u64 value = vcpu->argument[2];

	switch (vcpu->argument[1]) {
	case 1: *(volatile unsigned char *)at = value; break;
	case 2: *(volatile unsigned short *)at = value; break;
	case 4: *(volatile u32 *)at = value; break;
	case 8: *(volatile u64 *)at = value; break;
	}
}

/* ---- probes */

#define ATTRIBUTES_DPL 0x60
#define RFLAGS_EMPTY 2

static void set_ring(struct vmcb_segment *segment, u32 ring)
{
	segment->selector = (segment->selector & ~3u) | ring;
	segment->attributes = (segment->attributes & ~ATTRIBUTES_DPL) | ring << 5;
}

static void take_answer(struct xi_probe *probe, const struct vmcb *vmcb)
{
	u64 code = vmcb->exitcode;

	if (code == ((probe->op & 3) == XI_FETCH ? VMEXIT_SWINT : VMEXIT_VMMCALL)) {
		probe->value = vmcb->rax;
		probe->status = XI_DONE;
		probe->code = 0;
	} else if (code == VMEXIT_EXCEPTION_PF) {
		probe->status = XI_FAULT;
		probe->code = vmcb->exitinfo1;
		probe->cr2 = vmcb->exitinfo2;
	} else if (code >= VMEXIT_EXCEPTION && code < VMEXIT_EXCEPTION + 32) {
		probe->status = XI_EXCEPTION;
		probe->code = code - VMEXIT_EXCEPTION;
	} else { /* an exit that no probe should have: its code, to be reported */
		probe->status = XI_NOT_RUN;
		probe->code = code;
	}
}

static void set_pkru(const struct xi_vcpu *vcpu, u32 pkru)
{
	if (vcpu->features & XI_FEATURE_PKU)
		__asm__ volatile("wrpkru" : : "a"(pkru), "c"(0), "d"(0));
}

static void run_probes(struct xi_vcpu *vcpu)
{
	static const unsigned char stub[4] = { XI_STUB_LOAD, XI_STUB_STORE, XI_STUB_FETCH, XI_STUB_LOAD };
	u64 address = (u64)vcpu - DIRECT_MAP + XI_VCPU_PROBE_VMCB;
	struct vmcb *vmcb = machine(address);
	struct xi_probe *probe = machine(vcpu->argument[0]);
	u64 count = vcpu->argument[1];

	set_pkru(vcpu, vcpu->argument[2]);
	for (u64 i = 0; i < count; i++, probe++) {
		u32 op = probe->op, ring = op & XI_USER ? 3 : 0, root = op & XI_SECOND_ROOT ? 1 : 0;
		u64 rip = vcpu->probe_stub[root] + (ring ? 4096 : 0) + stub[op & 3];

		set_ring(&vmcb->cs, ring);
		set_ring(&vmcb->ss, ring);
		vmcb->cpl = ring;
		vmcb->asid = XI_PROBE_ASID + root;
		vmcb->tlb_control = i == 0 ? TLB_FLUSH_ALL : 0; /* nobody but the walker writes tables meanwhile */
		vmcb->cr3 = vcpu->probe_root[root];
		vmcb->interrupt_shadow = 0;
		vmcb->eventinj = 0;
		/* NMIs come to end a fetch that ran away. One that came late has met an innocent probe, which has its turn
		 * again; no innocent one takes so long that it meets two. */
		for (int turn = 0; turn < 2; turn++) {
			vmcb->rip = rip;
			vmcb->rax = probe->value;
			vmcb->rflags = RFLAGS_EMPTY;
			xi_run_probe(address, probe->va);
			if (vmcb->exitcode != VMEXIT_NMI)
				break;
		}
		take_answer(probe, vmcb);
	}
	vcpu->result[0] = count;
}

static void (*const commands[])(struct xi_vcpu *) = {
	[XI_CPUID] = cpuid, [XI_COPY] = copy, [XI_RUN_PROBES] = run_probes, [XI_READ] = read, [XI_WRITE] = write,
};

void xi_command(struct xi_vcpu *vcpu)
{
	u32 command = vcpu->command;

	if (command < sizeof(commands) / sizeof(commands[0]) && commands[command])
		commands[command](vcpu);
}
