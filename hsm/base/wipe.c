/* Memory that held a secret is overwritten before it is freed. */
#include "hsm/base/wipe.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

/* This function has a file of its own so that the compiler cannot see the malloc. A hardened build
 * knows the size that was asked for, and takes the bytes behind it for out of bounds. */
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
