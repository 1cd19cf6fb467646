/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parameter block: the page behind the purgatory, last of the reservation.
 *
 * kdumphpd/image/parameter_block.py packs and parses the same layout. A change
 * here needs a new BLOCK_VERSION and the same change there.
 */
#ifndef PARAMETER_BLOCK_H
#define PARAMETER_BLOCK_H

#define BLOCK_SIZE 4096
#define BLOCK_MAGIC_SIZE 16
#define BLOCK_MAGIC "kdumphpd image\0" /* 16 bytes with the terminating one */
#define BLOCK_VERSION 1
#define BLOCK_REGIONS 16

/* For start.S; checked against the structure below. */
#define BLOCK_KERNEL_ENTRY 40
#define BLOCK_BOOT_PARAMS 48

#ifndef __ASSEMBLER__

#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

struct region {
	uint64_t address;
	uint64_t size;
};

/* Little endian, no padding between the fields, zeros up to BLOCK_SIZE. */
struct parameter_block {
	uint8_t magic[BLOCK_MAGIC_SIZE];
	uint32_t version;
	uint32_t region_count;
	uint8_t nonce[16];
	uint64_t kernel_entry;
	uint64_t boot_params;
	uint64_t elfcorehdr;
	uint64_t elfcorehdr_size;
	uint64_t control_pad;
	uint64_t control_pad_size;
	uint32_t serial_port; /* I/O base, 0 for none */
	uint32_t reserved;
	struct region regions[BLOCK_REGIONS];
	uint8_t digest[32]; /* SHA-256 of all before it, then of every region */
};

_Static_assert(sizeof(BLOCK_MAGIC) == BLOCK_MAGIC_SIZE, "magic");
_Static_assert(offsetof(struct parameter_block, version) == 16, "version");
_Static_assert(offsetof(struct parameter_block, region_count) == 20, "region_count");
_Static_assert(offsetof(struct parameter_block, nonce) == 24, "nonce");
_Static_assert(offsetof(struct parameter_block, kernel_entry) == BLOCK_KERNEL_ENTRY,
	       "kernel_entry");
_Static_assert(offsetof(struct parameter_block, boot_params) == BLOCK_BOOT_PARAMS, "boot_params");
_Static_assert(offsetof(struct parameter_block, elfcorehdr) == 56, "elfcorehdr");
_Static_assert(offsetof(struct parameter_block, control_pad) == 72, "control_pad");
_Static_assert(offsetof(struct parameter_block, serial_port) == 88, "serial_port");
_Static_assert(offsetof(struct parameter_block, regions) == 96, "regions");
_Static_assert(offsetof(struct parameter_block, digest) == 352, "digest");
_Static_assert(sizeof(struct parameter_block) == 384, "size");

#endif /* __ASSEMBLER__ */
#endif
