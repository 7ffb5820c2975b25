/* The numbers of keys: each new one is higher than every number seen so far. */
#include "plugin/keys/generations.h"

#include <stddef.h>
#include <time.h>

#include "hsm/base/clock.h"
#include "plugin/keys/label.h"

void generations_open(struct generations *generations)
{
    generations->highest = 0;
    (void)pthread_mutex_init(&generations->mutex, NULL);
}

void generations_close(struct generations *generations)
{
    (void)pthread_mutex_destroy(&generations->mutex);
}

void generations_saw(struct generations *generations, uint32_t generation)
{
    (void)pthread_mutex_lock(&generations->mutex);
    if (generation > generations->highest)
        generations->highest = generation;
    (void)pthread_mutex_unlock(&generations->mutex);
}

int generations_next(struct generations *generations, uint32_t *generation, struct fault *fault)
{
    int result;

    (void)pthread_mutex_lock(&generations->mutex);
    result = label_next_generation(time(NULL), generations->highest, generation, fault);
    if (result == 0)
        generations->highest = *generation;
    (void)pthread_mutex_unlock(&generations->mutex);
    return result;
}

uint32_t generations_now(void)
{
    uint32_t now;

    return label_next_generation(time(NULL), 0, &now, NULL) == 0 ? now : 0;
}

bool generations_is_past(uint32_t generation, int64_t age)
{
    uint32_t now = generations_now();

    return age == 0 || (now > 0 && now >= generation && now - generation >= age / CLOCK_SECOND);
}
