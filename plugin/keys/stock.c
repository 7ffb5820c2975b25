/* One look at the token during a start: scans it, then has keys proven, and repeats what fails. */
#include "plugin/keys/stock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"
#include "plugin/report/log.h"

enum { PROOFS_OUT_MAX = 64 };

static const int64_t tell_interval = 10 * CLOCK_SECOND;
static const int64_t quiet_time = 2 * CLOCK_SECOND;

void stock_open(struct stock *stock)
{
    (void)pthread_mutex_init(&stock->mutex, NULL);
    condition_open(&stock->changed);
}

void stock_close(struct stock *stock)
{
    inventory_clear(&stock->inventory);
    (void)pthread_cond_destroy(&stock->changed);
    (void)pthread_mutex_destroy(&stock->mutex);
}

/* ---- requests that run elsewhere, and their end ---- */

static void begin(struct stock *stock)
{
    (void)pthread_mutex_lock(&stock->mutex);
    stock->out++;
    (void)pthread_mutex_unlock(&stock->mutex);
}

static void end(struct stock *stock, const struct fault *fault, bool told)
{
    (void)pthread_mutex_lock(&stock->mutex);
    if (stock->fault.code == FAULT_NONE)
        stock->fault = *fault;
    stock->told += told;
    stock->out--;
    (void)pthread_cond_signal(&stock->changed);
    (void)pthread_mutex_unlock(&stock->mutex);
}

void stock_tell(struct stock *stock, const struct fault *why)
{
    if (clock_now() < stock->tell_at)
        return;
    log_fault(LOG_WARN, why,
              stock->scope ? "waiting for the keys on the token"
                           : "waiting for the keys in keys_file",
              NULL);
    stock->tell_at = clock_now() + tell_interval;
}

/* A failing request is repeated inside the supervisor for as long as the look may take. This tells
 * the log of it. */
static void log_trouble(struct stock *stock)
{
    int64_t lasts = clock_now() - stock->begun;
    struct fault trouble;

    if (lasts < quiet_time)
        return;
    if (supervisor_trouble(stock->supervisor, &trouble)) {
        stock_tell(stock, &trouble);
    } else if (lasts >= tell_interval) {
        (void)fault_set(&trouble, FAULT_UNAVAILABLE, "the search has not ended yet");
        stock_tell(stock, &trouble);
    }
}

/* Waits until at most `most` requests are out. They refer to the stock, so even a cancelled wait
 * lasts until all have come back; abandoning the supervisor makes them. */
static int wait_for(struct stock *stock, unsigned most, struct fault *fault)
{
    bool cancel;
    int result;

    (void)pthread_mutex_lock(&stock->mutex);
    while (stock->out > most) {
        condition_wait(&stock->changed, &stock->mutex, clock_now() + CLOCK_SECOND / 5);
        cancel = *stock->cancel && !stock->cancelled;
        stock->cancelled = stock->cancelled || cancel;
        (void)pthread_mutex_unlock(&stock->mutex);
        if (cancel)
            supervisor_abandon(stock->supervisor);
        else
            log_trouble(stock);
        (void)pthread_mutex_lock(&stock->mutex);
    }
    result = stock->fault.code == FAULT_NONE ? 0 : -1;
    if (result != 0)
        *fault = stock->fault;
    (void)pthread_mutex_unlock(&stock->mutex);
    return result;
}

void stock_pause(struct stock *stock, int64_t pause)
{
    int64_t until = clock_now() + pause;

    (void)pthread_mutex_lock(&stock->mutex);
    while (clock_now() < until && !*stock->cancel)
        condition_wait(&stock->changed, &stock->mutex, clock_now() + CLOCK_SECOND / 5);
    (void)pthread_mutex_unlock(&stock->mutex);
}

/* ---- walking ---- */

static void take_in(void *context, const struct hsm_item *item)
{
    struct stock *stock = context;

    if (item)
        inventory_add(&stock->inventory, stock->scope, item);
    else
        inventory_forget_seen(&stock->inventory);
}

