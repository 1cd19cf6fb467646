/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A line of text for whoever looks at the machine after the crash. The port was
 * set up by the kernel that died, if it was its console; nothing is changed.
 */

#include "console.h"

#define TRANSMIT 0 /* 16550 registers, as offsets from the base */
#define LINE_STATUS 5
#define TRANSMITTER_READY 0x20
#define NO_PORT 0xff /* an empty bus reads as ones */

/*
 * How often to ask for TRANSMITTER_READY. A read of a legacy port takes about
 * 1 us, a character at 9600 baud 1 ms; this is far more, and yet bounded.
 */
#define PATIENCE 100000

#define VGA_TEXT 0xb8000UL
#define VGA_COLUMNS 80
#define VGA_ROWS 25
#define WHITE_ON_RED 0x4f00

static inline uint8_t in_byte(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline void out_byte(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

/* Nonzero if the port took the byte. */
static int serial_byte(uint16_t port, uint8_t byte)
{
	for (uint32_t i = 0; i < PATIENCE; i++) {
		uint8_t status = in_byte(port + LINE_STATUS);

		if (status == NO_PORT)
			return 0;
		if (status & TRANSMITTER_READY) {
			out_byte(port + TRANSMIT, byte);
			return 1;
		}
	}
	return 0;
}

static int serial_text(uint16_t port, const char *text)
{
	while (*text)
		if (!serial_byte(port, (uint8_t)*text++))
			return 0; /* the port is missing or stuck: no more waiting */
	return 1;
}

/* Whole rows from the top of the screen; what stood there is of no more use. */
static void screen_text(const char *text)
{
	volatile uint16_t *cells = (volatile uint16_t *)VGA_TEXT;
	uint32_t cell = 0;

	while (cell < VGA_COLUMNS * VGA_ROWS && (*text || cell % VGA_COLUMNS))
		cells[cell++] = WHITE_ON_RED | (*text ? (uint8_t)*text++ : ' ');
}

void console_line(const char *line, uint32_t serial_port)
{
	uint16_t port = (uint16_t)serial_port;

	if (port && serial_text(port, "\r\n") && serial_text(port, line))
		serial_text(port, "\r\n");
	/*
	 * Last, should it not be there. The identity page tables hold the first
	 * MiB: init_mem_mapping (arch/x86/mm/init.c) always maps it, and
	 * init_pgtable (machine_kexec_64.c) follows pfn_mapped.
	 */
	screen_text(line);
}
