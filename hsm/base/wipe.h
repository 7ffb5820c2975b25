/* free() for memory that held a secret: nothing of it is left behind.
 *
 * All that malloc gave is wiped, which may be a few bytes more than were asked for. NULL is
 * fine. */
#ifndef HSM_BASE_WIPE_H
#define HSM_BASE_WIPE_H

void wipe_free(void *memory);

/* For OWNED of scope.h. */
void scope_wipe(void *pointer);

#endif
