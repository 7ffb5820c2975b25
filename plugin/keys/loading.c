/* From a token to a catalogue: one scan, then the newest generation of each of our keys is
 * proven and served. What the scan shows besides is left over from crashes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"
#include "plugin/keys/inventory.h"
#include "plugin/keys/keymanager_private.h"
#include "plugin/keys/verdict.h"
#include "plugin/report/log.h"

enum { PROOFS_OUT_MAX = 64, OLDER_MANY = 32 };

/* The slow lane's end of requests that run elsewhere. */
struct tally {
    struct keymanager *keymanager;
    const atomic_bool *cancel;
    bool cancelled;
    int64_t deadline;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned out;
    struct fault fault; /* the first that was not FAULT_NONE */
    struct hsm_reply scan;
    struct inventory inventory;
};

static void tally_begin(struct tally *tally)
{
    (void)pthread_mutex_lock(&tally->mutex);
    tally->out++;
    (void)pthread_mutex_unlock(&tally->mutex);
}

static void tally_end(struct tally *tally, const struct fault *fault)
{
    (void)pthread_mutex_lock(&tally->mutex);
    if (tally->fault.code == FAULT_NONE)
        tally->fault = *fault;
    tally->out--;
    (void)pthread_cond_signal(&tally->changed);
    (void)pthread_mutex_unlock(&tally->mutex);
}

/* Waits until no more than `most` are out. What is out refers to the tally, so even a
 * cancelled wait lasts until all have come back: abandoning the supervisor sees to that. */
static int tally_wait(struct tally *tally, unsigned most, struct fault *fault)
{
    bool cancel;
    int result;

    (void)pthread_mutex_lock(&tally->mutex);
    while (tally->out > most) {
        condition_wait(&tally->changed, &tally->mutex, clock_now() + CLOCK_SECOND / 5);
        cancel = *tally->cancel && !tally->cancelled;
        tally->cancelled = tally->cancelled || cancel;
        (void)pthread_mutex_unlock(&tally->mutex);
        if (cancel)
            supervisor_abandon(tally->keymanager->supervisor);
        (void)pthread_mutex_lock(&tally->mutex);
    }
    result = tally->fault.code == FAULT_NONE ? 0 : -1;
    if (result != 0)
        *fault = tally->fault;
    (void)pthread_mutex_unlock(&tally->mutex);
    return result;
}

/* ---- scanning ---- */

static void scanned_item(void *context, const struct hsm_item *item)
{
    struct tally *tally = context;

    if (item)
        inventory_add(&tally->inventory, &tally->keymanager->identity.scope, item);
    else
        inventory_clear(&tally->inventory);
}

static void scanned(void *context, const struct hsm_reply *reply)
{
    struct tally *tally = context;

    tally->scan = *reply;
    tally_end(tally, &reply->fault);
}

static int scan(struct tally *tally, struct fault *fault)
{
    struct hsm_request request = {.op = HSM_SCAN};
    int64_t begun = clock_now();

    label_prefix(&tally->keymanager->identity.scope, request.prefix);
    tally_begin(tally);
    supervisor_submit(tally->keymanager->supervisor,
                      &(struct supervisor_request){.request = &request,
                                                   .deadline = tally->deadline,
                                                   .done = scanned,
                                                   .item = scanned_item,
                                                   .context = tally});
    if (tally_wait(tally, 0, fault) != 0)
        return fault_prefix(fault, "cannot list the keys on token \"%s\"",
                            tally->keymanager->info.label);
    if (tally->inventory.out_of_memory)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory listing the keys on the token");
    inventory_sort(&tally->inventory);
    keymanager_searched(tally->keymanager, begun);
    return 0;
}

/* ---- proving ---- */

struct proof {
    struct tally *tally;
    struct inventory_item *item;
};

