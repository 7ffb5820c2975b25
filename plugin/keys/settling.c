/* The second half of a start: what becomes of each key that the token shows (verdict.h), and the
 * record of it. */
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/hex.h"
#include "hsm/base/scope.h"
#include "plugin/keys/loading_private.h"
#include "plugin/keys/loss.h"
#include "plugin/keys/previous.h"
#include "plugin/keys/verdict.h"
#include "plugin/report/log.h"

static const int64_t half_made_age = 3600 * CLOCK_SECOND;

/* ---- one key ---- */

static void warn_unfit(const struct inventory_item *item)
{
    static const char *const states[] = {[HSM_ABSENT] = "vanished",
                                         [HSM_HALF] = "half a key",
                                         [HSM_COMPLETE] = "not known to this server",
                                         [HSM_UNFIT] = "must not be served",
                                         [HSM_DUPLICATE] = "exists more than once",
                                         [HSM_BARE] = "half a key",
                                         [HSM_MISSIGNED] = "signs wrongly"};
    char id[2 * HSM_ID_MAX + 1];

    hex_encode(item->name.id, item->name.id_length, id);
    log_write(LOG_WARN, "key on the token is not served", "key_id", item->label.key_id, "label",
              item->name.label, "cka_id", id, "state", states[item->state], "reason", item->why,
              NULL);
}

static struct record_key recorded(struct start *start, const struct inventory_item *item)
{
    const struct record_key *key = record_find(&start->record, &item->name);
    struct record_key now = {.state = RECORD_SERVED, .label = item->label, .name = item->name};

    if (key)
        now = *key;
    else
        now.made = record_knows(&start->record, &item->name);
    if (key && key->state == RECORD_ATTEMPTED)
        now.made = true;
    if (item->proven && item->state == HSM_COMPLETE)
        now.public_key = item->public_key;
    return now;
}

static int serve(struct start *start, const struct inventory_item *item, bool proven,
                 struct fault *fault)
{
    struct keymanager *keymanager = start->keymanager;
    const struct record_key key = recorded(start, item);
    struct catalogue_key *served = catalogue_key_new(&key.label, &key.name, &key.public_key);
    struct catalogue_key *old = NULL;

    if (served) {
        served->made = key.made;
        served->unproven = !proven;
        served->in_use = key.in_use;
        served->begun = generations_is_past(key.label.generation, KEYMANAGER_IN_USE_AGE)
                            ? clock_now() - KEYMANAGER_IN_USE_AGE
                            : clock_now();
    }
    if (!served || record_serve(&start->record, &key, false, scribe_ran(keymanager->scribe)) != 0 ||
        catalogue_serve(&keymanager->catalogue, served, &old) != 0) {
        free(served);
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    }
    keymanager_log_event(keymanager, proven ? "key adopted" : "unproven key listed", served);
    if (!proven)
        log_write(LOG_WARN,
                  "key cannot be proven now: the plugin serves it, and signatures fail until the "
                  "token can use it again",
                  "key_id", item->label.key_id, "label", item->name.label, "reason", item->why,
                  NULL);
    return 0;
}

/* Without a record: a key is a leftover if it is older than the key served, has our mark, and was
 * superseded a day ago. `item` is not the newest of its id. A public half that is an hour old
 * belongs to no generation in progress. */
static bool is_leftover(struct start *start, const struct inventory_item *item,
                        enum verdict verdict)
{
    if (start->keymanager->recorded || (verdict != VERDICT_OLDER && verdict != VERDICT_HALF) ||
        !generations_is_past(item[-1].label.generation,
                             start->keymanager->config.destroy_superseded_after))
        return false;
    return record_knows(&start->record, &item->name) ||
           (verdict == VERDICT_HALF && generations_is_past(item->label.generation, half_made_age));
}

/* The item stays on the token, and the record notes it. */
static void leave(struct start *start, const struct inventory_item *item, enum verdict verdict)
{
    const struct record_key *key = record_find(&start->record, &item->name);
    bool whole = item->state == HSM_COMPLETE;

    start->older += whole;
    if (item->state != HSM_ABSENT && !(key && key->state == RECORD_CONDEMNED) &&
        (item->proven || !whole || verdict == VERDICT_STRANGER))
        warn_unfit(item);
}

/* We made and superseded this key, and the record has forgotten it: its day of waiting begins
 * now. */
