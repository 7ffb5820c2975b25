/* The start of a server with a block `previous`: which keys it adopts from there, and what is
 * served until they have moved. */
#include "plugin/keys/moving.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/scope.h"
#include "plugin/keys/loss.h"
#include "plugin/keys/previous.h"
#include "plugin/report/log.h"

/* A file is there or it is not. A token may still be coming up. */
static const int64_t token_patience = 10 * CLOCK_SECOND;

struct shown {
    struct record_previous *keys; /* owned */
    size_t count;
};

static void free_shown(struct shown *shown)
{
    free(shown->keys);
}

static const char *number(size_t value, char text[24])
{
    (void)snprintf(text, 24, "%zu", value);
    return text;
}

/* ---- the block is there ---- */

static void log_places(const struct keymanager *keymanager, const struct record *record,
                       const char *event)
{
    size_t left = previous_left(record);
    char left_text[24];
    char moved[24];

    log_write(LOG_INFO, event, "previous", source_name(keymanager->source), "left",
              number(left, left_text), "moved", number(record->previous_count - left, moved), NULL);
}

static int64_t patience(const struct keymanager *keymanager, const struct record *record,
                        bool reconfigures)
{
    int64_t wait = keymanager->config.startup_wait;
    bool file = source_is_file(keymanager->source);

    if (record->previous_count > 0 || reconfigures)
        wait = file ? 0 : clock_sooner(wait, token_patience);
    return clock_now() + wait;
}

/* The record knows the keys of `previous`, so the start can go on without it. Signatures with these
 * keys wait until it is back. */
static int go_on_without(const struct keymanager *keymanager, const struct record *record,
                         struct fault *fault)
{
    bool passes = fault->code == FAULT_UNAVAILABLE || fault->code == FAULT_DEADLINE_EXCEEDED;

    if (record->previous_count == 0)
        return -1;
    if (previous_left(record) == 0)
        log_fault(LOG_WARN, fault,
                  "previous cannot be read, and no key is served from it any more: take it out",
                  NULL);
    else if (passes)
        log_fault(LOG_WARN, fault,
                  "previous is away: signatures with its keys fail until it is back", "previous",
                  source_name(keymanager->source), NULL);
    else
        return -1;
    return 0;
}

static int refuse_old_set(const struct keymanager *keymanager, const struct record_key *taken,
                          const char *code, struct fault *fault)
{
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "previous: %s has other keys than this server has moved from, and SPIRE has "
                     "used the token's key \"%s\" (label %s) since. If it is an older copy, take "
                     "the block previous out. If this server went back to those keys and comes "
                     "again, accept them with accept_loss = \"%s\" in plugin_data or with: "
                     "spire-hsm accept %s",
                     source_name(keymanager->source), taken->label.key_id, taken->name.label, code,
                     code);
}

int moving_refuse_unrecorded(const struct keymanager *keymanager, const char *key_id,
                             const char *label, const char *code, struct fault *fault)
{
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "previous: there is no record of what has moved from %s, and the token has "
                     "key \"%s\" (label %s). If it has moved, restore record_file, or take the "
                     "block previous out. If this server signs with the keys of previous now, "
                     "accept them with accept_loss = \"%s\" in plugin_data or with: spire-hsm "
                     "accept %s",
                     source_name(keymanager->source), key_id, label, code, code);
}

static int adopt(const struct keymanager *keymanager, const struct shown *shown,
                 struct record *record, struct moving *moving, struct fault *fault)
{
    if (previous_adopt(record, shown->keys, shown->count) != 0)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    moving->adopts = true;
    log_places(keymanager, record, "keys of previous are adopted");
    return 0;
}

static int judge(struct keymanager *keymanager, bool reconfigures, const struct shown *shown,
                 struct record *record, struct moving *moving, struct fault *fault)
{
    const struct record_key *taken;
    enum previous_verdict verdict = previous_verdict(record, shown->keys, shown->count, &taken);
    char code[RECORD_CODE + 1];

    if (verdict == PREVIOUS_KNOWN) {
        log_places(keymanager, record, "previous is known: keys stay where they are served from");
        return 0;
    }
    if (reconfigures)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "previous: %s has keys that are new to this server, which takes them up "
                         "at a start: restart it (the old configuration goes on)",
                         source_name(keymanager->source));
    previous_code(shown->keys, shown->count, code);
    if (verdict == PREVIOUS_REFUSE &&
        !loss_is_told(&keymanager->config, scribe_path(keymanager->scribe), code))
        return refuse_old_set(keymanager, taken, code, fault);
    return adopt(keymanager, shown, record, moving, fault);
}

