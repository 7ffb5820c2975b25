/* A start: looks at the token until what it shows can be believed; settling.c then serves it.
 *
 * With a record it is known what must be there. One look that shows every recorded key whole is
 * enough, whatever else cannot be read; a key that does not show is waited for. Without a record
 * the newest proven generation of each id is served, after a stricter look. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "plugin/keys/loading_private.h"
#include "plugin/keys/loss.h"
#include "plugin/keys/verdict.h"
#include "plugin/report/log.h"

enum { OLDER_MANY = 32, NAMES_MAX = 400, RENEW_EVERY = 4 };

static const int64_t quick_walk = 2 * CLOCK_SECOND;
static const int64_t unproven_patience = 10 * CLOCK_SECOND;
static const int64_t lag_patience = 22 * CLOCK_SECOND; /* for a reconfiguration */
static const int64_t look_limit = 15 * CLOCK_SECOND;   /* the last look gets this long, too */
static const int64_t half_patience = 5 * CLOCK_SECOND;
static const int64_t doubt_patience = 2 * CLOCK_SECOND;
static const int64_t steady_time = CLOCK_SECOND;
static const int64_t least_step = 3 * CLOCK_SECOND; /* what hung rests for 2 s before a probe */
static const int64_t fresh_age = 30 * CLOCK_SECOND;

/* ---- what a look leaves in doubt ---- */

struct doubt {
    bool is_one;
    bool failed;      /* the look itself failed; `fault` says why */
    bool gone;        /* a recorded key is not visible at all */
    int64_t patience; /* how long to wait because of it, in ns */
    struct fault fault;
};

static struct inventory_item *first_of(struct inventory *inventory, const char *key_id)
{
    struct inventory_item *item = inventory_first(inventory);

    while (item && strcmp(item->label.key_id, key_id) != 0)
        item = inventory_next_id(inventory, item);
    return item;
}

static struct inventory_item *item_of(struct inventory *inventory, const struct record_key *key)
{
    struct inventory_item *item = first_of(inventory, key->label.key_id);

    while (item && !label_same_name(&item->name, &key->name))
        item = inventory_next_generation(inventory, item);
    return item;
}

/* In the record this key is SERVED. Is its id served by a proven key? */
static bool is_settled(struct start *start, const struct record_key *key)
{
    struct inventory *inventory = &start->stock.inventory;
    struct inventory_item *first = first_of(inventory, key->label.key_id);
    struct inventory_item *served = first ? verdict_served(&start->record, inventory, first) : NULL;

    return served && verdict_of(&start->record, inventory, first, served) == VERDICT_SERVE;
}

/* A key that will be listed in any case deserves a shorter wait than one that would be given up. */
static void doubt_key(const struct start *start, const struct record_key *key,
                      const struct inventory_item *item, struct doubt *doubt)
{
    bool listed =
        start->stock.told > 0 && (!item || !item->proven) && record_is_needed(&start->record, key);
    const char *token = start->keymanager->info.label;

    doubt->patience =
        listed && !start->before ? unproven_patience : start->keymanager->config.startup_wait;
    doubt->gone = item && verdict_is_gone(key, item);
    if (start->before)
        (void)fault_set(&doubt->fault, FAULT_UNAVAILABLE,
                        "key \"%s\" (label %s) is served, but token \"%s\" does not show it whole "
                        "(any more, or yet)",
                        key->label.key_id, key->name.label, token);
    else if (doubt->gone)
        (void)fault_set(&doubt->fault, FAULT_UNAVAILABLE,
                        "key \"%s\" (label %s) is not on token \"%s\"", key->label.key_id,
                        key->name.label, token);
    else
        (void)fault_set(&doubt->fault, FAULT_UNAVAILABLE,
                        "key \"%s\" (label %s) on token \"%s\" cannot be proven: %s",
                        key->label.key_id, key->name.label, token,
                        item && item->why[0] ? item->why : "the token shows half of it");
}

static void worst(struct doubt *doubt, const struct doubt *other)
{
    if (!doubt->is_one || other->patience > doubt->patience || (other->gone && !doubt->gone))
        *doubt = *other;
}

/* An attempt whose process ended may have made the very key that SPIRE knows. */
static bool is_in_doubt(struct start *start, const struct record_key *key,
                        const struct inventory_item *item)
{
    if (key->state == RECORD_SERVED)
        return !is_settled(start, key);
    return key->state == RECORD_ATTEMPTED && item && !item->proven;
}

static struct doubt doubt_record(struct start *start)
{
    struct doubt doubt = {.is_one = false};

