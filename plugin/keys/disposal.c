/* Keys on their way off the token: when each may be destroyed, and what becomes of a refusal. */
#include "plugin/keys/disposal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/hex.h"
#include "plugin/report/log.h"
#include "plugin/report/metrics.h"

enum {
    LOOKS = 3,      /* a cluster of HSMs may show an object late */
    LOG_EVERY = 16, /* of the repeated failures on one object, one in 16 is logged */
};

static const int64_t request_limit = 60 * CLOCK_SECOND;
static const int64_t first_pause = 5 * CLOCK_SECOND;
static const int64_t longest_pause = 600 * CLOCK_SECOND;

static const char *const events[] = {
    [DISPOSE_SUPERSEDED] = "superseded key destroyed",
    [DISPOSE_LEFTOVER] = "leftover key destroyed",
    [DISPOSE_HALF] = "leftover key destroyed",
    [DISPOSE_STRAY] = "half-made key cleared away",
};

struct disposal {
    LIST_ENTRY(disposal) link;
    struct disposals *disposals;
    enum disposal_kind kind;
    unsigned failures;
    unsigned looks; /* how many of them found nothing */
    bool hurried;   /* the token is full, so no day of waiting */
    int64_t since;  /* when it was condemned, by the record's running time */
    int64_t due;
    int64_t pause;
    struct label label;
    struct hsm_key_name name;
    bool known; /* its public key's fingerprint */
    uint8_t fingerprint[HSM_FINGERPRINT];
};

void disposals_open(struct disposals *disposals)
{
    LIST_INIT(&disposals->list);
    (void)pthread_mutex_init(&disposals->mutex, NULL);
}

void disposals_close(struct disposals *disposals)
{
    struct disposal *disposal;

    while ((disposal = LIST_FIRST(&disposals->list)) != NULL) {
        LIST_REMOVE(disposal, link);
        free(disposal);
    }
    (void)pthread_mutex_destroy(&disposals->mutex);
}

static void lock(struct disposals *disposals)
{
    (void)pthread_mutex_lock(&disposals->mutex);
}

static void unlock(struct disposals *disposals)
{
    (void)pthread_mutex_unlock(&disposals->mutex);
}

/* With the mutex held. */
static bool is_listed(const struct disposals *disposals, const struct hsm_key_name *name)
{
    const struct disposal *disposal;

    LIST_FOREACH (disposal, &disposals->list, link)
        if (label_same_name(&disposal->name, name))
            return true;
    return false;
}

void disposals_add(struct disposals *disposals, enum disposal_kind kind, const struct label *label,
                   const struct hsm_key_name *name, const struct hsm_public_key *public_key,
                   int64_t since)
{
    struct disposal *disposal;

    if (!disposals->config->destroy_superseded)
        return;
    disposal = calloc(1, sizeof *disposal);
    if (!disposal) /* without memory for it: the next start finds the object */
        return;
    disposal->disposals = disposals;
    disposal->kind = kind;
    disposal->since = since;
    disposal->due = clock_now();
    disposal->pause = first_pause;
    disposal->label = *label;
    disposal->name = *name;
    disposal->known = public_key && public_key->pkix_length > 0;
    if (disposal->known)
        memcpy(disposal->fingerprint, public_key->fingerprint, sizeof disposal->fingerprint);
    lock(disposals);
    if (is_listed(disposals, name))
        free(disposal);
    else
        LIST_INSERT_HEAD(&disposals->list, disposal, link);
    unlock(disposals);
}

void disposals_allow(struct disposals *disposals, bool allowed)
{
    lock(disposals);
    disposals->allowed = allowed;
    unlock(disposals);
}

void disposals_hush(struct disposals *disposals)
{
    lock(disposals);
    disposals->allowed = false;
    disposals->silent = true;
    unlock(disposals);
}

/* ---- what comes of it ---- */

