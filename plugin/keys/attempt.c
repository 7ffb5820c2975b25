/* One new key, from a look at the token to being served.
 *
 *   checking --somebody else makes keys in our name: refused, nothing is destroyed any more
 *       v
 *   generating --whole, proven-----------------------------> served
 *       |  outcome unknown (worker died, ambiguous error)
 *       v
 *   looking ----whole, proven------------------------------> served
 *       |       (the token says it made it: looked for again and again, a cluster lags)
 *       |  not there, or half: that label is never used again, what may show up of it
 *       v  is cleared away, and a fresh generation begins
 *   generating ...
 *
 * The served key is not touched before the new one is proven. Every step but generating
 * may be repeated at will; generating never is, under the same label. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hsm/base/clock.h"
#include "plugin/keys/keymanager_private.h"
#include "plugin/report/log.h"
#include "plugin/report/metrics.h"

enum { GENERATIONS_MAX = 5, UNFIT_MAX = 2, LATE_LOOKS = 15 };

static const int64_t pause_before_resuming = CLOCK_SECOND;

static void check_for_rivals(struct attempt *attempt);
static void generate(struct attempt *attempt);

static void fail(struct attempt *attempt, const struct fault *fault)
{
    struct fault named = *fault;

    (void)fault_prefix(&named, "failed to generate key \"%s\" (%s)", attempt->label.key_id,
                       hsm_key_type_name(attempt->type));
    rotation_conclude(attempt, NULL, &named);
}

static void serve(struct attempt *attempt, const struct hsm_public_key *public_key)
{
    struct keymanager *keymanager = attempt->keymanager;
    struct catalogue_key *key = catalogue_key_new(&attempt->label, &attempt->name, public_key);
    struct catalogue_key *old = NULL;
    struct fault fault;

    if (key)
        key->ours = true;
    if (!key || catalogue_serve(&keymanager->catalogue, catalogue_hold(key), &old) != 0) {
        free(key);
        disposal_add(keymanager, DISPOSE_STRAY, attempt->label.key_id, &attempt->name, NULL);
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "out of memory");
        fail(attempt, &fault);
        return;
    }
    keymanager_log_event(keymanager, "key made", key);
    metrics_count(METRIC_KEY_MADE);
    (void)keymanager_hold(keymanager);
    rotation_conclude(attempt, key, NULL);
    if (old) {
        keymanager_log_event(keymanager, "key superseded", old);
        if (!old->ours)
            keymanager_log_event(keymanager, "superseded key stays for spire-hsm prune", old);
        keymanager_drop(keymanager, old);
    }
    keymanager_drop(keymanager, key);
    keymanager_release(keymanager);
}

/* A further generation waits longer each time (2, 4, 8 s): what the token cannot do now it
 * may do in a moment, within the patience of who asked. */
static int64_t pause_before(const struct attempt *attempt, void (*step)(struct attempt *))
{
    return step == generate ? pause_before_resuming << (attempt->generations - 1)
                            : pause_before_resuming;
}

/* A step that was given up though the token was at it gets twice the time: where searching
 * takes that long, no key would ever be made. */
static void be_more_patient(struct keymanager *keymanager)
{
    if (keymanager->patience < keymanager->config.generate_timeout)
        keymanager->patience *= 2;
}

/* The token could not say: the same step again in a moment, from the tick. Who waits may
 * give up meanwhile, and then hears `fault`; before a reconfiguration all go over to it. */
static void stall(struct attempt *attempt, void (*step)(struct attempt *),
                  const struct fault *fault)
{
    struct keymanager *keymanager = attempt->keymanager;
    bool closing;
    bool gate;

    (void)pthread_mutex_lock(&keymanager->mutex);
    closing = keymanager->closing;
    gate = keymanager->gate;
    attempt->reason = *fault;
    if (fault->code == FAULT_DEADLINE_EXCEEDED)
        be_more_patient(keymanager);
    if (!closing && !gate) {
        attempt->step = step;
        attempt->resume_at = clock_now() + pause_before(attempt, step);
    }
    (void)pthread_mutex_unlock(&keymanager->mutex);
    if (closing)
        fail(attempt, fault);
    else if (gate)
        rotation_hand_over(attempt);
}

