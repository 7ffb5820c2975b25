/* One new key, from its name to being served.
 *
 *   named, and written down as attempted (what is not on the disk within 2 s is made all the same)
 *       v
 *   generating --whole, proven-----------------------------> served
 *       |  outcome unknown (worker died, ambiguous error)      v
 *       v                                                  written down, as served; the old key as
 *   looking ----whole, proven------------------------------>   condemned: then it is answered
 *       |       (the token says it made it: looked for again and again, a cluster lags)
 *       |  not there, or half: that label is never used again, what may show up of it
 *       v  is cleared away, and a fresh generation begins
 *   named ...
 *
 * The served key is not touched before the new one is proven. Every step but generating
 * may be repeated at will; generating never is, under the same label. */
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "plugin/keys/keymanager_private.h"
#include "plugin/keys/moving.h"
#include "plugin/keys/previous.h"
#include "plugin/report/log.h"
#include "plugin/report/metrics.h"

enum { GENERATIONS_MAX = 5, DOUBLINGS_MAX = 2, UNFIT_MAX = 2, LATE_LOOKS = 15 };

static const int64_t pause_before_resuming = CLOCK_SECOND;

static void generate(struct attempt *attempt);

static void fail(struct attempt *attempt, const struct fault *fault)
{
    rotation_conclude(attempt, NULL, fault);
}

/* Destroys whatever this attempt may have left on the token, or what may show up later. */
static void clear_away(struct attempt *attempt)
{
    disposals_add(&attempt->keymanager->disposals, DISPOSE_STRAY, &attempt->label, &attempt->name,
                  NULL, 0);
}

/* ---- serving ---- */

/* The last holder of the old key lets it go for good; this may be a signature in flight. */
static void tell_superseded(struct keymanager *keymanager, struct catalogue_key *old)
{
    if (old->previous) {
        moving_tell(keymanager, old);
        keymanager_drop(keymanager, old);
        return;
    }
    keymanager_log_event(keymanager, "key superseded", old);
    if (!old->made)
        keymanager_log_event(keymanager, "superseded key stays for spire-hsm prune", old);
    keymanager_drop(keymanager, old);
}

/* SPIRE gets its key even if the record could not be written: a full disk fails no rotation. */
static void written_down(void *context, bool written)
{
    struct attempt *attempt = context;
    struct keymanager *keymanager = keymanager_hold(attempt->keymanager);
    struct catalogue_key *key = attempt->made;
    struct catalogue_key *old = attempt->old;

    (void)written; /* the scribe has logged a failure and tries again */
    rotation_conclude(attempt, key, NULL);
    if (old)
        tell_superseded(keymanager, old);
    keymanager_drop(keymanager, key);
    keymanager_release(keymanager);
}

/* The old key could not be proven when its successor was made. It may be lost or still be needed,
 * so it is displaced rather than condemned. */
static void write_down(struct attempt *attempt)
{
    struct keymanager *keymanager = attempt->keymanager;
    const struct record_key key = {.label = attempt->label,
                                   .name = attempt->name,
                                   .public_key = attempt->made->public_key,
                                   .made = true};
    bool lost = attempt->old && attempt->old->unproven;
    int64_t ran = scribe_ran(keymanager->scribe);
    struct record *record = scribe_edit(keymanager->scribe);
    struct record_key *old;

    (void)previous_move(record, attempt->label.key_id);
    if (record_serve(record, &key, lost, ran) == 0 && attempt->old &&
        !keymanager->config.destroy_superseded) {
        old = record_find(record, &attempt->old->name);
        if (old)
            old->state = RECORD_FOUND;
    }
    scribe_commit(keymanager->scribe, written_down, attempt);
}

