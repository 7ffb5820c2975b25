#include "hsm/base/wipe.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

/* A function of its own file: where the compiler can see the malloc, a hardened build takes what
 * lies behind the bytes that were asked for to be beyond the end. */
void wipe_free(void *memory)
{
    if (memory)
        explicit_bzero(memory, malloc_usable_size(memory));
    free(memory);
}

void scope_wipe(void *pointer)
{
    wipe_free(*(void **)pointer);
}