static void submit(struct attempt *attempt, const struct hsm_request *request,
                   supervisor_done *done, hsm_item_fn *item)
{
    supervisor_submit(
        attempt->keymanager->supervisor,
        &(struct supervisor_request){.request = request,
                                     .deadline = clock_now() + attempt->keymanager->patience,
                                     .done = done,
                                     .item = item,
                                     .context = attempt});
}

/* ---- looking ---- */

/* What the label names is no key to serve: never again that label. A token that says it made
 * a key, and that one is unfit, is not asked five times. After a doubt an unfit key is but one
 * that was not finished: killed in C_GenerateKeyPair, SoftHSM leaves a pair without CKA_LOCAL. */
static void start_over(struct attempt *attempt, const struct hsm_reply *reply)
{
    bool unfit = reply->state == HSM_UNFIT && attempt->doubt.code == FAULT_NONE;
    unsigned most = unfit ? UNFIT_MAX : GENERATIONS_MAX;
    struct fault fault;

    disposal_add(attempt->keymanager, DISPOSE_STRAY, attempt->label.key_id, &attempt->name, NULL);
    if (attempt->generations < most) {
        if (attempt->generations == 1)
            generate(attempt);
        else
            stall(attempt, generate, &attempt->doubt);
        return;
    }
    if (unfit)
        (void)fault_set(&fault, FAULT_INTERNAL, "the token made a key that is not fit for use: %s",
                        reply->why);
    else
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "no whole key after %u tries%s%s", most,
                        attempt->doubt.code != FAULT_NONE ? ": " : "",
                        attempt->doubt.code != FAULT_NONE ? attempt->doubt.message : "");
    fail(attempt, &fault);
}

static void look(struct attempt *attempt);

/* What a cluster of HSMs has made may show only when all of them know of it. */
static void look_later(struct attempt *attempt)
{
    struct fault fault;

    attempt->late_looks--;
    (void)fault_set(&fault, FAULT_UNAVAILABLE, "the key was made, but is not to be seen yet");
    stall(attempt, look, &fault);
}

static bool is_late(const struct attempt *attempt, const struct hsm_reply *reply)
{
    return attempt->late_looks > 0 &&
           (reply->state == HSM_ABSENT || reply->state == HSM_HALF || reply->state == HSM_BARE);
}

static void looked(void *context, const struct hsm_reply *reply)
{
    struct attempt *attempt = context;

    if (reply->fault.code != FAULT_NONE)
        stall(attempt, look, &reply->fault);
    else if (reply->state == HSM_COMPLETE)
        serve(attempt, &reply->public_key);
    else if (is_late(attempt, reply))
        look_later(attempt);
    else
        start_over(attempt, reply);
}

static void look(struct attempt *attempt)
{
    const struct hsm_request request = {
        .op = HSM_PROVE, .key = attempt->name, .type = attempt->type};

    submit(attempt, &request, looked, NULL);
}

/* ---- generating ---- */

/* The request never reached the token: its label is still unused. */
static void regenerate(struct attempt *attempt)
{
    attempt->generations--;
    generate(attempt);
}

/* A key that seems unfit gets a second look, by label: SoftHSM shows an object that another
 * process has just touched with all its attributes unset. */
static void generated(void *context, const struct hsm_reply *reply)
{
    struct attempt *attempt = context;

    attempt->late_looks = reply->fault.code == FAULT_NONE ? LATE_LOOKS : 0;
    attempt->doubt = reply->fault;
    if (reply->fault.code == FAULT_NONE && reply->state == HSM_COMPLETE)
        serve(attempt, &reply->public_key);
    else if (reply->fault.code == FAULT_NONE && is_late(attempt, reply))
        look_later(attempt);
    else if (reply->fault.code == FAULT_NONE || reply->fault.code == FAULT_ABORTED)
        look(attempt);
    else if (reply->fault.code == FAULT_UNAVAILABLE)
        stall(attempt, regenerate, &reply->fault);
    else
        fail(attempt, &reply->fault);
}

/* With the mutex held. The oldest one on record makes room and sets the line up to which
 * everything passes for ours. */
static void remember(struct keymanager *keymanager, const struct attempt *attempt)
{
    struct made *made = &keymanager->made[keymanager->made_count++ % MADE_MAX];

    if (made->generation > keymanager->ours_up_to)
        keymanager->ours_up_to = made->generation;
    made->generation = attempt->label.generation;
    memcpy(made->id, attempt->name.id, sizeof made->id);
}

