/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * First and last instructions of the purgatory.
 *
 * Entered from relocate_kernel (arch/x86/kernel/relocate_kernel_64.S): long
 * mode, identity page tables, interrupts off, no usable GDT or IDT, registers
 * and stack undefined. Nothing in here is written to but the stack page, so the
 * code can be compared with the file it came from at any time.
 */
#include "parameter_block.h"

/* Documentation/arch/x86/boot.rst, "64-bit Boot Protocol" */
#define BOOT_CS 0x10
#define BOOT_DS 0x18

	.section .text.entry, "ax", @progbits
	.code64
	.globl purgatory_start
purgatory_start:
	cli
	cld
	leaq	stack_top(%rip), %rsp

	/* The GDT pointer needs an absolute address: make it on the stack. */
	subq	$16, %rsp
	movw	$(gdt_end - gdt - 1), (%rsp)
	leaq	gdt(%rip), %rax
	movq	%rax, 2(%rsp)
	lgdt	(%rsp)
	addq	$16, %rsp

	movl	$BOOT_DS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs

	leaq	1f(%rip), %rax
	pushq	$BOOT_CS
	pushq	%rax
	lretq
1:
	leaq	parameter_block(%rip), %rdi
	call	purgatory_check		/* returns only if all is well */

	/* The kernel wants boot_params in rsi; no other register is defined. */
	movq	parameter_block + BLOCK_BOOT_PARAMS(%rip), %rsi
	xorl	%eax, %eax
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	xorl	%r8d, %r8d
	xorl	%r9d, %r9d
	xorl	%r10d, %r10d
	xorl	%r11d, %r11d
	xorl	%r12d, %r12d
	xorl	%r13d, %r13d
	xorl	%r14d, %r14d
	xorl	%r15d, %r15d
	jmp	*parameter_block + BLOCK_KERNEL_ENTRY(%rip)

	.section .rodata, "a", @progbits
	.balign 16
gdt:
	.quad	0
	.quad	0
	/* Flat 4 GiB; "accessed" is set already, so that no load writes here. */
	.quad	0x00af9b000000ffff	/* 0x10: 64-bit code, execute and read */
	.quad	0x00cf93000000ffff	/* 0x18: data, read and write */
gdt_end:

	.section .note.GNU-stack, "", @progbits