static void log_disposal(const struct disposal *disposal, enum log_level level,
                         const struct fault *fault, const char *message)
{
    char id[2 * HSM_ID_MAX + 1];

    hex_encode(disposal->name.id, disposal->name.id_length, id);
    if (fault)
        log_fault(level, fault, message, "key_id", disposal->label.key_id, "label",
                  disposal->name.label, "cka_id", id, NULL);
    else
        log_write(level, message, "key_id", disposal->label.key_id, "label", disposal->name.label,
                  "cka_id", id, NULL);
}

/* The object of this name is not the key to destroy. (A fault with a CKR has another cause, such as
 * CKR_TOKEN_WRITE_PROTECTED, and may pass.) */
static bool is_another(const struct fault *fault)
{
    return fault->code == FAULT_FAILED_PRECONDITION && fault->ckr == 0;
}

/* Is there nothing more to do about this object? If there is, sets when to look again. */
static bool is_settled(struct disposal *disposal, const struct fault *fault)
{
    if (fault->code == FAULT_NONE && ++disposal->looks == LOOKS)
        return true;
    if (fault->code == FAULT_PERMISSION_DENIED || is_another(fault))
        return true;
    disposal->due = clock_now() + disposal->pause;
    disposal->pause = disposal->pause < longest_pause / 2 ? 2 * disposal->pause : longest_pause;
    return false;
}

static void log_outcome(struct disposal *disposal, const struct fault *fault, bool settled)
{
    bool first = disposal->looks == 1 && disposal->kind != DISPOSE_STRAY;

    if (fault->code == FAULT_NONE)
        log_disposal(disposal, first ? LOG_INFO : LOG_DEBUG, NULL, events[disposal->kind]);
    else if (is_another(fault))
        log_disposal(disposal, LOG_WARN, fault, "the key to destroy turned out to be another key");
    else if (settled)
        log_disposal(disposal, LOG_WARN, fault,
                     "token does not allow destroying this key; it stays (set destroy_superseded = "
                     "false if you want that)");
    else if (disposal->failures++ % LOG_EVERY == 0)
        log_disposal(disposal, LOG_WARN, fault, "cannot destroy key yet; will try again");
}

/* The role may be allowed to destroy keys after the next start, so the record keeps this one. */
static void write_down(const struct disposal *disposal, const struct fault *fault)
{
    if (fault->code == FAULT_PERMISSION_DENIED)
        return;
    record_remove(scribe_edit(disposal->disposals->scribe), &disposal->name);
    scribe_commit(disposal->disposals->scribe, NULL, NULL);
}

/* ---- which one is next ---- */

/* With the mutex held. */
static unsigned condemned_after(const struct disposal *disposal)
{
    const struct disposal *other;
    unsigned count = 0;

    LIST_FOREACH (other, &disposal->disposals->list, link)
        count += other->kind == DISPOSE_SUPERSEDED &&
                 strcmp(other->label.key_id, disposal->label.key_id) == 0 &&
                 other->label.generation > disposal->label.generation;
    return count;
}

/* With the mutex held. A condemned key waits for a day of running time: until then an error in our
 * judgement can show. A full token, or too many keys of one id, shorten the wait. */
static bool has_waited(const struct disposal *disposal)
{
    const struct disposals *disposals = disposal->disposals;
    int64_t after = disposals->config->destroy_superseded_after / CLOCK_SECOND;

    return disposal->hurried || scribe_ran(disposals->scribe) - disposal->since >= after ||
           condemned_after(disposal) >= disposals->config->keep_condemned;
}

/* With the mutex held. An immediate destruction is not held up by rivals. */
static bool may_go(const struct disposal *disposal)
{
    const struct disposals *disposals = disposal->disposals;

    if (disposal->kind != DISPOSE_SUPERSEDED)
        return true;
    return has_waited(disposal) && scribe_is_written(disposals->scribe) &&
           (disposals->config->destroy_superseded_after == 0 ||
            rivals_allow(disposals->rivals, disposal->label.generation));
}

