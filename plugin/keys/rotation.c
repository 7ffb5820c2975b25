/* GenerateKey as its callers see it: one attempt per key id makes a new pair (attempt.c), and all
 * callers that ask for this id meanwhile wait for it. The attempt outlives its callers: a slow HSM
 * makes calls fail, but makes exactly one key. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"
#include "plugin/keys/keymanager_private.h"
#include "plugin/report/metrics.h"

static const int64_t last_chance = 900 * CLOCK_MILLISECOND; /* before a deadline */
static const int64_t shortest_pause = CLOCK_SECOND / 10;

static void enter_all(struct keymanager *keymanager, struct waiters *waiting);

static void lock(struct keymanager *keymanager)
{
    (void)pthread_mutex_lock(&keymanager->mutex);
}

static void unlock(struct keymanager *keymanager)
{
    (void)pthread_mutex_unlock(&keymanager->mutex);
}

static void answer(struct waiter *waiter, const struct catalogue_key *key,
                   const struct fault *fault)
{
    if (fault)
        metrics_count(METRIC_KEY_NOT_MADE, waiter->key_id, metric_code(fault->code), 1);
    waiter->done(waiter->context, key, fault);
    free(waiter);
}

static void answer_all(struct waiters *waiters, const struct catalogue_key *key,
                       const struct fault *fault)
{
    struct waiter *waiter;

    while ((waiter = TAILQ_FIRST(waiters)) != NULL) {
        TAILQ_REMOVE(waiters, waiter, link);
        answer(waiter, key, fault);
    }
}

/* ---- the end of an attempt ---- */

/* Moves the waiters that want a key of this type or, with same == false, of another type. */
static void pick(struct waiters *from, enum hsm_key_type type, bool same, struct waiters *to)
{
    struct waiter *waiter = TAILQ_FIRST(from);

    while (waiter) {
        struct waiter *next = TAILQ_NEXT(waiter, link);

        if ((waiter->type == type) == same) {
            TAILQ_REMOVE(from, waiter, link);
            TAILQ_INSERT_TAIL(to, waiter, link);
        }
        waiter = next;
    }
}

static void name_failure(struct fault *fault, const char *key_id, enum hsm_key_type type)
{
    (void)fault_prefix(fault, "failed to generate key \"%s\" (%s)", key_id,
                       hsm_key_type_name(type));
}

void rotation_conclude(struct attempt *attempt, struct catalogue_key *key,
                       const struct fault *fault)
{
    struct keymanager *keymanager = attempt->keymanager;
    struct fault named = {.code = FAULT_NONE};
    struct waiters served = TAILQ_HEAD_INITIALIZER(served);
    struct waiters others = TAILQ_HEAD_INITIALIZER(others);

    if (fault) {
        named = *fault;
        name_failure(&named, attempt->label.key_id, attempt->type);
    }
    lock(keymanager);
    LIST_REMOVE(attempt, link);
    pick(&attempt->waiters, attempt->type, true, &served);
    pick(&attempt->waiters, attempt->type, false, &others);
    if (key)
        key->unclaimed = TAILQ_EMPTY(&served);
    (void)pthread_cond_broadcast(&keymanager->drained);
    unlock(keymanager);
    answer_all(&served, key, fault ? &named : NULL);
    enter_all(keymanager, &others);
    free(attempt);
    keymanager_release(keymanager);
}

/* ---- who asks ---- */

static struct attempt *find_attempt(struct keymanager *keymanager, const char *key_id)
{
    struct attempt *attempt;

    LIST_FOREACH (attempt, &keymanager->attempts, link)
        if (strcmp(attempt->label.key_id, key_id) == 0)
            return attempt;
    return NULL;
}

static struct attempt *new_attempt(struct keymanager *keymanager, const struct waiter *waiter)
{
    struct attempt *attempt = calloc(1, sizeof *attempt);

