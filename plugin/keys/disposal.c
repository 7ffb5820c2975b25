/* Keys that are to leave the token: quietly, off the request path, until seen gone. What
 * is not done when the process ends is found again by the scan of the next Configure. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "plugin/keys/keymanager_private.h"
#include "plugin/report/log.h"
#include "plugin/report/metrics.h"

enum {
    STRAY_LOOKS = 3, /* a lagging HSM may show an object late */
    LOG_EVERY = 16,  /* of repeated failures on one object */
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
    struct keymanager *keymanager; /* not held: it outlives its supervisor's requests */
    enum disposal_kind kind;
    unsigned failures;
    unsigned looks; /* that found nothing any more */
    int64_t due;
    int64_t pause;
    char key_id[LABEL_KEY_ID_MAX + 1];
    struct hsm_key_name name;
    bool known; /* its public key's fingerprint */
    uint8_t fingerprint[HSM_FINGERPRINT];
};

void disposal_add(struct keymanager *keymanager, enum disposal_kind kind, const char *key_id,
                  const struct hsm_key_name *name, const struct hsm_public_key *public_key)
{
    struct disposal *disposal;

    if (!keymanager->config.destroy_superseded)
        return;
    disposal = calloc(1, sizeof *disposal);
    if (!disposal) /* the next Configure finds it */
        return;
    disposal->keymanager = keymanager;
    disposal->kind = kind;
    disposal->due = clock_now();
    disposal->pause = first_pause;
    disposal->name = *name;
    disposal->known = public_key && public_key->pkix_length > 0;
    if (disposal->known)
        memcpy(disposal->fingerprint, public_key->fingerprint, sizeof disposal->fingerprint);
    (void)snprintf(disposal->key_id, sizeof disposal->key_id, "%s", key_id);
    (void)pthread_mutex_lock(&keymanager->mutex);
    LIST_INSERT_HEAD(&keymanager->disposals, disposal, link);
    (void)pthread_mutex_unlock(&keymanager->mutex);
}

static void log_disposal(const struct disposal *disposal, enum log_level level,
                         const struct fault *fault, const char *message)
{
    char id[2 * HSM_ID_MAX + 1];

    keymanager_cka_id(&disposal->name, id);
    if (fault)
        log_fault(level, fault, message, "key_id", disposal->key_id, "label", disposal->name.label,
                  "cka_id", id, NULL);
    else
        log_write(level, message, "key_id", disposal->key_id, "label", disposal->name.label,
                  "cka_id", id, NULL);
}

/* What stands under the name is not what was to be destroyed. (A CKR of that code, such as
 * CKR_TOKEN_WRITE_PROTECTED, may pass.) */
static bool is_another(const struct fault *fault)
{
    return fault->code == FAULT_FAILED_PRECONDITION && fault->ckr == 0;
}

/* Is this object settled? If not, when to look again. */
static bool settled(struct disposal *disposal, const struct fault *fault)
{
    bool gone = fault->code == FAULT_NONE;

    if (gone && (disposal->kind != DISPOSE_STRAY || ++disposal->looks == STRAY_LOOKS))
        return true;
    if (fault->code == FAULT_PERMISSION_DENIED || is_another(fault))
        return true;
    disposal->due = clock_now() + disposal->pause;
    disposal->pause = disposal->pause < longest_pause / 2 ? 2 * disposal->pause : longest_pause;
    return false;
}

static void log_outcome(struct disposal *disposal, const struct fault *fault, bool is_settled)
{
    if (fault->code == FAULT_NONE && disposal->kind != DISPOSE_STRAY)
        log_disposal(disposal, LOG_INFO, NULL, events[disposal->kind]);
    else if (fault->code == FAULT_NONE)
        log_disposal(disposal, LOG_DEBUG, NULL, events[disposal->kind]);
    else if (is_another(fault))
        log_disposal(disposal, LOG_WARN, fault, "key to destroy is not what it was taken for");
    else if (is_settled)
        log_disposal(disposal, LOG_WARN, fault,
                     "token does not allow destroying this key; it stays (set destroy_superseded "
                     "= false if that is meant)");
    else if (disposal->failures++ % LOG_EVERY == 0)
        log_disposal(disposal, LOG_WARN, fault, "cannot destroy key yet; will try again");
}

/* With the mutex held. One at a time, each after the other: so signatures have the other
 * sessions, and hundreds that a crash loop left are gone in seconds all the same. */
static struct disposal *next_due(struct keymanager *keymanager, int64_t now)
{
    struct disposal *disposal;

    if (!keymanager->cleaning || keymanager->disposing)
        return NULL;
    LIST_FOREACH (disposal, &keymanager->disposals, link)
        if (disposal->due <= now)
            return disposal;
    return NULL;
}

/* The next one follows at once, unless keys are being made: SoftHSM shows half of what it has
 * while objects come and go. Nor after a refusal, which comes from within supervisor_submit. */
static void disposed(void *context, const struct hsm_reply *reply)
{
    struct disposal *disposal = context;
    struct keymanager *keymanager = disposal->keymanager;
    bool is_settled;
    bool go_on;

    (void)pthread_mutex_lock(&keymanager->mutex);
    go_on = reply->fault.code == FAULT_NONE && LIST_EMPTY(&keymanager->attempts);
    is_settled = settled(disposal, &reply->fault);
    keymanager->disposing = false;
    if (!keymanager->closing)
        log_outcome(disposal, &reply->fault, is_settled);
    if (is_settled && reply->fault.code == FAULT_NONE && disposal->kind != DISPOSE_STRAY)
        metrics_count(METRIC_KEY_DESTROYED);
    if (is_settled) {
        LIST_REMOVE(disposal, link);
        free(disposal);
    }
    (void)pthread_mutex_unlock(&keymanager->mutex);
    if (go_on)
        disposal_tick(keymanager);
}

static void dispose(struct disposal *disposal)
{
    struct hsm_request request = {.op = HSM_DESTROY, .key = disposal->name};

    if (disposal->kind == DISPOSE_HALF)
        request.expect = HSM_EXPECT_HALF;
    else if (disposal->known)
        request.expect = HSM_EXPECT_KEY;
    memcpy(request.fingerprint, disposal->fingerprint, sizeof request.fingerprint);
    supervisor_submit(disposal->keymanager->supervisor,
                      &(struct supervisor_request){.request = &request,
                                                   .deadline = clock_now() + request_limit,
                                                   .done = disposed,
                                                   .context = disposal});
}

void disposal_tick(struct keymanager *keymanager)
{
    struct disposal *disposal;

    do {
        (void)pthread_mutex_lock(&keymanager->mutex);
        disposal = next_due(keymanager, clock_now());
        if (disposal)
            keymanager->disposing = true;
        (void)pthread_mutex_unlock(&keymanager->mutex);
        if (disposal)
            dispose(disposal);
    } while (disposal);
}

void disposal_free_all(struct keymanager *keymanager)
{
    struct disposal *disposal;

    while ((disposal = LIST_FIRST(&keymanager->disposals)) != NULL) {
        LIST_REMOVE(disposal, link);
        free(disposal);
    }
}
