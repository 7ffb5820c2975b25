/* The numbers that key pairs of one scope get: each is new, and higher than any that was seen. */
#ifndef PLUGIN_KEYS_GENERATIONS_H
#define PLUGIN_KEYS_GENERATIONS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "hsm/base/fault.h"

struct generations {
    pthread_mutex_t mutex;
    uint32_t highest; /* ever seen */
};

void generations_open(struct generations *generations);
void generations_close(struct generations *generations);

/* Notes a generation that is on the token, or in the record. */
void generations_saw(struct generations *generations, uint32_t generation);

/* A new one, which counts as seen. FAULT_INTERNAL: none are left (label.h). */
int generations_next(struct generations *generations, uint32_t *generation, struct fault *fault);

/* The present as a generation, by the calendar's clock; 0: there is none for it. */
uint32_t generations_now(void);

/* Is this generation at least so old, by the calendar's clock? `age` in ns, 0 is always past. */
bool generations_is_past(uint32_t generation, int64_t age);

#endif