static void proven(void *context, const struct hsm_reply *reply)
{
    struct proof *proof = context;
    struct tally *tally = proof->tally;
    struct inventory_item *item = proof->item;
    struct fault fault = reply->fault;

    free(proof);
    if (reply->fault.code == FAULT_NONE) {
        item->state = reply->state;
        item->proven = true;
        if (reply->state == HSM_COMPLETE)
            item->public_key = reply->public_key;
        else
            (void)snprintf(item->why, sizeof item->why, "%s", reply->why);
    } else {
        (void)fault_prefix(&fault, "key \"%s\" (label %s) cannot be proven", item->label.key_id,
                           item->name.label);
    }
    tally_end(tally, &fault);
}

static int prove(struct tally *tally, struct inventory_item *item, struct fault *fault)
{
    struct proof *proof = malloc(sizeof *proof);
    struct hsm_request request = {.op = HSM_PROVE, .key = item->name};

    if (!proof)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    *proof = (struct proof){.tally = tally, .item = item};
    tally_begin(tally);
    supervisor_submit(
        tally->keymanager->supervisor,
        &(struct supervisor_request){
            .request = &request, .deadline = tally->deadline, .done = proven, .context = proof});
    return tally_wait(tally, PROOFS_OUT_MAX, fault);
}

/* Proves the newest generation of every key id; where that one is unfit, the next older
 * one in another round, until nothing is left to prove. */
static int prove_all(struct tally *tally, struct fault *fault)
{
    struct inventory_item *item;
    bool more = true;
    int result = 0;

    while (more && result == 0) {
        struct fault late;

        more = false;
        for (item = inventory_first(&tally->inventory); item && result == 0;
             item = inventory_next_id(&tally->inventory, item)) {
            struct inventory_item *candidate = inventory_candidate(&tally->inventory, item);

            if (candidate && !candidate->proven) {
                more = true;
                result = prove(tally, candidate, fault);
            }
        }
        if (tally_wait(tally, 0, &late) != 0 && result == 0) {
            *fault = late;
            result = -1;
        }
    }
    return result;
}

/* ---- comparing with what is served already ---- */

/* An HSM cluster may show a key late. One that is served has been seen before. */
static const int64_t lag_patience = 15 * CLOCK_SECOND;
static const int64_t half_patience = 5 * CLOCK_SECOND;
static const int64_t doubt_patience = 2 * CLOCK_SECOND;
static const int64_t log_interval = 10 * CLOCK_SECOND;
static const uint32_t fresh_age = 30;

static bool same_token(const struct hsm_token_info *a, const struct hsm_token_info *b)
{
    return strcmp(a->label, b->label) == 0 && strcmp(a->serial, b->serial) == 0 &&
           strcmp(a->model, b->model) == 0 && strcmp(a->manufacturer, b->manufacturer) == 0;
}

static bool shows(struct inventory *inventory, const struct catalogue_key *key)
{
    struct inventory_item *item = inventory_first(inventory);
    const struct inventory_item *newest;

    while (item && strcmp(item->label.key_id, key->key_id) != 0)
        item = inventory_next_id(inventory, item);
    newest = item ? inventory_candidate(inventory, item) : NULL;
    return newest && newest->label.generation >= key->generation;
}

static int compare(struct tally *tally, struct keymanager *before, struct fault *fault)
{
    size_t count;
    struct catalogue_key **keys = catalogue_list(&before->catalogue, &count);
    int result = 0;

    if (!keys)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    for (size_t i = 0; i < count; i++) {
        if (result == 0 && !shows(&tally->inventory, keys[i]))
            result = fault_set(fault, FAULT_UNAVAILABLE,
                               "key \"%s\" (label %s) is served, but token \"%s\" does not show it "
                               "(any more, or yet): if it is gone for good, restart the server",
                               keys[i]->key_id, keys[i]->name.label, before->info.label);
        keymanager_drop(before, keys[i]);
    }
    free(keys);
    return result;
}

static void pause_tally(struct tally *tally)
{
    int64_t until = clock_now() + CLOCK_SECOND;

    (void)pthread_mutex_lock(&tally->mutex);
    while (clock_now() < until && !*tally->cancel)
        condition_wait(&tally->changed, &tally->mutex, clock_now() + CLOCK_SECOND / 5);
    (void)pthread_mutex_unlock(&tally->mutex);
}