static void scanned_item(void *context, const struct hsm_item *item)
{
    struct stock *stock = context;

    stock->item(stock->context, item);
}

static void scanned(void *context, const struct hsm_reply *reply)
{
    struct stock *stock = context;

    stock->scan = *reply;
    end(stock, &reply->fault, false);
}

/* A worker's thread must not go on with a request that nobody waits for any more. */
static uint32_t limit_of(int64_t left)
{
    int64_t milliseconds = left / CLOCK_MILLISECOND;

    return milliseconds > 0 && milliseconds <= UINT32_MAX ? (uint32_t)milliseconds : 0;
}

static int scan(struct stock *stock, const struct hsm_request *request, int64_t deadline,
                struct fault *fault)
{
    begin(stock);
    supervisor_submit(stock->supervisor, &(struct supervisor_request){.request = request,
                                                                      .deadline = deadline,
                                                                      .done = scanned,
                                                                      .item = scanned_item,
                                                                      .context = stock});
    return wait_for(stock, 0, fault);
}

int stock_list(struct stock *stock, int64_t deadline, hsm_item_fn *item, void *context,
               struct fault *fault)
{
    const struct hsm_request request = {.op = HSM_SCAN};

    stock->fault.code = FAULT_NONE;
    stock->begun = clock_now();
    stock->item = item;
    stock->context = context;
    return scan(stock, &request, deadline, fault);
}

static int walk(struct stock *stock, int64_t deadline, struct fault *fault)
{
    int64_t begun = clock_now();
    struct hsm_request request = {.op = HSM_SCAN, .limit_ms = limit_of(deadline - begun)};

    label_prefix(stock->scope, request.prefix);
    stock->item = take_in;
    stock->context = stock;
    if (scan(stock, &request, deadline, fault) != 0)
        return fault_prefix(fault, "cannot list the keys on the token");
    if (stock->scan.next.epoch != 0)
        return fault_set(fault, FAULT_UNAVAILABLE,
                         "the token has too many objects to list in time");
    stock->walk = clock_now() - begun;
    stock->walked = true;
    return 0;
}

/* ---- proving ---- */

struct proof {
    struct stock *stock;
    struct inventory_item *item;
};

static void take_answer(struct inventory_item *item, const struct hsm_reply *reply)
{
    item->state = reply->state;
    item->proven = true;
    item->why[0] = '\0';
    if (reply->state == HSM_COMPLETE)
        item->public_key = reply->public_key;
    else
        (void)snprintf(item->why, sizeof item->why, "%s", reply->why);
}

/* With a record, one key that cannot be proven says nothing against the others. */
static void proven(void *context, const struct hsm_reply *reply)
{
    static const struct fault none = {.code = FAULT_NONE};
    struct proof *proof = context;
    struct stock *stock = proof->stock;
    struct inventory_item *item = proof->item;
    struct fault fault = reply->fault;

    free(proof);
    if (reply->fault.code == FAULT_NONE) {
        take_answer(item, reply);
    } else {
        (void)snprintf(item->why, sizeof item->why, "%.*s", HSM_WHY_MAX - 1, reply->fault.message);
        (void)fault_prefix(&fault, "key \"%s\" (label %s) cannot be proven", item->label.key_id,
                           item->name.label);
    }
    end(stock, stock->record ? &none : &fault, reply->fault.code == FAULT_NONE);
}

static int prove(struct stock *stock, struct inventory_item *item, int64_t deadline,
                 struct fault *fault)
{
    const struct hsm_request request = {.op = HSM_PROVE, .key = item->name};
    struct proof *proof = malloc(sizeof *proof);

    if (!proof)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    *proof = (struct proof){.stock = stock, .item = item};
    begin(stock);
    supervisor_submit(stock->supervisor, &(struct supervisor_request){.request = &request,
                                                                      .deadline = deadline,
                                                                      .done = proven,
                                                                      .context = proof});
    return wait_for(stock, PROOFS_OUT_MAX, fault);
}