static int condemn(struct start *start, const struct inventory_item *item, struct fault *fault)
{
    const struct record_key key = {.state = RECORD_CONDEMNED,
                                   .label = item->label,
                                   .name = item->name,
                                   .public_key = item->public_key,
                                   .made = true,
                                   .since = scribe_ran(start->keymanager->scribe)};

    start->older++;
    disposals_add(&start->keymanager->disposals, DISPOSE_SUPERSEDED, &key.label, &key.name,
                  &key.public_key, key.since);
    return record_put(&start->record, &key) == 0
               ? 0
               : fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
}

/* The record keeps a limited number of condemned keys and drops the oldest. All of them may be
 * destroyed all the same. */
static int settle_condemned(struct start *start, const struct inventory_item *item,
                            struct fault *fault)
{
    const struct record_key *key = record_find(&start->record, &item->name);

    if (!key || key->state == RECORD_ATTEMPTED)
        return condemn(start, item, fault);
    disposals_add(&start->keymanager->disposals, DISPOSE_SUPERSEDED, &key->label, &key->name,
                  &key->public_key,
                  key->state == RECORD_CONDEMNED ? key->since
                                                 : scribe_ran(start->keymanager->scribe));
    leave(start, item, VERDICT_CONDEMNED);
    return 0;
}

static int settle_item(struct start *start, const struct inventory_item *item, enum verdict verdict,
                       struct fault *fault)
{
    struct disposals *disposals = &start->keymanager->disposals;

    if (verdict == VERDICT_SERVE || verdict == VERDICT_LIST)
        return serve(start, item, verdict == VERDICT_SERVE, fault);
    if (verdict == VERDICT_CONDEMNED)
        return settle_condemned(start, item, fault);
    if (verdict == VERDICT_STRAY)
        disposals_add(disposals, DISPOSE_STRAY, &item->label, &item->name, NULL, 0);
    else if (is_leftover(start, item, verdict))
        disposals_add(disposals, verdict == VERDICT_HALF ? DISPOSE_HALF : DISPOSE_LEFTOVER,
                      &item->label, &item->name, &item->public_key, 0);
    else
        leave(start, item, verdict);
    return 0;
}

/* ---- one id ---- */

/* An item whose id is adopted from `previous` stays, whatever its state. The record notes it, so
 * that no later start takes it for a newer key. */
static int leave_for_previous(struct start *start, const struct inventory_item *item,
                              struct fault *fault)
{
    const struct record_key *key = record_find(&start->record, &item->name);
    const struct record_key found = {
        .state = RECORD_FOUND, .label = item->label, .name = item->name};

    start->older += item->state == HSM_COMPLETE;
    generations_saw(&start->keymanager->generations, item->label.generation);
    if (item->state != HSM_ABSENT && !(key && key->state == RECORD_CONDEMNED))
        log_write(LOG_WARN, "key on the token is not served: its id is served from previous",
                  "key_id", item->label.key_id, "label", item->name.label, NULL);
    if (key || record_put(&start->record, &found) == 0)
        return 0;
    return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
}

/* There is no record. It may be lost, and with it the list of keys that have moved. */
static int check_unrecorded(struct start *start, struct fault *fault)
{
    const struct keymanager *keymanager = start->keymanager;
    struct inventory *inventory = &start->stock.inventory;
    const struct record *record = &start->record;
    char code[RECORD_CODE + 1];

    if (!start->moving.adopts || keymanager->recorded)
        return 0;
    previous_code(record->previous, record->previous_count, code);
    if (loss_is_told(&keymanager->config, scribe_path(keymanager->scribe), code))
        return 0;
    for (size_t i = 0; i < inventory->count; i++) {
        const struct inventory_item *item = &inventory->items[i];

        if (item->state == HSM_COMPLETE && record_family(item->label.key_id) &&
            previous_find(record, item->label.key_id))
            return moving_refuse_unrecorded(keymanager, item->label.key_id, item->name.label, code,
                                            fault);
    }
    return 0;
}

/* By `record`, what was written down before: to settle one key changes the record of the start, and
 * must not change what becomes of the others. NULL: there is none. */
static int settle_id(struct start *start, struct record *record, struct inventory_item *first,
                     struct fault *fault)
{
    struct inventory *inventory = &start->stock.inventory;
    struct inventory_item *item;

