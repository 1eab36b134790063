/* What the SVM monitor in the ROM and the harness share in memory in live mode.
 *
 * harness/machine/monitor_abi.py holds the same layout as numpy dtypes; tests/machine/test_monitor_abi.py compiles
 * this header and svm.h and compares sizes, offsets and constants.
 *
 * The harness (the controller) writes the boot info below before reset. Each vCPU then enters the monitor, fills in
 * its `struct xi_vcpu` and hands over: it counts `exits` up and waits until `answered` equals it. The controller looks
 * at what it got, writes `command` and its arguments, and sets `answered`.
 */
#ifndef XI_MONITOR_H
#define XI_MONITOR_H

/* At XI_BOOT_INFO (xi_abi.h), in place of a guest's boot info: u32 magic; u32 vcpus; u32 area; u32 area_bytes */
#define XI_MONITOR_MAGIC 0x4e4d4958u /* "XIMN" */

/* The monitor's area: `area` is a machine address, 1 MiB aligned and not 0. At its start are the host page tables. */
#define XI_AREA_TABLES_BYTES 0x8000u
#define XI_AREA_MSRPM 0x8000u /* 8 KiB, the harness's */
#define XI_AREA_IOPM 0xa000u  /* 12 KiB, the harness's */
#define XI_VCPU_BYTES 0x10000u /* the block of vCPU k is at area + (k + 1) * XI_VCPU_BYTES */

/* In the block of one vCPU. */
#define XI_VCPU_MAILBOX 0x0000u /* struct xi_vcpu */
#define XI_VCPU_VMCB 0x1000u    /* the guest's VMCB */
#define XI_VCPU_HSAVE 0x2000u   /* the processor's host save area (VM_HSAVE_PA) */
#define XI_VCPU_PROBE_VMCB 0x3000u
#define XI_VCPU_STACK 0x4000u
#define XI_VCPU_STACK_BYTES 0x2000u
#define XI_VCPU_PROBE_TABLES 0x6000u /* the harness's: a copy of the shadow's root, stub tables, stub code */
#define XI_VCPU_PROBE_BYTES 0x6000u
#define XI_VCPU_BUFFER 0xc000u
#define XI_VCPU_BUFFER_BYTES 0x4000u

/* xi_vcpu.magic, written last: the vCPU stands at its first hand-over */
#define XI_VCPU_MAGIC 0x55435658u /* "XVCU" */
#define XI_MONITOR_VERSION 1u

/* xi_vcpu.features */
#define XI_FEATURE_PKU 1u

/* xi_vcpu.command. Addresses are machine addresses below 4 GiB. */
#define XI_RUN 0          /* VMLOAD, VMRUN, VMSAVE of `vmcb` */
#define XI_CPUID 1u       /* EAX, ECX -> EAX, EBX, ECX, EDX */
#define XI_COPY 2u        /* to, from, bytes; by the processor: QEMU then drops translated code of `to` */
#define XI_RUN_PROBES 3u  /* address of struct xi_probe[], how many, PKRU -> how many were run */
#define XI_READ 4u        /* address, size 1, 2, 4 or 8 -> the value; one access, as devices need it */
#define XI_WRITE 5u       /* address, size, value */

/* Probes (struct xi_probe of xi_abi.h). Each is one VMRUN of the probe VMCB with CR3 = probe_root[r] and ASID
 * XI_PROBE_ASID + r, all ASIDs flushed before the first. The stub code is mapped at probe_stub[r] for ring 0 and at the
 * page after it for ring 3. r is 1 where the probe's `op` has XI_SECOND_ROOT: for addresses behind the root's entry that
 * holds the stub under root 0. An exit that is no answer leaves XI_NOT_RUN and the exit code in `code`. */
#define XI_SECOND_ROOT 8u
#define XI_PROBE_ASID 1u
#define XI_STUB_LOAD 0x00u
#define XI_STUB_STORE 0x10u
#define XI_STUB_FETCH 0x20u

/* CR4's PSE, PGE, LA57, SMEP and SMAP mean nothing to the monitor. But where they differ between host and guest, QEMU
 * (7.2) flushes its TLB once more at VMRUN and once more at #VMEXIT, and flushing is half the cost of an exit. */
#define XI_HOST_CR4 0x301090u

#ifndef __ASSEMBLER__
struct xi_vcpu {
	unsigned int magic;
	unsigned int version;
	unsigned int index;
	unsigned int features;
	unsigned long long exits;    /* counted up at each hand-over; 1 at the first, when the vCPU is ready */
	unsigned long long answered; /* the controller sets it to `exits` to hand back */
	unsigned int command;
	unsigned int pkru; /* the guest's: loaded before VMRUN, stored after #VMEXIT */
	unsigned long long vmcb;
	unsigned long long argument[4];
	unsigned long long result[4];
	unsigned long long gpr[16]; /* hardware numbering; RAX and RSP are in the VMCB */
	unsigned long long probe_root[2];
	unsigned long long probe_stub[2];
	unsigned long long host_cr4; /* which of XI_HOST_CR4 the monitor has set: best as the VMCB has them */
};
#endif

/* What the assembly code needs of struct xi_vcpu. */
#define VCPU_MAGIC 0
#define VCPU_VERSION 4
#define VCPU_INDEX 8
#define VCPU_FEATURES 12
#define VCPU_EXITS 16
#define VCPU_ANSWERED 24
#define VCPU_COMMAND 32
#define VCPU_PKRU 36
#define VCPU_VMCB 40
#define VCPU_GPR 112
#define VCPU_HOST_CR4 272

#endif
