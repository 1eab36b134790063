/* COM1, polled, and the little of printf that the guests need. */
#include "xi_lib.h"

#define COM1 0x3f8
#define LINE_STATUS 5
#define TRANSMITTER_EMPTY 0x20
#define PATIENCE 1000000 /* polls before a character is dropped: a dead console must not hang the guest */

static void out8(u16 port, u8 value)
{
	asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static u8 in8(u16 port)
{
	u8 value;

	asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static void put(char c)
{
	for (int i = 0; i < PATIENCE; i++) {
		if (in8(COM1 + LINE_STATUS) & TRANSMITTER_EMPTY) {
			out8(COM1, (u8)c);
			return;
		}
	}
}

void xi_puts(const char *s)
{
	while (*s)
		put(*s++);
}

static void put_hex(u64 value)
{
	int shift = 60;

	while (shift && !(value >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		put("0123456789abcdef"[(value >> shift) & 15]);
}

static void put_decimal(u32 value)
{
	char digits[11];
	char *at = digits + sizeof(digits) - 1;

	*at = 0;
	do
		*--at = (char)('0' + value % 10);
	while (value /= 10);
	xi_puts(at);
}

void xi_vprintf(const char *format, __builtin_va_list args)
{
	for (; *format; format++) {
		int value;

		if (*format != '%') {
			put(*format);
			continue;
		}
		switch (*++format) {
		case 's':
			xi_puts(__builtin_va_arg(args, const char *));
			break;
		case 'd':
			value = __builtin_va_arg(args, int);
			if (value < 0)
				put('-');
			put_decimal(value < 0 ? 0u - (u32)value : (u32)value);
			break;
		case 'u':
			put_decimal(__builtin_va_arg(args, u32));
			break;
		case 'x':
			put_hex(__builtin_va_arg(args, u32));
			break;
		case 'p':
			xi_puts("0x");
			put_hex(__builtin_va_arg(args, uptr));
			break;
		case 'l': /* %lx: a u64 in every mode */
			if (format[1] == 'x')
				format++;
			put_hex(__builtin_va_arg(args, u64));
			break;
		case 0:
			return;
		default:
			put(*format);
		}
	}
}

void xi_printf(const char *format, ...)
{
	__builtin_va_list args;

	__builtin_va_start(args, format);
	xi_vprintf(format, args);
	__builtin_va_end(args);
}