static bool is_half(const struct inventory_item *item)
{
    return item->proven && (item->state == HSM_HALF || item->state == HSM_BARE);
}

/* In a cluster the other half of a key made just before a restart may be on its way. */
static bool is_fresh(const struct inventory_item *item)
{
    uint32_t generation = item->label.generation;
    uint32_t now;

    return label_next_generation(time(NULL), 0, &now, NULL) == 0 && generation + fresh_age > now &&
           generation < now + fresh_age;
}

static bool is_one_fresh_half(const struct inventory *inventory)
{
    for (size_t i = 0; i < inventory->count; i++)
        if (is_half(&inventory->items[i]) && is_fresh(&inventory->items[i]))
            return true;
    return false;
}

/* A key id of which the token shows halves and no whole key: to believe it is to forget the key. */
static bool is_one_id_half(struct inventory *inventory)
{
    struct inventory_item *item;

    for (item = inventory_first(inventory); item; item = inventory_next_id(inventory, item))
        if (!inventory_candidate(inventory, item) && is_half(item))
            return true;
    return false;
}

/* How long this look's doubts are worth waiting for, ns. A token shows less than it has while a
 * member of a cluster is away, or while its operators have not presented their cards. */
static int64_t worth_waiting(struct tally *tally)
{
    struct inventory *inventory = &tally->inventory;

    if (tally->scan.unreadable > 0 || is_one_fresh_half(inventory))
        return half_patience;
    if (is_one_id_half(inventory) || (tally->keymanager->identity.existed && inventory->count == 0))
        return doubt_patience;
    return 0;
}

/* One look: what is there, and is it as it should be? */
static int look(struct tally *tally, struct fault *fault)
{
    tally->fault.code = FAULT_NONE; /* nothing is out that could end with another */
    inventory_clear(&tally->inventory);
    return scan(tally, fault) != 0 || prove_all(tally, fault) != 0 ? -1 : 0;
}

/* Trouble that may pass is waited for as long as an absent token is: three crashes in a row, or
 * two seconds in which one key cannot sign, are no reason for a server not to come up. A
 * reconfiguration is rather refused: meanwhile no key can be made. */
static int look_until_told(struct tally *tally, bool patient, struct fault *fault)
{
    int64_t log_at = 0;

    while (look(tally, fault) != 0) {
        if (!patient || fault->code != FAULT_UNAVAILABLE || *tally->cancel ||
            clock_now() >= tally->deadline)
            return -1;
        if (clock_now() >= log_at) {
            log_fault(LOG_WARN, fault, "waiting for the keys on the token", NULL);
            log_at = clock_now() + log_interval;
        }
        pause_tally(tally);
    }
    return 0;
}

static int take_stock(struct tally *tally, struct keymanager *before, struct fault *fault)
{
    bool comparable = before && same_token(&before->info, &tally->keymanager->info) &&
                      label_same_scope(&before->identity.scope, &tally->keymanager->identity.scope);
    int64_t begun = clock_now();

    for (;;) {
        int64_t waited;
        bool all;

        if (look_until_told(tally, !before, fault) != 0)
            return -1;
        all = !comparable || compare(tally, before, fault) == 0;
        waited =
            *tally->cancel || clock_now() >= tally->deadline ? lag_patience : clock_now() - begun;
        if (all && waited >= worth_waiting(tally))
            return 0;
        if (waited >= lag_patience)
            return -1;
        pause_tally(tally);
    }
}

/* ---- serving ---- */

static void warn_unfit(const struct inventory_item *item)
{
    static const char *const states[] = {[HSM_ABSENT] = "vanished",
                                         [HSM_HALF] = "half a key",
                                         [HSM_UNFIT] = "not fit for use",
                                         [HSM_DUPLICATE] = "exists more than once",
                                         [HSM_BARE] = "half a key"};
    char id[2 * HSM_ID_MAX + 1];

    keymanager_cka_id(&item->name, id);
    log_write(LOG_WARN, "key on the token is not served", "key_id", item->label.key_id, "label",
              item->name.label, "cka_id", id, "state", states[item->state], "reason", item->why,
              NULL);
}

