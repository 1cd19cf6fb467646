/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Between the crashed kernel and the capture kernel: prove that the image in
 * memory is the one that was loaded, or say that it is not and stop. A damaged
 * capture kernel can do worse than nothing: it has drivers and dump targets.
 */

#include "console.h"
#include "parameter_block.h"
#include "sha256.h"

#define COM1 0x3f8
#define NAME "kdumphpd purgatory: "
#define REFUSED ", not starting the crash kernel."

void purgatory_check(const struct parameter_block *block);

static _Noreturn void refuse(const char *message, uint32_t serial_port)
{
	console_line(message, serial_port);
	for (;;)
		__asm__ volatile("cli; hlt");
}

static int bytes_equal(const uint8_t *one, const uint8_t *other, uint32_t size)
{
	for (uint32_t i = 0; i < size; i++)
		if (one[i] != other[i])
			return 0;
	return 1;
}

/*
 * Every region lies in the reservation, which the control pad begins and the
 * block ends. Elsewhere there may be no page, and a fault would say nothing.
 */
static int regions_are_sane(const struct parameter_block *block)
{
	uint64_t end = (uint64_t)block;

	if (block->region_count > BLOCK_REGIONS)
		return 0;
	for (uint32_t i = 0; i < block->region_count; i++) {
		const struct region *region = &block->regions[i];

		if (region->address < block->control_pad || region->address > end ||
		    region->size > end - region->address)
			return 0;
	}
	return 1;
}

static int digest_matches(const struct parameter_block *block)
{
	uint8_t digest[sizeof(block->digest)];
	struct sha256 hash;

	sha256_begin(&hash);
	sha256_add(&hash, (const uint8_t *)block, offsetof(struct parameter_block, digest));
	for (uint32_t i = 0; i < block->region_count; i++)
		sha256_add(&hash, (const uint8_t *)block->regions[i].address,
			   block->regions[i].size);
	sha256_end(&hash, digest);
	return bytes_equal(digest, block->digest, sizeof(digest));
}

void purgatory_check(const struct parameter_block *block)
{
	/* Without the magic, the port in the block is a guess too; COM1 is a better one. */
	if (!bytes_equal(block->magic, (const uint8_t *)BLOCK_MAGIC, BLOCK_MAGIC_SIZE))
		refuse(NAME "no parameter block: memory is damaged" REFUSED, COM1);
	if (block->version != BLOCK_VERSION)
		refuse(NAME "the parameter block has another version" REFUSED,
		       block->serial_port);
	if (!regions_are_sane(block))
		refuse(NAME "the region table is damaged" REFUSED, block->serial_port);
	if (!digest_matches(block))
		refuse(NAME "SHA-256 mismatch: the crash kernel in memory is damaged, "
			    "not starting it.",
		       block->serial_port);
}