    for (size_t i = 0; i < start->record.count; i++) {
        const struct record_key *key = &start->record.keys[i];
        const struct inventory_item *item = item_of(&start->stock.inventory, key);
        struct doubt one = {.is_one = true};

        if (!is_in_doubt(start, key, item))
            continue;
        doubt_key(start, key, item, &one);
        worst(&doubt, &one);
    }
    return doubt;
}

/* In a cluster, a key made just before a restart may show one half first. */
static bool is_one_fresh_half(const struct inventory *inventory)
{
    for (size_t i = 0; i < inventory->count; i++)
        if (verdict_is_half(&inventory->items[i]) &&
            !generations_is_past(inventory->items[i].label.generation, fresh_age))
            return true;
    return false;
}

/* The token shows halves of a key id and no whole key. Believing this would mean to forget the
 * key. */
static bool is_one_id_half(struct inventory *inventory)
{
    struct inventory_item *item;

    for (item = inventory_first(inventory); item; item = inventory_next_id(inventory, item))
        if (!inventory_candidate(inventory, item) && verdict_is_half(item))
            return true;
    return false;
}

/* Have all looks of the last second shown the same number of items? If the token's trouble ends in
 * the middle of a look, this look shows only some keys, and each of them whole. Without a record
 * only more looks can tell. */
static bool is_steady(struct start *start)
{
    size_t count = start->stock.inventory.count;

    if (count != start->shown) {
        start->shown = count;
        start->shown_since = clock_now();
    }
    return clock_now() - start->shown_since >= steady_time;
}

/* A token shows fewer keys while a member of its cluster is away, or before its operators have
 * presented their cards. */
static struct doubt doubt_token(struct start *start)
{
    struct inventory *inventory = &start->stock.inventory;
    bool steady = is_steady(start);
    struct doubt doubt = {.is_one = false};

    (void)fault_set(&doubt.fault, FAULT_UNAVAILABLE, "the token shows less than it may have");
    if (start->stock.scan.unreadable > 0 || is_one_fresh_half(inventory))
        doubt.patience = half_patience;
    else if (is_one_id_half(inventory) ||
             (start->keymanager->identity.existed && inventory->count == 0))
        doubt.patience = doubt_patience;
    if (inventory->count > 0 && !steady)
        doubt.patience = start->keymanager->config.startup_wait;
    doubt.is_one = doubt.patience > 0;
    return doubt;
}

/* ---- a loss ---- */

/* May the key be given up as lost: SPIRE needs it, and this look did not find it? */
static bool is_lost(void *context, const struct record_key *key)
{
    struct start *start = context;
    const struct inventory_item *item = item_of(&start->stock.inventory, key);

    return record_is_needed(&start->record, key) && !is_settled(start, key) &&
           (!item || verdict_is_gone(key, item));
}

static bool name_loss(struct start *start, char names[NAMES_MAX], char code[RECORD_CODE + 1])
{
    names[0] = '\0';
    for (size_t i = 0; i < start->record.count; i++) {
        const struct record_key *key = &start->record.keys[i];

        if (key->state == RECORD_SERVED && is_lost(start, key))
            loss_add_name(key, names, NAMES_MAX);
    }
    if (start->moving.without)
        loss_add_previous(&start->record, names, NAMES_MAX);
    record_loss_code(&start->record, is_lost, start, start->moving.without, code);
    return names[0] != '\0';
}

/* The operator may accept a loss while a start is waiting. */
static bool accepts_loss(struct start *start)
{
    char code[RECORD_CODE + 1];
    char names[NAMES_MAX];

    return start->stock.record && start->looks >= 2 && name_loss(start, names, code) &&
           loss_is_accepted(&start->keymanager->config, scribe_path(start->keymanager->scribe),
                            code);
}

/* ---- looking until there is no doubt, or time is up ---- */

static struct doubt look(struct start *start)
{
    struct stock *stock = &start->stock;
    int64_t walk_limit = start->looks++ == 0 ? quick_walk : CLOCK_NEVER / 2;
    struct doubt failed = {
        .is_one = true, .failed = true, .patience = start->keymanager->config.startup_wait};

    stock->record = start->keymanager->recorded ? &start->record : NULL;
    stock->step_limit = clock_later(start->keymanager->patience, least_step);
    if (stock_look(stock, clock_later(start->deadline, clock_now() + look_limit), walk_limit,
                   &failed.fault) != 0)
        return failed;
    if (stock->walked)
        stock->step_limit = 2 * stock->walk;
    return stock->record ? doubt_record(start) : doubt_token(start);
}