static int look_there(struct keymanager *keymanager, bool reconfigures, const atomic_bool *cancel,
                      struct record *record, struct moving *moving, struct fault *fault)
{
    OWNED(free_shown) struct shown shown = {.keys = NULL};
    int64_t deadline = patience(keymanager, record, reconfigures);

    if (source_read(keymanager->source, deadline, cancel, &shown.keys, &shown.count, fault) != 0)
        return *cancel ? -1 : go_on_without(keymanager, record, fault);
    return judge(keymanager, reconfigures, &shown, record, moving, fault);
}

/* ---- the block is not there ---- */

static bool is_any_needed(const struct record *record)
{
    for (size_t i = 0; i < record->previous_count; i++)
        if (previous_is_needed(record, &record->previous[i]))
            return true;
    return false;
}

void moving_accept(struct record *record, struct moving *moving)
{
    previous_forget(record);
    moving->without = false;
    moving->forgets = true;
}

static int do_without(bool reconfigures, struct record *record, struct moving *moving,
                      struct fault *fault)
{
    if (record->previous_count == 0)
        return 0;
    moving->without = is_any_needed(record);
    if (moving->without && reconfigures)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "previous: its keys sign still; put the block back in (the old "
                         "configuration goes on)");
    if (!moving->without)
        moving_accept(record, moving);
    return 0;
}

int moving_begin(struct keymanager *keymanager, bool reconfigures, const atomic_bool *cancel,
                 struct record *record, struct moving *moving, struct fault *fault)
{
    *moving = (struct moving){.adopts = false};
    if (!keymanager->source)
        return do_without(reconfigures, record, moving, fault);
    return look_there(keymanager, reconfigures, cancel, record, moving, fault);
}

/* ---- serving ---- */

static int serve_key(struct keymanager *keymanager, const struct record_previous *key,
                     struct fault *fault)
{
    struct label label = {.generation = 0};
    struct catalogue_key *served;
    struct catalogue_key *old = NULL;

    memcpy(label.key_id, key->key_id, sizeof label.key_id);
    served = catalogue_key_new(&label, &key->name, &key->public_key);
    if (served) {
        served->previous = true;
        served->in_use = key->in_use;
    }
    if (!served || catalogue_serve(&keymanager->catalogue, served, &old) != 0) {
        free(served);
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    }
    log_write(LOG_INFO, "key served from previous", "key_id", key->key_id, "key_type",
              hsm_key_type_name(key->public_key.type), "sha256", served->fingerprint,
              "local_authority_id", served->authority_id, "previous",
              source_name(keymanager->source), NULL);
    return 0;
}

/* If a key was made on the token and the record missed it, its id is served from the token already.
 * If nothing is served from the source, it is closed: private keys should lie in no process's
 * memory without need. */
int moving_serve(struct keymanager *keymanager, struct record *record, struct fault *fault)
{
    for (size_t i = 0; i < record->previous_count; i++) {
        const struct record_previous *key = &record->previous[i];

        if (key->moved)
            continue;
        if (record_served(record, key->key_id))
            (void)previous_move(record, key->key_id);
        else if (serve_key(keymanager, key, fault) != 0)
            return -1;
    }
    if (keymanager->source && previous_left(record) == 0) {
        log_write(LOG_INFO, "no key is served from previous: the block can go", "previous",
                  source_name(keymanager->source), NULL);
        source_retire(keymanager->source);
        keymanager->source = NULL;
    }
    return 0;
}

/* ---- writing down ---- */

int moving_write(const struct moving *moving, const struct record *from, struct record *record)
{
    if (moving->forgets)
        previous_forget(record);
    if (moving->adopts && previous_adopt(record, from->previous, from->previous_count) != 0)
        return -1;
    for (size_t i = 0; i < from->previous_count; i++)
        if (from->previous[i].moved)
            (void)previous_move(record, from->previous[i].key_id);
    for (size_t i = 0; moving->adopts && i < from->count; i++)
        if (from->keys[i].state == RECORD_FOUND && !record_find(record, &from->keys[i].name) &&
            record_put(record, &from->keys[i]) != 0)
            return -1;
    return 0;
}

void moving_tell(struct keymanager *keymanager, const struct catalogue_key *key)
{
    size_t left = previous_left(scribe_edit(keymanager->scribe));
    char text[24];

    scribe_leave(keymanager->scribe);
    log_write(LOG_INFO, left > 0 ? "key moved to the token" : "the last key moved to the token",
              "key_id", key->key_id, "left_in_previous", number(left, text), NULL);
}