static int name_attempt(struct attempt *attempt, struct fault *fault)
{
    struct keymanager *keymanager = attempt->keymanager;
    uint32_t id_length = (uint32_t)keymanager->config.cka_id_length;
    int result;

    (void)pthread_mutex_lock(&keymanager->mutex);
    result =
        label_next_generation(time(NULL), keymanager->highest, &attempt->label.generation, fault);
    label_format(&attempt->label, attempt->name.label);
    if (result == 0)
        result = label_new_id(attempt->label.generation, id_length, &keymanager->identity.maker,
                              &attempt->name, fault);
    attempt->reason.code = FAULT_NONE;
    if (result == 0) {
        keymanager->highest = attempt->label.generation;
        remember(keymanager, attempt);
    }
    (void)pthread_mutex_unlock(&keymanager->mutex);
    return result;
}

static void generate(struct attempt *attempt)
{
    struct hsm_request request = {.op = HSM_GENERATE, .type = attempt->type};
    struct fault fault;

    attempt->generations++;
    if (name_attempt(attempt, &fault) != 0) {
        fail(attempt, &fault);
        return;
    }
    request.key = attempt->name;
    submit(attempt, &request, generated, NULL);
}

/* ---- checking for rivals ---- */

/* With the mutex held: was it there when we came, or made by us? */
static bool is_known(const struct keymanager *keymanager, const struct inventory_item *item)
{
    return item->label.generation <= keymanager->ours_up_to ||
           keymanager_made(keymanager, &item->label, &item->name);
}

/* A key in our name that we did not make: there is another process with this identity, and
 * what it serves must not be destroyed by us. For good, until a person has seen to it. */
static const struct inventory_item *find_rival(struct keymanager *keymanager,
                                               const struct inventory *inventory)
{
    const struct inventory_item *rival = NULL;
    uint32_t highest = inventory_highest(inventory);

    (void)pthread_mutex_lock(&keymanager->mutex);
    for (size_t i = 0; i < inventory->count && !rival; i++)
        if (!is_known(keymanager, &inventory->items[i]))
            rival = &inventory->items[i];
    if (highest > keymanager->highest)
        keymanager->highest = highest;
    if (rival) {
        keymanager->rivalry = true;
        keymanager->cleaning = false;
    }
    (void)pthread_mutex_unlock(&keymanager->mutex);
    return rival;
}

static void refuse_rivalry(struct attempt *attempt, const struct inventory_item *rival)
{
    struct fault fault;

    (void)fault_set(&fault, FAULT_FAILED_PRECONDITION,
                    "another process makes keys with this server's identity (label %s is not "
                    "ours): give each server a key identifier of its own, then restart",
                    rival->name.label);
    log_fault(LOG_ERROR, &fault, "two servers share one identity; no key is destroyed any more",
              NULL);
    fail(attempt, &fault);
}

static void add_item(void *context, const struct hsm_item *item)
{
    struct attempt *attempt = context;

    if (item)
        inventory_add(&attempt->inventory, &attempt->keymanager->identity.scope, item);
    else
        inventory_clear(&attempt->inventory);
}

static void rivals_checked(void *context, const struct hsm_reply *reply)
{
    struct attempt *attempt = context;
    const struct inventory_item *rival = NULL;
    struct fault fault = reply->fault;

    if (fault.code == FAULT_NONE && attempt->inventory.out_of_memory)
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "out of memory listing the keys on the token");
    if (fault.code != FAULT_NONE) {
        stall(attempt, check_for_rivals, &fault);
        return;
    }
    keymanager_searched(attempt->keymanager, attempt->begun);
    rival = find_rival(attempt->keymanager, &attempt->inventory);
    if (rival)
        refuse_rivalry(attempt, rival);
    else
        generate(attempt);
}

static void check_for_rivals(struct attempt *attempt)
{
    struct hsm_request request = {.op = HSM_SCAN};

    attempt->begun = clock_now();
    inventory_clear(&attempt->inventory);
    label_prefix(&attempt->keymanager->identity.scope, request.prefix);
    submit(attempt, &request, rivals_checked, add_item);
}

void attempt_begin(struct attempt *attempt)
{
    check_for_rivals(attempt);
}
