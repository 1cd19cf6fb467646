/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SHA256_H
#define SHA256_H

#include <stdint.h>

#pragma GCC visibility push(hidden)

struct sha256 {
	uint32_t state[8];
	uint64_t length; /* bytes hashed so far */
	uint8_t pending[64]; /* the first length % 64 are waiting for the rest */
};

void sha256_begin(struct sha256 *hash);
void sha256_add(struct sha256 *hash, const uint8_t *data, uint64_t size);
void sha256_end(struct sha256 *hash, uint8_t digest[32]);

#endif