    if (!attempt)
        return NULL;
    attempt->keymanager = keymanager_hold(keymanager);
    attempt->label.scope = keymanager->identity.scope;
    memcpy(attempt->label.key_id, waiter->key_id, sizeof attempt->label.key_id);
    attempt->type = waiter->type;
    TAILQ_INIT(&attempt->waiters);
    LIST_INSERT_HEAD(&keymanager->attempts, attempt, link);
    return attempt;
}

/* With the mutex held. The waiter joins the attempt for its key id; if *fresh is set, the caller
 * must begin it. */
static bool join(struct keymanager *keymanager, struct waiter *waiter, struct attempt **fresh)
{
    struct attempt *attempt = find_attempt(keymanager, waiter->key_id);

    if (!attempt)
        attempt = *fresh = new_attempt(keymanager, waiter);
    if (attempt)
        TAILQ_INSERT_TAIL(&attempt->waiters, waiter, link);
    return attempt != NULL;
}

/* With the mutex held. If the callers of an attempt had given up, its key goes to the next one that
 * asks for the same id and type. */
static bool claim(struct catalogue_key *key, const struct waiter *waiter)
{
    bool fits = key && key->unclaimed && !key->superseded && key->public_key.type == waiter->type;

    if (fits)
        key->unclaimed = false;
    return fits;
}

static void enter(struct keymanager *keymanager, struct waiter *waiter)
{
    struct catalogue_key *key = catalogue_find(&keymanager->catalogue, waiter->key_id);
    struct keymanager *successor;
    struct attempt *fresh = NULL;
    struct fault fault;
    bool claimed = false;
    bool refused = false;

    lock(keymanager);
    successor = keymanager->successor;
    if (successor)
        ;
    else if (keymanager->closing)
        refused = true;
    else if (keymanager->gate)
        TAILQ_INSERT_TAIL(&keymanager->gated, waiter, link);
    else if (claim(key, waiter))
        claimed = true;
    else
        refused = !join(keymanager, waiter, &fresh);
    unlock(keymanager);
    if (refused)
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "the plugin is shutting down or out of memory");
    if (claimed || refused)
        answer(waiter, claimed ? key : NULL, claimed ? NULL : &fault);
    if (fresh)
        attempt_begin(fresh);
    if (key)
        keymanager_drop(keymanager, key);
    if (successor)
        enter(successor, waiter);
}

static void enter_all(struct keymanager *keymanager, struct waiters *waiting)
{
    struct waiter *waiter;

    while ((waiter = TAILQ_FIRST(waiting)) != NULL) {
        TAILQ_REMOVE(waiting, waiter, link);
        enter(keymanager, waiter);
    }
}

/* The gate may have been opened meanwhile, so each waiter enters anew, wherever that leads. */
static void hand_over(struct attempt *attempt)
{
    struct waiters waiting = TAILQ_HEAD_INITIALIZER(waiting);
    struct keymanager *keymanager = attempt->keymanager;

    lock(keymanager);
    LIST_REMOVE(attempt, link);
    TAILQ_CONCAT(&waiting, &attempt->waiters, link);
    (void)pthread_cond_broadcast(&keymanager->drained);
    unlock(keymanager);
    free(attempt);
    enter_all(keymanager, &waiting);
    keymanager_release(keymanager);
}

/* With the mutex held. Returns `end`, or less: it leaves `before` to each waiter's deadline, but it
 * is never earlier than `least`. */
static int64_t cut_short(const struct attempt *attempt, int64_t end, int64_t least, int64_t before)
{
    const struct waiter *waiter;

    TAILQ_FOREACH (waiter, &attempt->waiters, link)
        if (waiter->deadline - before > least)
            end = clock_sooner(end, waiter->deadline - before);
    return end;
}

int64_t rotation_deadline(struct attempt *attempt)
{
    struct keymanager *keymanager = attempt->keymanager;
    int64_t now = clock_now();
    int64_t deadline;

    lock(keymanager);
    deadline = cut_short(attempt, now + keymanager->patience,
                         now + keymanager->config.operation_timeout, 0);
    unlock(keymanager);
    return deadline;
}

