/* The block previous in the commands: which keys a start would adopt, and whether the block can
 * go. */
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "plugin/command/command_private.h"
#include "plugin/keys/loss.h"
#include "plugin/keys/previous.h"
#include "plugin/keys/source.h"

struct shown {
    struct record_previous *keys; /* owned */
    size_t count;
};

static void free_shown(struct shown *shown)
{
    free(shown->keys);
}

static void retire(struct source **source)
{
    if (*source)
        source_retire(*source);
}

static int read_there(const struct config *config, struct shown *shown, struct fault *fault)
{
    static const atomic_bool never;
    OWNED(config_wipe) struct config previous = {.kind = CONFIG_KEYMANAGER};
    OWNED(retire) struct source *source = NULL;

    if (!config_previous(config, &previous))
        return fault_set(fault, FAULT_NOT_FOUND, "there is no block previous");
    if (source_open(&previous, true, &source, fault) != 0)
        return -1;
    return source_read(source, clock_now(), &never, &shown->keys, &shown->count, fault);
}

static void tell_places(const struct record *record, struct command_previous *found)
{
    size_t left = previous_left(record);

    found->left = left;
    found->moved = record->previous_count - left;
    for (size_t i = 0; i < record->previous_count; i++) {
        const struct record_previous *key = &record->previous[i];
        size_t used = strlen(found->needed);

        if (previous_is_needed(record, key))
            (void)snprintf(found->needed + used, sizeof found->needed - used, "%s%s",
                           used > 0 ? ", " : "", key->key_id);
    }
}

int command_previous_of(const struct config *config, struct record *record,
                        struct command_previous *found, struct fault *fault)
{
    OWNED(free_shown) struct shown shown = {.keys = NULL};
    const struct record_key *taken;
    enum previous_verdict verdict;

    *found = (struct command_previous){.given = config->keymanager.has_previous};
    if (!found->given) {
        tell_places(record, found);
        return 0;
    }
    if (read_there(config, &shown, fault) != 0) {
        tell_places(record, found);
        return found->moved > 0 && found->left == 0 ? 0 : -1;
    }
    verdict = previous_verdict(record, shown.keys, shown.count, &taken);
    found->refused = verdict == PREVIOUS_REFUSE;
    previous_code(shown.keys, shown.count, found->code);
    if (found->refused)
        (void)snprintf(found->needed, sizeof found->needed, "%s", taken->label.key_id);
    else if (verdict == PREVIOUS_KNOWN)
        tell_places(record, found);
    else
        found->adopts = shown.count;
    if (verdict == PREVIOUS_ADOPT && previous_adopt(record, shown.keys, shown.count) != 0)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    return 0;
}
