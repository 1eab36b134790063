/* SVM as the monitor needs it: the VMCB's fields and exit codes. Source: AMD APM vol. 2, appendices B and C. */
#ifndef XI_SVM_H
#define XI_SVM_H

#define MSR_EFER 0xc0000080
#define EFER_LME 0x100
#define EFER_NXE 0x800
#define EFER_SVME 0x1000
#define MSR_VM_HSAVE_PA 0xc0010117

#define VMEXIT_EXCEPTION 0x40 /* + vector */
#define VMEXIT_EXCEPTION_PF (VMEXIT_EXCEPTION + 14)
#define VMEXIT_NMI 0x61
#define VMEXIT_SWINT 0x75
#define VMEXIT_VMMCALL 0x81

#define TLB_FLUSH_ALL 1 /* tlb_control (15.16.2) */

#ifndef __ASSEMBLER__
struct vmcb_segment {
	unsigned short selector;
	unsigned short attributes;
	unsigned int limit;
	unsigned long long base;
};

struct vmcb {
	unsigned char to_asid[0x58];
	unsigned int asid;
	unsigned char tlb_control;
	unsigned char to_interrupt_shadow[0x68 - 0x5d];
	unsigned long long interrupt_shadow;
	unsigned long long exitcode;
	unsigned long long exitinfo1;
	unsigned long long exitinfo2;
	unsigned long long exitintinfo;
	unsigned char to_eventinj[0xa8 - 0x90];
	unsigned long long eventinj;
	unsigned char to_save[0x400 - 0xb0];
	struct vmcb_segment es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
	unsigned char to_cpl[0x4cb - 0x4a0];
	unsigned char cpl;
	unsigned char to_cr3[0x550 - 0x4cc];
	unsigned long long cr3;
	unsigned char to_rflags[0x570 - 0x558];
	unsigned long long rflags;
	unsigned long long rip;
	unsigned char to_rax[0x5f8 - 0x580];
	unsigned long long rax;
	unsigned char to_end[0x1000 - 0x600];
};
#endif
#endif