/* The last look of a reconfiguration is at its end. */
static int64_t next_pause(const struct start *start)
{
    static const int64_t pauses[] = {CLOCK_SECOND / 5, CLOCK_SECOND / 2, CLOCK_SECOND,
                                     2 * CLOCK_SECOND};
    unsigned looks = start->looks;
    int64_t pause =
        looks <= sizeof pauses / sizeof pauses[0] ? pauses[looks - 1] : 5 * CLOCK_SECOND;
    int64_t left = start->begun + lag_patience - clock_now();

    return start->before && left > 0 ? clock_sooner(pause, left) : pause;
}

/* Calls for a key wait during a reconfiguration, which is refused before they fail. A key that is
 * invisible is believed to be absent after two looks by different workers. */
static bool is_time_up(struct start *start, const struct doubt *doubt)
{
    int64_t patience = start->patience = clock_later(start->patience, doubt->patience);

    if (*start->stock.cancel || start->looks < 2)
        return *start->stock.cancel;
    if (clock_now() >= start->deadline)
        return true;
    if (start->before && patience > lag_patience)
        patience = lag_patience;
    return clock_now() - start->begun >= clock_later(patience, doubt_patience);
}

static bool is_definite(const struct doubt *doubt)
{
    return doubt->failed && doubt->fault.code != FAULT_UNAVAILABLE &&
           doubt->fault.code != FAULT_DEADLINE_EXCEEDED;
}

static struct doubt look_until_told(struct start *start)
{
    struct doubt doubt;

    while ((doubt = look(start)).is_one) {
        if (is_definite(&doubt) || is_time_up(start, &doubt) || accepts_loss(start))
            return doubt;
        stock_tell(&start->stock, &doubt.fault);
        stock_pause(&start->stock, next_pause(start));
        if (doubt.gone && (start->looks == 1 || start->looks % RENEW_EVERY == 0))
            supervisor_renew(start->keymanager->supervisor);
    }
    return doubt;
}

/* ---- what time has not settled ---- */

/* A key that exists, or may exist, and cannot be proven now. If SPIRE needs it, it is served:
 * signatures get UNAVAILABLE until it works again. Other keys count as missing. */
static enum record_state state_after(struct start *start, struct record_key *key)
{
    const struct inventory_item *item = item_of(&start->stock.inventory, key);

    if (is_settled(start, key) ||
        (item && !verdict_is_gone(key, item) && record_is_needed(&start->record, key)))
        return RECORD_SERVED;
    return RECORD_MISSING;
}

static void warn_missing(const struct start *start, const struct record_key *key)
{
    log_write(
        LOG_WARN,
        "key is gone, or cannot be proven: the plugin reports it missing, and SPIRE makes another",
        "key_id", key->label.key_id, "label", key->name.label, "token",
        start->keymanager->info.label, NULL);
}

/* Goes on without the missing keys, which the record marks as MISSING from now on. */
static void go_without(struct start *start)
{
    for (size_t i = 0; i < start->record.count; i++) {
        struct record_key *key = &start->record.keys[i];

        if (key->state != RECORD_SERVED || state_after(start, key) == RECORD_SERVED)
            continue;
        warn_missing(start, key);
        key->state = RECORD_MISSING;
    }
}

static int refuse_change(const struct doubt *doubt, struct fault *fault)
{
    *fault = doubt->fault;
    return fault_prefix(fault,
                        "the old configuration goes on (if the key is gone for good, restart "
                        "the server)");
}

static int judge(struct start *start, const struct doubt *doubt, struct fault *fault)
{
    char code[RECORD_CODE + 1];
    char names[NAMES_MAX];

    if (!doubt->is_one && !start->moving.without)
        return 0;
    if (doubt->failed || !start->stock.record) {
        *fault = doubt->fault;
        return doubt->failed ? -1 : 0;
    }
    if (start->before)
        return refuse_change(doubt, fault);
    if (doubt->is_one && start->stock.told == 0 && !start->stock.walked) {
        *fault = doubt->fault;
        return -1;
    }
    if (name_loss(start, names, code)) {
        if (!loss_is_accepted(&start->keymanager->config, scribe_path(start->keymanager->scribe),
                              code))
            return loss_refuse(names, &start->keymanager->info, code, fault);
        log_write(LOG_WARN, "the loss of keys is accepted", "keys", names, "code", code, NULL);
        start->by_token = true;
        if (start->moving.without)
            moving_accept(&start->record, &start->moving);
    }
    go_without(start);
    return 0;
}

/* ---- the log ---- */