/* With the mutex held. One at a time, so that signatures have the other sessions. Even hundreds of
 * keys from a crash loop are gone within seconds. A key that has gone is looked for again only when
 * nothing else is due: otherwise hundreds would wait for those looks. */
static struct disposal *next_due(struct disposals *disposals, int64_t now)
{
    struct disposal *gone = NULL;
    struct disposal *disposal;

    if (!disposals->allowed || disposals->out)
        return NULL;
    LIST_FOREACH (disposal, &disposals->list, link) {
        if (disposal->due > now || !may_go(disposal))
            continue;
        if (disposal->looks == 0)
            return disposal;
        gone = disposal;
    }
    return gone;
}

/* Is this disposal on its way, with nothing against it so far? */
static bool makes_room(const struct disposal *disposal)
{
    return disposal->hurried && disposal->looks == 0 && disposal->failures == 0;
}

static bool is_older(const struct disposal *disposal, const struct disposal *other)
{
    return disposal->since != other->since ? disposal->since < other->since
                                           : disposal->label.generation < other->label.generation;
}

bool disposals_make_room(struct disposals *disposals)
{
    struct disposal *oldest = NULL;
    struct disposal *disposal;
    bool pending = false;

    lock(disposals);
    LIST_FOREACH (disposal, &disposals->list, link) {
        pending = pending || makes_room(disposal);
        if (disposal->kind == DISPOSE_SUPERSEDED && !disposal->hurried && disposal->looks == 0 &&
            (!oldest || is_older(disposal, oldest)))
            oldest = disposal;
    }
    if (oldest && !pending)
        oldest->hurried = true;
    unlock(disposals);
    return pending || oldest;
}

/* ---- destroying ---- */

/* The next disposal follows at once, except while keys are being made. After a refusal it waits for
 * the tick, because refusals come from within supervisor_submit. If a disposal was to make room and
 * its key had gone earlier, another disposal takes its turn. */
static void disposed(void *context, const struct hsm_reply *reply)
{
    struct disposal *disposal = context;
    struct disposals *disposals = disposal->disposals;
    bool done = reply->fault.code == FAULT_NONE;
    bool go_on = done && !disposals->is_busy(disposals->context);
    bool in_vain;
    bool settled;
    bool gone;

    lock(disposals);
    in_vain = done && reply->items == 0 && makes_room(disposal);
    settled = is_settled(disposal, &reply->fault);
    disposals->out = false;
    if (!disposals->silent)
        log_outcome(disposal, &reply->fault, settled);
    gone = done && disposal->looks == 1 && disposal->kind != DISPOSE_STRAY;
    if (settled)
        LIST_REMOVE(disposal, link);
    unlock(disposals);
    if (gone)
        metrics_count(METRIC_KEY_DESTROYED, NULL, NULL, 1);
    if (settled) {
        write_down(disposal, &reply->fault);
        free(disposal);
    }
    if (go_on || (in_vain && disposals_make_room(disposals)))
        disposals_tick(disposals);
}

static void dispose(struct disposal *disposal)
{
    struct hsm_request request = {.op = HSM_DESTROY, .key = disposal->name};

    if (disposal->known)
        request.expect = HSM_EXPECT_KEY;
    else if (disposal->kind == DISPOSE_HALF || disposal->kind == DISPOSE_SUPERSEDED)
        request.expect = HSM_EXPECT_HALF;
    memcpy(request.fingerprint, disposal->fingerprint, sizeof request.fingerprint);
    supervisor_submit(disposal->disposals->supervisor,
                      &(struct supervisor_request){.request = &request,
                                                   .deadline = clock_now() + request_limit,
                                                   .done = disposed,
                                                   .context = disposal});
}

void disposals_tick(struct disposals *disposals)
{
    struct disposal *disposal;

    do {
        lock(disposals);
        disposal = next_due(disposals, clock_now());
        if (disposal)
            disposals->out = true;
        unlock(disposals);
        if (disposal)
            dispose(disposal);
    } while (disposal);
}