    if (start->by_token && !verdict_served(record, inventory, first) &&
        !previous_serves(&start->record, first->label.key_id))
        record = NULL;
    if (start->moving.adopts && previous_find(&start->record, first->label.key_id)) {
        for (item = first; item; item = inventory_next_generation(inventory, item))
            if (leave_for_previous(start, item, fault) != 0)
                return -1;
        return 0;
    }
    for (item = first; item; item = inventory_next_generation(inventory, item)) {
        enum verdict verdict = verdict_of(record, inventory, first, item);

        /* a stranger's key from the future would keep us from making keys */
        if (verdict != VERDICT_STRANGER)
            generations_saw(&start->keymanager->generations, item->label.generation);
        if (settle_item(start, item, verdict, fault) != 0)
            return -1;
    }
    return 0;
}

static int serve_all(struct start *start, struct fault *fault)
{
    struct inventory *inventory = &start->stock.inventory;
    OWNED(record_close) struct record before = {.keys = NULL};
    struct record *record = start->stock.record ? &before : NULL;
    struct inventory_item *item;

    if (record && record_copy(start->stock.record, record) != 0)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    for (item = inventory_first(inventory); item; item = inventory_next_id(inventory, item))
        if (settle_id(start, record, item, fault) != 0)
            return -1;
    return 0;
}

/* ---- writing down ---- */

/* The predecessor's disposals and signatures may have changed the record since it was copied. */
static void merge(struct record *record, const struct record_key *key, int64_t ran)
{
    struct record_key *old = record_find(record, &key->name);

    if (key->state == RECORD_SERVED && (!old || old->state != RECORD_SERVED))
        (void)record_serve(record, key, false, ran);
    else if (key->state == RECORD_MISSING && old && old->state == RECORD_SERVED)
        old->state = RECORD_MISSING;
    else if (key->state == RECORD_CONDEMNED && (!old || old->state == RECORD_ATTEMPTED))
        (void)record_put(record, key);
}

/* In the first start of this record: keys that it does not serve are noted as found, and left
 * alone. */
static void put_found(struct record *record, const struct inventory *inventory)
{
    for (size_t i = 0; i < inventory->count; i++) {
        const struct inventory_item *item = &inventory->items[i];
        const struct record_key key = {
            .state = RECORD_FOUND, .label = item->label, .name = item->name};

        if (!record_find(record, &item->name))
            (void)record_put(record, &key);
    }
}

/* If an adopted key were not in the record, the next start would adopt it anew, even after it has
 * moved. */
static int write_down(struct start *start, struct fault *fault)
{
    struct keymanager *keymanager = start->keymanager;
    int64_t ran = scribe_ran(keymanager->scribe);
    struct record *record = scribe_edit(keymanager->scribe);

    if (moving_write(&start->moving, &start->record, record) != 0)
        log_write(LOG_WARN, "out of memory: not all of previous is written down", NULL);
    for (size_t i = 0; i < start->record.count; i++)
        merge(record, &start->record.keys[i], ran);
    if (!keymanager->recorded)
        put_found(record, &start->stock.inventory);
    record_settle_makers(record);
    memcpy(record->identity, keymanager->identity.bytes, keymanager->identity.length);
    record->identity_length = keymanager->identity.length;
    memcpy(record->token_label, keymanager->info.label, sizeof record->token_label);
    memcpy(record->token_serial, keymanager->info.serial, sizeof record->token_serial);
    for (size_t i = 0; i < record->count; i++)
        generations_saw(&keymanager->generations, record->keys[i].label.generation);
    if (!scribe_commit_and_wait(keymanager->scribe) && start->moving.adopts)
        return fault_set(fault, FAULT_UNAVAILABLE,
                         "previous: record_file %s cannot be written, so nothing can move",
                         scribe_path(keymanager->scribe));
    loss_forget(scribe_path(keymanager->scribe));
    return 0;
}

static void dispose_condemned(struct keymanager *keymanager)
{
    const struct record *record = scribe_edit(keymanager->scribe);

    for (size_t i = 0; i < record->count; i++) {
        const struct record_key *key = &record->keys[i];

        if (key->state == RECORD_CONDEMNED)
            disposals_add(&keymanager->disposals, DISPOSE_SUPERSEDED, &key->label, &key->name,
                          &key->public_key, key->since);
    }
    scribe_leave(keymanager->scribe);
}

/* ---- the door ---- */

int loading_settle(struct start *start, struct fault *fault)
{
    if (check_unrecorded(start, fault) != 0 || serve_all(start, fault) != 0)
        return -1;
    return moving_serve(start->keymanager, &start->record, fault);
}

int loading_write_down(struct start *start, struct fault *fault)
{
    if (write_down(start, fault) != 0)
        return -1;
    dispose_condemned(start->keymanager);
    return 0;
}
