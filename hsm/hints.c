/* Where the last walk over the token saw each key: a second look can go there without a search. */
#include "hsm/hints.h"

#include <stdlib.h>
#include <string.h>

void hints_open(struct hints *hints)
{
    memset(hints, 0, sizeof *hints);
    (void)pthread_mutex_init(&hints->lock, NULL);
}

void hints_close(struct hints *hints)
{
    free(hints->list);
    (void)pthread_mutex_destroy(&hints->lock);
}

void hints_replace(struct hints *hints, struct hint *list, size_t count, uint32_t logins)
{
    (void)pthread_mutex_lock(&hints->lock);
    free(hints->list);
    hints->list = list;
    hints->count = count;
    hints->logins = logins;
    (void)pthread_mutex_unlock(&hints->lock);
}

static bool take_hint(struct hints *hints, const struct hsm_key_name *name,
                      struct object_pair *pair)
{
    for (size_t i = 0; i < hints->count; i++) {
        struct hint *hint = &hints->list[i];

        if (hint->name.id_length != name->id_length ||
            memcmp(hint->name.id, name->id, name->id_length) != 0 ||
            strcmp(hint->name.label, name->label) != 0)
            continue;
        *pair = hint->pair;
        *hint = hints->list[--hints->count];
        return true;
    }
    return false;
}

bool hints_take(struct hints *hints, const struct hsm_key_name *name, uint32_t logins,
                struct object_pair *pair)
{
    bool taken;

    (void)pthread_mutex_lock(&hints->lock);
    taken = hints->logins == logins && take_hint(hints, name, pair);
    (void)pthread_mutex_unlock(&hints->lock);
    return taken;
}
