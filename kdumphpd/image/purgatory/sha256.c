/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SHA-256 as FIPS 180-4 has it, with the message schedule kept in 16 words. */

#include "sha256.h"

/* FIPS 180-4, 4.2.2 */
static const uint32_t round_constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
	0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
	0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
	0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
	0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
	0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
	0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
	0xc67178f2,
};

static inline uint32_t rotate_right(uint32_t word, unsigned int bits)
{
	return (word >> bits) | (word << (32 - bits));
}

static inline uint32_t big_endian(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 |
	       bytes[3];
}

/* Word number t >= 16 of the schedule; w[t % 16] is word t - 16 until now. */
static inline uint32_t extend(uint32_t w[16], unsigned int t)
{
	uint32_t w2 = w[(t - 2) % 16], w15 = w[(t - 15) % 16];
	uint32_t sigma0 = rotate_right(w15, 7) ^ rotate_right(w15, 18) ^ (w15 >> 3);
	uint32_t sigma1 = rotate_right(w2, 17) ^ rotate_right(w2, 19) ^ (w2 >> 10);

	return w[t % 16] += sigma1 + w[(t - 7) % 16] + sigma0;
}

static void compress(uint32_t state[8], const uint8_t block[64])
{
	uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
	uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
	uint32_t w[16];

	for (unsigned int t = 0; t < 64; t++) {
		uint32_t word = t < 16 ? (w[t] = big_endian(block + 4 * t)) : extend(w, t);
		uint32_t sum1 = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
		uint32_t sum0 = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
		uint32_t choose = (e & f) ^ (~e & g);
		uint32_t majority = (a & b) ^ (a & c) ^ (b & c);
		uint32_t t1 = h + sum1 + choose + round_constants[t] + word;

		h = g;
		g = f;
		f = e;
		e = d + t1;
		d = c;
		c = b;
		b = a;
		a = t1 + sum0 + majority;
	}
	state[0] += a;
	state[1] += b;
	state[2] += c;
	state[3] += d;
	state[4] += e;
	state[5] += f;
	state[6] += g;
	state[7] += h;
}

void sha256_begin(struct sha256 *hash)
{
	/* FIPS 180-4, 5.3.3 */
	hash->state[0] = 0x6a09e667;
	hash->state[1] = 0xbb67ae85;
	hash->state[2] = 0x3c6ef372;
	hash->state[3] = 0xa54ff53a;
	hash->state[4] = 0x510e527f;
	hash->state[5] = 0x9b05688c;
	hash->state[6] = 0x1f83d9ab;
	hash->state[7] = 0x5be0cd19;
	hash->length = 0;
}

void sha256_add(struct sha256 *hash, const uint8_t *data, uint64_t size)
{
	uint64_t filled = hash->length % 64;

	hash->length += size;
	while (size) {
		/* Whole blocks are hashed where they lie. */
		if (!filled && size >= 64) {
			compress(hash->state, data);
			data += 64;
			size -= 64;
			continue;
		}
		hash->pending[filled++] = *data++;
		size--;
		if (filled == 64) {
			compress(hash->state, hash->pending);
			filled = 0;
		}
	}
}

void sha256_end(struct sha256 *hash, uint8_t digest[32])
{
	uint64_t bits = hash->length * 8;
	uint8_t byte = 0x80;

	/* One bit, zeros up to 8 bytes before a block's end, then the length. */
	do {
		sha256_add(hash, &byte, 1);
		byte = 0;
	} while (hash->length % 64 != 56);
	for (int shift = 56; shift >= 0; shift -= 8) {
		byte = (uint8_t)(bits >> shift);
		sha256_add(hash, &byte, 1);
	}
	for (unsigned int i = 0; i < 32; i++)
		digest[i] = (uint8_t)(hash->state[i / 4] >> (24 - 8 * (i % 4)));
}
