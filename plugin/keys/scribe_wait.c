/* Waiting for a commit. Apart from the scribe, as it needs none of its internals. */
#include <pthread.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"
#include "plugin/keys/scribe.h"

struct note {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool done;
    bool written;
};

static void noted(void *context, bool written)
{
    struct note *note = context;

    (void)pthread_mutex_lock(&note->mutex);
    note->written = written;
    note->done = true;
    (void)pthread_cond_signal(&note->changed);
    (void)pthread_mutex_unlock(&note->mutex);
}

bool scribe_commit_and_wait(struct scribe *scribe)
{
    struct note note = {.done = false};

    (void)pthread_mutex_init(&note.mutex, NULL);
    condition_open(&note.changed);
    scribe_commit(scribe, noted, &note);
    (void)pthread_mutex_lock(&note.mutex);
    while (!note.done)
        condition_wait(&note.changed, &note.mutex, clock_now() + CLOCK_SECOND / 5);
    (void)pthread_mutex_unlock(&note.mutex);
    (void)pthread_cond_destroy(&note.changed);
    (void)pthread_mutex_destroy(&note.mutex);
    return note.written;
}
