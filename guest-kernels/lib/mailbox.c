/* What is there once in an image, whatever its widths. */
#include "xi_lib.h"

struct xi_mailbox xi_mailbox;
struct xi_state xi_state;
u64 xi_shared[8];