static void serve(struct attempt *attempt, const struct hsm_public_key *public_key)
{
    struct keymanager *keymanager = attempt->keymanager;
    struct catalogue_key *key = catalogue_key_new(&attempt->label, &attempt->name, public_key);
    struct fault fault;

    if (key) {
        key->made = true;
        key->begun = clock_now();
    }
    if (!key || catalogue_serve(&keymanager->catalogue, catalogue_hold(key), &attempt->old) != 0) {
        free(key);
        clear_away(attempt);
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "out of memory");
        fail(attempt, &fault);
        return;
    }
    keymanager_log_event(keymanager, "key made", key);
    metrics_count(METRIC_KEY_MADE, NULL, NULL, 1);
    attempt->made = key;
    write_down(attempt);
}

/* ---- pauses ---- */

/* Each further generation waits longer (2 s, then always 4 s). The token may soon do what it
 * cannot do now, while the callers still wait. */
static int64_t pause_before(const struct attempt *attempt, void (*step)(struct attempt *))
{
    unsigned doublings = attempt->generations - 1;

    if (step != generate)
        return pause_before_resuming;
    return pause_before_resuming << (doublings < DOUBLINGS_MAX ? doublings : DOUBLINGS_MAX);
}

/* A step that ran out of time while the token was working gets twice the time. Otherwise no key
 * could ever be made where searching takes that long. */
static void allow_more_time(struct keymanager *keymanager)
{
    if (keymanager->patience < keymanager->config.generate_timeout)
        keymanager->patience *= 2;
}

/* The token could not answer, so the same step runs again in a moment. A caller that gives up
 * meanwhile hears `fault`. */
static void stall(struct attempt *attempt, void (*step)(struct attempt *),
                  const struct fault *fault)
{
    if (fault->code == FAULT_DEADLINE_EXCEEDED)
        allow_more_time(attempt->keymanager);
    rotation_stall(attempt, step, pause_before(attempt, step), fault);
}

static void submit(struct attempt *attempt, const struct hsm_request *request,
                   supervisor_done *done)
{
    supervisor_submit(attempt->keymanager->supervisor,
                      &(struct supervisor_request){.request = request,
                                                   .deadline = rotation_deadline(attempt),
                                                   .done = done,
                                                   .context = attempt});
}

/* ---- another worker ---- */

/* A library that cannot make keys any more may still sign. And a generation is never repeated, so
 * its failure replaces no worker. Therefore the attempt itself asks for another worker: after the
 * first failure, and then after ever more of them. */
static void want_another_worker(struct attempt *attempt)
{
    unsigned vain = ++attempt->vain;

    if ((vain & (vain - 1)) == 0)
        supervisor_renew(attempt->keymanager->supervisor);
}

/* ---- looking ---- */

/* After a lost answer an unfit key may just be unfinished: killed in C_GenerateKeyPair, SoftHSM
 * leaves a pair without CKA_LOCAL. */
static void name_the_reason(const struct attempt *attempt, const struct hsm_reply *reply,
                            struct fault *fault)
{
    bool doubted = attempt->doubt.code != FAULT_NONE;

    if (!doubted && (reply->state == HSM_UNFIT || reply->state == HSM_MISSIGNED))
        (void)fault_set(fault, FAULT_INTERNAL, "the token made a key that must not be served: %s",
                        reply->why);
    else
        (void)fault_set(fault, FAULT_UNAVAILABLE, "no whole key after %u tries%s%s",
                        attempt->generations, doubted ? ": " : "",
                        doubted ? attempt->doubt.message : "");
}

/* While callers wait, the attempt goes on until their deadline: most trouble passes. */
static bool is_given_up(struct attempt *attempt, bool unfit)
{
    if (unfit)
        return attempt->generations >= UNFIT_MAX;
    return attempt->generations >= GENERATIONS_MAX && !rotation_is_awaited(attempt);
}

/* This label names no usable key and is never used again. If the token says that it made a key, and
 * the attributes are wrong, a repetition is of no use. A key that signs wrongly now may sign
 * rightly in a moment, or by another worker. */