void rotation_stall(struct attempt *attempt, void (*step)(struct attempt *), int64_t pause,
                    const struct fault *reason)
{
    struct keymanager *keymanager = attempt->keymanager;
    int64_t now = clock_now();
    bool closing;
    bool gate;

    lock(keymanager);
    closing = keymanager->closing;
    gate = keymanager->gate;
    attempt->reason = *reason;
    if (!closing && !gate) {
        attempt->step = step;
        attempt->resume_at = cut_short(attempt, now + pause, now + shortest_pause, last_chance);
    }
    unlock(keymanager);
    if (closing)
        rotation_conclude(attempt, NULL, reason);
    else if (gate)
        hand_over(attempt);
}

void rotation_go_on(struct attempt *attempt)
{
    lock(attempt->keymanager);
    attempt->reason.code = FAULT_NONE;
    unlock(attempt->keymanager);
}

bool rotation_is_awaited(struct attempt *attempt)
{
    bool awaited;

    lock(attempt->keymanager);
    awaited = !TAILQ_EMPTY(&attempt->waiters);
    unlock(attempt->keymanager);
    return awaited;
}

bool rotation_is_busy(struct keymanager *keymanager)
{
    bool busy;

    lock(keymanager);
    busy = !LIST_EMPTY(&keymanager->attempts);
    unlock(keymanager);
    return busy;
}

static int check_request(const struct keymanager *keymanager, const char *key_id,
                         enum hsm_key_type type, struct fault *fault)
{
    struct hsm_token_info info;

    supervisor_info(keymanager->supervisor, &info);
    if (label_check_key_id(key_id, (size_t)keymanager->config.label_max, fault) != 0)
        return -1;
    if (strcmp(key_id, LABEL_TRIAL_KEY_ID) == 0)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "key id \"%s\" is reserved", key_id);
    if (!info.can_generate[type])
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "token \"%s\" cannot generate and use %s keys", info.label,
                         hsm_key_type_name(type));
    if (info.write_protected)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "token \"%s\" was write-protected when it was opened: restart the server "
                         "once it is not",
                         info.label);
    return 0;
}

void keymanager_generate(struct keymanager *keymanager, const char *key_id, enum hsm_key_type type,
                         int64_t deadline, keymanager_generated *done, void *context)
{
    struct waiter *waiter;
    struct fault fault;

    if (check_request(keymanager, key_id, type, &fault) != 0) {
        done(context, NULL, &fault);
        return;
    }
    waiter = calloc(1, sizeof *waiter);
    if (!waiter) {
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "out of memory");
        done(context, NULL, &fault);
        return;
    }
    (void)snprintf(waiter->key_id, sizeof waiter->key_id, "%s", key_id);
    waiter->type = type;
    waiter->deadline = deadline;
    waiter->done = done;
    waiter->context = context;
    enter(keymanager, waiter);
}

/* ---- the clock ---- */

/* Returns true if there was one. */
static bool pick_expired(struct waiters *from, int64_t now, struct waiters *to)
{
    struct waiter *waiter = TAILQ_FIRST(from);
    bool any = false;

    while (waiter) {
        struct waiter *next = TAILQ_NEXT(waiter, link);

        if (waiter->deadline <= now) {
            TAILQ_REMOVE(from, waiter, link);
            TAILQ_INSERT_TAIL(to, waiter, link);
            any = true;
        }
        waiter = next;
    }
    return any;
}

/* With the mutex held. */
static struct attempt *next_stalled(struct keymanager *keymanager, int64_t now,
                                    void (**step)(struct attempt *))
{
    struct attempt *attempt;

    LIST_FOREACH (attempt, &keymanager->attempts, link)
        if (attempt->step && attempt->resume_at <= now) {
            *step = attempt->step;
            attempt->step = NULL;
            return attempt;
        }
    return NULL;
}

/* Why the key of this waiter takes so long. `reason` is the error at which its attempt stalls, if
 * any. */