static void log_loaded(const struct start *start)
{
    const struct keymanager *keymanager = start->keymanager;
    const struct hsm_reply *scan = &start->stock.scan;
    char keys[16];
    char older[16];
    char foreign[16];
    char nameless[16];

    (void)snprintf(keys, sizeof keys, "%zu", keymanager->catalogue.count);
    (void)snprintf(older, sizeof older, "%u", start->older);
    (void)snprintf(foreign, sizeof foreign, "%u", scan->foreign);
    (void)snprintf(nameless, sizeof nameless, "%u", scan->nameless);
    log_write(LOG_INFO, "token opened", "token", keymanager->info.label, "serial",
              keymanager->info.serial, "model", keymanager->info.model, "library",
              keymanager->info.library, "keys", keys, "older_keys", older, "foreign_objects",
              foreign, "nameless_objects", nameless, NULL);
    if (start->older >= OLDER_MANY)
        log_write(LOG_WARN,
                  "old keys of this server pile up on the token: destroy them with spire-hsm prune",
                  "older_keys", older, "token", keymanager->info.label, NULL);
    if (!keymanager->recorded && keymanager->identity.existed && keymanager->catalogue.count == 0)
        log_write(LOG_WARN,
                  "key_identifier_file existed before, but the token holds no key of this server. "
                  "After a failed first start this is normal. Otherwise this is another token, or "
                  "it was initialised anew",
                  "token", keymanager->info.label, "serial", keymanager->info.serial, NULL);
}

static bool serves(struct keymanager *keymanager, const struct catalogue_key *key)
{
    struct catalogue_key *now = catalogue_find(&keymanager->catalogue, key->key_id);
    bool same = now && strcmp(now->fingerprint, key->fingerprint) == 0;

    if (now)
        keymanager_drop(keymanager, now);
    return same;
}

/* The operator may have meant another token or identity, or mistyped it. SPIRE does not notice the
 * change. */
static void warn_of_missing(struct keymanager *keymanager, struct keymanager *before)
{
    size_t count = 0;
    struct catalogue_key **keys = catalogue_list(&before->catalogue, &count);

    for (size_t i = 0; keys && i < count; i++) {
        if (!serves(keymanager, keys[i]))
            log_write(
                LOG_WARN,
                "key is not served any more: token or identity has changed, and SPIRE's signatures "
                "with it fail. Undo the change, or restart the server for new keys",
                "key_id", keys[i]->key_id, "label", keys[i]->name.label, "token",
                before->info.label, NULL);
        keymanager_drop(before, keys[i]);
    }
    free(keys);
}

/* ---- the door ---- */

static void tell_walk(const struct start *start)
{
    const struct hsm_reply *scan = &start->stock.scan;

    rivals_saw(&start->keymanager->rivals,
               &(struct rivals_walk){.inventory = &start->stock.inventory,
                                     .ours = scan->items,
                                     .others = scan->foreign + scan->nameless,
                                     .begun = start->begun});
}

static int run(struct start *start, struct fault *fault)
{
    struct keymanager *keymanager = start->keymanager;
    struct doubt doubt;

    if (moving_begin(keymanager, start->before != NULL, start->stock.cancel, &start->record,
                     &start->moving, fault) != 0)
        return -1;
    doubt = look_until_told(start);
    if (start->stock.cancelled) /* all answers may have arrived before that */
        return fault_set(fault, FAULT_UNAVAILABLE, "the plugin is shutting down");
    if (judge(start, &doubt, fault) != 0)
        return -1;
    if (start->by_token && stock_prove_candidates(&start->stock, start->deadline, fault) != 0)
        return -1;
    if (loading_settle(start, fault) != 0 || loading_write_down(start, fault) != 0)
        return -1;
    if (start->stock.walked)
        tell_walk(start);
    log_loaded(start);
    if (start->before)
        warn_of_missing(keymanager, start->before);
    return 0;
}

int loading_run(struct keymanager *keymanager, struct keymanager *before, int64_t deadline,
                const atomic_bool *cancel, struct fault *fault)
{
    struct start start = {.keymanager = keymanager,
                          .before = before,
                          .begun = clock_now(),
                          .deadline = deadline,
                          .stock = {.supervisor = keymanager->supervisor,
                                    .scope = &keymanager->identity.scope,
                                    .cancel = cancel}};
    int result = record_copy(scribe_edit(keymanager->scribe), &start.record);

    scribe_leave(keymanager->scribe);
    if (result != 0)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    stock_open(&start.stock);
    result = run(&start, fault);
    stock_close(&start.stock);
    record_close(&start.record);
    return result;
}