static void start_over(struct attempt *attempt, const struct hsm_reply *reply)
{
    bool unfit = reply->state == HSM_UNFIT && attempt->doubt.code == FAULT_NONE;
    bool worker_is_ill = attempt->doubt.ckr != 0 || reply->state == HSM_MISSIGNED;
    struct fault fault;

    clear_away(attempt);
    name_the_reason(attempt, reply, &fault);
    if (worker_is_ill && attempt->generations > 1)
        want_another_worker(attempt);
    if (is_given_up(attempt, unfit))
        fail(attempt, &fault);
    else if (attempt->generations == 1)
        generate(attempt);
    else
        stall(attempt, generate, &fault);
}

static void look(struct attempt *attempt);

/* A cluster of HSMs may show a new key only after all its members know it. */
static void look_later(struct attempt *attempt)
{
    struct fault fault;

    attempt->late_looks--;
    (void)fault_set(&fault, FAULT_UNAVAILABLE, "the token made the key, but does not show it yet");
    stall(attempt, look, &fault);
}

static bool is_late(const struct attempt *attempt, const struct hsm_reply *reply)
{
    return attempt->late_looks > 0 && inventory_may_be_late(reply->state);
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

    submit(attempt, &request, looked);
}

/* ---- generating ---- */

static void forget_attempt(struct attempt *attempt)
{
    record_remove(scribe_edit(attempt->keymanager->scribe), &attempt->name);
    scribe_commit(attempt->keymanager->scribe, NULL, NULL);
}

/* The request never reached the token, so its label is still unused. */
static void regenerate(struct attempt *attempt)
{
    attempt->generations--;
    forget_attempt(attempt);
    generate(attempt);
}

static void wait_for_token(struct attempt *attempt, const struct fault *fault)
{
    if (fault->ckr != 0)
        want_another_worker(attempt);
    stall(attempt, regenerate, fault);
}

/* The token refused and made nothing. If it is full, a condemned key is destroyed to make room. */
static void refused(struct attempt *attempt, const struct fault *fault)
{
    forget_attempt(attempt);
    if (fault->code == FAULT_RESOURCE_EXHAUSTED && attempt->generations < GENERATIONS_MAX &&
        disposals_make_room(&attempt->keymanager->disposals))
        stall(attempt, generate, fault);
    else
        fail(attempt, fault);
}

/* A key that seems unfit gets a second look, by label: SoftHSM shows an object that another process
 * has just touched without any attributes. */
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
        wait_for_token(attempt, &reply->fault);
    else
        refused(attempt, &reply->fault);
}

static void attempted(void *context, bool written)
{
    struct attempt *attempt = context;
    const struct hsm_request request = {
        .op = HSM_GENERATE, .type = attempt->type, .key = attempt->name};

    (void)written; /* after a crash here, spire-hsm prune finds the leftover */
    submit(attempt, &request, generated);
}

static int name_attempt(struct attempt *attempt, struct fault *fault)
{
    struct keymanager *keymanager = attempt->keymanager;
    uint32_t id_length = (uint32_t)keymanager->config.cka_id_length;
    struct label_maker maker = {.known = false};
    const struct record *record;

    if (generations_next(&keymanager->generations, &attempt->label.generation, fault) != 0)
        return -1;
    record = scribe_edit(keymanager->scribe);
    if (record->maker_count > 0)
        maker = record->makers[0].maker;
    scribe_leave(keymanager->scribe);
    label_format(&attempt->label, attempt->name.label);
    return label_new_id(attempt->label.generation, id_length, &maker, &attempt->name, fault);
}

static void generate(struct attempt *attempt)
{
    struct keymanager *keymanager = attempt->keymanager;
    struct record_key key = {.state = RECORD_ATTEMPTED, .made = true};
    struct fault fault;

    attempt->generations++;
    rotation_go_on(attempt);
    if (name_attempt(attempt, &fault) != 0) {
        fail(attempt, &fault);
        return;
    }
    key.label = attempt->label;
    key.name = attempt->name;
    key.public_key.type = attempt->type;
    (void)record_put(scribe_edit(keymanager->scribe), &key);
    scribe_commit(keymanager->scribe, attempted, attempt);
}

void attempt_begin(struct attempt *attempt)
{
    generate(attempt);
}