/* With key_identifier_value, another process may be using it or making this very half. */
static bool is_ours(const struct keymanager *keymanager, const struct inventory_item *item)
{
    return keymanager->identity.alone || keymanager_made(keymanager, &item->label, &item->name);
}

static int serve(struct keymanager *keymanager, const struct inventory_item *item,
                 struct fault *fault)
{
    struct catalogue_key *key = catalogue_key_new(&item->label, &item->name, &item->public_key);
    struct catalogue_key *old = NULL;

    if (key)
        key->ours = is_ours(keymanager, item);
    if (!key || catalogue_serve(&keymanager->catalogue, key, &old) != 0) {
        free(key);
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    }
    keymanager_log_event(keymanager, "key adopted", key);
    return 0;
}

static const int64_t half_made_age = 3600 * CLOCK_SECOND;

/* Is that generation at least so old? */
static bool is_past(uint32_t generation, int64_t age)
{
    uint32_t now;

    return age == 0 || (label_next_generation(time(NULL), 0, &now, NULL) == 0 &&
                        now >= generation && now - generation >= age / CLOCK_SECOND);
}

/* What is older than the key served was superseded; or an earlier start did not see it, for the
 * token did not show it then, and SPIRE made another in its place. So it has a day in which that
 * may come out. `item` is not the newest of its id. A public half that has been there for an hour
 * is nobody's who is just making a key. */
static bool is_leftover(const struct keymanager *keymanager, const struct inventory_item *item,
                        enum verdict verdict)
{
    if ((verdict != VERDICT_OLDER && verdict != VERDICT_HALF) ||
        !is_past(item[-1].label.generation, keymanager->config.destroy_superseded_after))
        return false;
    return is_ours(keymanager, item) ||
           (verdict == VERDICT_HALF && is_past(item->label.generation, half_made_age));
}

/* Two pairs of one generation, and not both of them ours. (It is our own clock that goes
 * back if they are.) */
static bool is_rivals(const struct keymanager *keymanager, struct inventory *inventory,
                      const struct inventory_item *first, struct inventory_item *item)
{
    return inventory_is_twin(inventory, first, item) && !is_ours(keymanager, item);
}

static void tell_rivalry(struct keymanager *keymanager, const struct inventory_item *item)
{
    keymanager->rivalry = true;
    log_write(LOG_ERROR, "two servers share one identity; no key is destroyed", "key_id",
              item->label.key_id, "label", item->name.label, NULL);
}

/* A whole key that nobody needs, for all we know, and that is not ours to destroy. */
static bool stays(const struct keymanager *keymanager, const struct inventory_item *item,
                  enum verdict verdict, bool leftover)
{
    return verdict == VERDICT_OLDER && item->state == HSM_COMPLETE &&
           (!leftover || !keymanager->config.destroy_superseded);
}

static int settle_item(struct keymanager *keymanager, const struct inventory_item *item,
                       enum verdict verdict, struct fault *fault)
{
    bool leftover = is_leftover(keymanager, item, verdict);

    if (verdict == VERDICT_SERVE)
        return serve(keymanager, item, fault);
    if (!leftover && (item->proven || item->state != HSM_COMPLETE))
        warn_unfit(item);
    if (leftover)
        disposal_add(keymanager, verdict == VERDICT_HALF ? DISPOSE_HALF : DISPOSE_LEFTOVER,
                     item->label.key_id, &item->name, &item->public_key);
    keymanager->older += stays(keymanager, item, verdict, leftover);
    return 0;
}

static int settle_id(struct keymanager *keymanager, struct inventory *inventory,
                     struct inventory_item *first, struct fault *fault)
{
    struct inventory_item *item;

    for (item = first; item; item = inventory_next_generation(inventory, item)) {
        if (is_rivals(keymanager, inventory, first, item))
            tell_rivalry(keymanager, item);
        if (settle_item(keymanager, item, verdict_of(inventory, first, item), fault) != 0)
            return -1;
    }
    return 0;
}