/* All requests have come back: returns `result`, or the failure of one of them. */
static int settle(struct stock *stock, int result, struct fault *fault)
{
    struct fault late;

    if (wait_for(stock, 0, &late) == 0 || result != 0)
        return result;
    *fault = late;
    return -1;
}

static int prove_round(struct stock *stock, int64_t deadline, struct fault *fault)
{
    struct inventory_item *item;
    int result = 0;

    for (item = inventory_first(&stock->inventory); item && result == 0;
         item = inventory_next_id(&stock->inventory, item)) {
        struct inventory_item *candidate = inventory_candidate(&stock->inventory, item);

        if (candidate && !candidate->proven)
            result = prove(stock, candidate, deadline, fault);
    }
    return settle(stock, result, fault);
}

/* If the newest key of an id is unfit, the next older one is tried in another round. */
int stock_prove_candidates(struct stock *stock, int64_t deadline, struct fault *fault)
{
    unsigned told;

    do {
        told = stock->told;
        if (prove_round(stock, deadline, fault) != 0)
            return -1;
    } while (stock->told > told);
    return 0;
}

/* Does verdict.h want this key proven: is it in the record, or has it our mark? */
static bool is_wanted(struct record *record, const struct inventory_item *item)
{
    const struct record_key *key = record_find(record, &item->name);

    if (item->proven)
        return false;
    if (!key)
        return record_knows(record, &item->name);
    return key->state != RECORD_CONDEMNED && key->state != RECORD_FOUND;
}

static int prove_wanted(struct stock *stock, int64_t deadline, struct fault *fault)
{
    int result = 0;

    for (size_t i = 0; i < stock->inventory.count && result == 0; i++)
        if (is_wanted(stock->record, &stock->inventory.items[i]))
            result = prove(stock, &stock->inventory.items[i], deadline, fault);
    return settle(stock, result, fault);
}

/* ---- one look ---- */

static int expect(struct stock *stock)
{
    for (size_t i = 0; i < stock->record->count; i++) {
        const struct record_key *key = &stock->record->keys[i];

        if (key->state != RECORD_CONDEMNED && key->state != RECORD_FOUND)
            inventory_expect(&stock->inventory, &key->label, &key->name);
    }
    return stock->inventory.out_of_memory ? -1 : 0;
}

static int look_by_record(struct stock *stock, int64_t deadline, int64_t walk_limit,
                          struct fault *fault)
{
    struct fault slow;
    int64_t until = clock_sooner(deadline, clock_now() + stock->step_limit);

    if (expect(stock) != 0)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    if (prove_wanted(stock, until, fault) != 0)
        return -1;
    if (walk(stock, clock_sooner(deadline, clock_now() + walk_limit), &slow) != 0)
        inventory_forget_seen(&stock->inventory);
    stock->fault.code = FAULT_NONE;
    return prove_wanted(stock, clock_sooner(deadline, clock_now() + stock->step_limit), fault);
}

int stock_look(struct stock *stock, int64_t deadline, int64_t walk_limit, struct fault *fault)
{
    int result;

    stock->fault.code = FAULT_NONE; /* nothing is out that could fail any more */
    stock->begun = clock_now();
    stock->walked = false;
    stock->told = 0;
    inventory_clear(&stock->inventory);
    if (stock->record)
        result = look_by_record(stock, deadline, walk_limit, fault);
    else
        result = walk(stock, deadline, fault);
    if (result == 0 && stock->inventory.out_of_memory)
        result = fault_set(fault, FAULT_UNAVAILABLE, "out of memory listing the keys on the token");
    if (result != 0)
        return -1;
    inventory_sort(&stock->inventory);
    return stock->record ? 0 : stock_prove_candidates(stock, deadline, fault);
}
