/* The two functions that gcc may call on its own account. */
#include "xi_guest.h"

void *memset(void *to, int value, __SIZE_TYPE__ count)
{
	void *at = to;

	asm volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(value) : "memory");
	return to;
}

void *memcpy(void *to, const void *from, __SIZE_TYPE__ count)
{
	void *at = to;

	asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(count) : : "memory");
	return to;
}