/* A lagging HSM may show later what a predecessor made. While we hold the lock on the identity
 * file there is nobody else who can have made it. */
static uint32_t known_as_ours(const struct keymanager *keymanager)
{
    uint32_t now;

    if (!keymanager->identity.alone || label_next_generation(time(NULL), 0, &now, NULL) != 0)
        return keymanager->highest;
    return now - 1 > keymanager->highest ? now - 1 : keymanager->highest;
}

static int serve_all(struct keymanager *keymanager, struct inventory *inventory,
                     struct fault *fault)
{
    struct inventory_item *item;

    keymanager->highest = inventory_highest(inventory);
    keymanager->ours_up_to = known_as_ours(keymanager);
    for (item = inventory_first(inventory); item; item = inventory_next_id(inventory, item))
        if (settle_id(keymanager, inventory, item, fault) != 0)
            return -1;
    return 0;
}

static void log_loaded(const struct keymanager *keymanager, const struct hsm_reply *scan)
{
    char keys[16];
    char older[16];
    char foreign[16];
    char nameless[16];

    (void)snprintf(keys, sizeof keys, "%zu", keymanager->catalogue.count);
    (void)snprintf(older, sizeof older, "%u", keymanager->older);
    (void)snprintf(foreign, sizeof foreign, "%u", scan->foreign);
    (void)snprintf(nameless, sizeof nameless, "%u", scan->nameless);
    log_write(LOG_INFO, "token opened", "token", keymanager->info.label, "serial",
              keymanager->info.serial, "model", keymanager->info.model, "library",
              keymanager->info.library, "keys", keys, "older_keys", older, "foreign_objects",
              foreign, "nameless_objects", nameless, NULL);
    if (keymanager->older >= OLDER_MANY)
        log_write(LOG_WARN,
                  "old keys of this server pile up on the token: destroy them with spire-hsm prune",
                  "older_keys", older, "token", keymanager->info.label, NULL);
    if (keymanager->identity.existed && keymanager->catalogue.count == 0)
        log_write(LOG_WARN,
                  "key_identifier_file existed before, but the token holds no key of this server: "
                  "after a first start that failed, that is as it should be; otherwise this is "
                  "another token, or it was initialised anew",
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

/* Another token or identity may be meant, or a slip of the pen: SPIRE learns nothing of it. */
static void warn_of_missing(struct keymanager *keymanager, struct keymanager *before)
{
    size_t count = 0;
    struct catalogue_key **keys = catalogue_list(&before->catalogue, &count);

    for (size_t i = 0; keys && i < count; i++) {
        if (!serves(keymanager, keys[i]))
            log_write(LOG_WARN,
                      "key is not served any more under this other token or identity: what SPIRE "
                      "signs with it fails; go back, or restart the server for new keys",
                      "key_id", keys[i]->key_id, "label", keys[i]->name.label, "token",
                      before->info.label, NULL);
        keymanager_drop(before, keys[i]);
    }
    free(keys);
}

int loading_run(struct keymanager *keymanager, struct keymanager *before, int64_t deadline,
                const atomic_bool *cancel, struct fault *fault)
{
    struct tally tally = {.keymanager = keymanager, .cancel = cancel, .deadline = deadline};
    int result;

    (void)pthread_mutex_init(&tally.mutex, NULL);
    condition_open(&tally.changed);
    result = take_stock(&tally, before, fault);
    if (result == 0 && tally.cancelled) /* all answers were there by then */
        result = fault_set(fault, FAULT_UNAVAILABLE, "the plugin is shutting down");
    if (result == 0)
        result = serve_all(keymanager, &tally.inventory, fault);
    if (result == 0)
        log_loaded(keymanager, &tally.scan);
    if (result == 0 && before)
        warn_of_missing(keymanager, before);
    inventory_clear(&tally.inventory);
    (void)pthread_cond_destroy(&tally.changed);
    (void)pthread_mutex_destroy(&tally.mutex);
    return result;
}
