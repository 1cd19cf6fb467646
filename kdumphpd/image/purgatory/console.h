/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef CONSOLE_H
#define CONSOLE_H

#include <stdint.h>

#pragma GCC visibility push(hidden)

/* Show a line on the serial port (its I/O base; 0 for none) and the VGA text screen. */
void console_line(const char *line, uint32_t serial_port);

#endif