static void answer_expired(struct keymanager *keymanager, struct waiter *waiter,
                           const struct fault *reason)
{
    struct fault fault = *reason;

    if (fault.code == FAULT_NONE && supervisor_away(keymanager->supervisor, &fault))
        (void)fault_prefix(&fault, "the token is away");
    else if (fault.code == FAULT_NONE)
        (void)fault_set(&fault, FAULT_DEADLINE_EXCEEDED,
                        "the token needs longer than this call may take; it goes on, and the "
                        "next request for this key takes its result");
    if (fault.code != FAULT_DEADLINE_EXCEEDED)
        fault.code = FAULT_UNAVAILABLE; /* even for a refused PIN: SPIRE may ask again, and it may
                                           be right by then */
    name_failure(&fault, waiter->key_id, waiter->type);
    answer(waiter, NULL, &fault);
}

/* Takes those at the gate, or else those of one attempt. Returns false if there is nobody. */
static bool expire_some(struct keymanager *keymanager, int64_t now)
{
    struct waiters expired = TAILQ_HEAD_INITIALIZER(expired);
    struct fault reason = {.code = FAULT_NONE};
    struct attempt *attempt;
    struct waiter *waiter;
    bool any;

    lock(keymanager);
    any = pick_expired(&keymanager->gated, now, &expired);
    for (attempt = LIST_FIRST(&keymanager->attempts); attempt && !any;
         attempt = LIST_NEXT(attempt, link)) {
        any = pick_expired(&attempt->waiters, now, &expired);
        reason = attempt->reason;
    }
    unlock(keymanager);
    while ((waiter = TAILQ_FIRST(&expired)) != NULL) {
        TAILQ_REMOVE(&expired, waiter, link);
        answer_expired(keymanager, waiter, &reason);
    }
    return any;
}

void rotation_tick(struct keymanager *keymanager)
{
    int64_t now = clock_now();
    void (*step)(struct attempt *);
    struct attempt *attempt;

    while (expire_some(keymanager, now))
        ;
    do {
        lock(keymanager);
        attempt = next_stalled(keymanager, now, &step);
        unlock(keymanager);
        if (attempt)
            step(attempt);
    } while (attempt);
}

/* ---- the gate ---- */

int rotation_drain(struct keymanager *keymanager, int64_t deadline, const atomic_bool *cancel,
                   struct fault *fault)
{
    bool drained;

    lock(keymanager);
    keymanager->gate = true;
    while (!LIST_EMPTY(&keymanager->attempts) && clock_now() < deadline && !*cancel)
        condition_wait(&keymanager->drained, &keymanager->mutex, clock_now() + CLOCK_SECOND / 5);
    drained = LIST_EMPTY(&keymanager->attempts);
    unlock(keymanager);
    if (!drained)
        return fault_set(fault, FAULT_UNAVAILABLE,
                         "a key is being generated; reconfigure when it is done");
    return 0;
}

void rotation_open_gate(struct keymanager *keymanager, struct keymanager *successor)
{
    struct waiters waiting = TAILQ_HEAD_INITIALIZER(waiting);

    lock(keymanager);
    if (keymanager != successor)
        keymanager->successor = keymanager_hold(successor);
    keymanager->gate = false;
    TAILQ_CONCAT(&waiting, &keymanager->gated, link);
    unlock(keymanager);
    enter_all(successor, &waiting);
}

void rotation_abandon(struct keymanager *keymanager)
{
    struct waiters waiting = TAILQ_HEAD_INITIALIZER(waiting);
    struct attempt *attempt;
    struct fault fault;

    lock(keymanager);
    keymanager->closing = true;
    TAILQ_CONCAT(&waiting, &keymanager->gated, link);
    LIST_FOREACH (attempt, &keymanager->attempts, link)
        TAILQ_CONCAT(&waiting, &attempt->waiters, link);
    unlock(keymanager);
    disposals_hush(&keymanager->disposals);
    (void)fault_set(&fault, FAULT_UNAVAILABLE, "the plugin is shutting down");
    answer_all(&waiting, NULL, &fault);
}
