/* The key manager's door: opening, signing, the change of configuration, closing. Making keys is
 * rotation.c's, the start is loading.c's. */
#include "plugin/keys/keymanager.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/rand.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"
#include "hsm/base/hex.h"
#include "hsm/base/scope.h"
#include "plugin/keys/keymanager_private.h"
#include "plugin/keys/loss.h"
#include "plugin/keys/previous.h"
#include "plugin/report/log.h"

/* Kept for the token after it has come back: scanning and proving get at least this long even if
 * startup_wait is nearly over. */
static const int64_t loading_time = 30 * CLOCK_SECOND;

struct catalogue *keymanager_catalogue(struct keymanager *keymanager)
{
    return &keymanager->catalogue;
}

int64_t keymanager_call_timeout(const struct keymanager *keymanager)
{
    return keymanager->config.call_timeout;
}

void keymanager_log_event(const struct keymanager *keymanager, const char *event,
                          const struct catalogue_key *key)
{
    char id[2 * HSM_ID_MAX + 1];

    hex_encode(key->name.id, key->name.id_length, id);
    log_write(LOG_INFO, event, "key_id", key->key_id, "key_type",
              hsm_key_type_name(key->public_key.type), "label", key->name.label, "cka_id", id,
              "sha256", key->fingerprint, "local_authority_id", key->authority_id, "token",
              keymanager->info.label, NULL);
}

/* ---- life ---- */

static void free_keymanager(void *context)
{
    struct keymanager *keymanager = context;

    disposals_close(&keymanager->disposals);
    if (keymanager
            ->successor) { /* signatures in flight used keys that the successor has superseded */
        disposals_allow(&keymanager->successor->disposals, true);
        keymanager_release(keymanager->successor);
    }
    rivals_close(&keymanager->rivals);
    catalogue_close(&keymanager->catalogue);
    generations_close(&keymanager->generations);
    if (keymanager->scribe)
        scribe_release(keymanager->scribe);
    identity_close(&keymanager->identity);
    (void)pthread_cond_destroy(&keymanager->drained);
    (void)pthread_mutex_destroy(&keymanager->mutex);
    free(keymanager);
}

static void tick(void *context)
{
    struct keymanager *keymanager = context;

    scribe_tick(keymanager->scribe);
    rotation_tick(keymanager);
    rivals_tick(&keymanager->rivals);
    disposals_tick(&keymanager->disposals);
}

static bool is_busy(void *context)
{
    return rotation_is_busy(context);
}

static struct keymanager *new_keymanager(const struct config *config)
{
    struct keymanager *keymanager = calloc(1, sizeof *keymanager);

    if (!keymanager)
        return NULL;
    keymanager->config = config->keymanager;
    explicit_bzero(keymanager->config.place.pin, sizeof keymanager->config.place.pin);
    explicit_bzero(&keymanager->config.previous, sizeof keymanager->config.previous);
    keymanager->identity.lock = -1;
    keymanager->holders = 1;
    keymanager->patience = keymanager->config.operation_timeout;
    catalogue_open(&keymanager->catalogue);
    generations_open(&keymanager->generations);
    rivals_open(&keymanager->rivals, &keymanager->identity.scope);
    keymanager->disposals = (struct disposals){.config = &keymanager->config,
                                               .rivals = &keymanager->rivals,
                                               .is_busy = is_busy,
                                               .context = keymanager};
    disposals_open(&keymanager->disposals);
    (void)pthread_mutex_init(&keymanager->mutex, NULL);
    condition_open(&keymanager->drained);
    TAILQ_INIT(&keymanager->gated);
    LIST_INIT(&keymanager->attempts);
    return keymanager;
}

/* ---- the record ---- */

static bool shares_record(const struct keymanager *before, const struct keymanager *keymanager)
{
    return before && strcmp(before->config.record_file, keymanager->config.record_file) == 0 &&
           label_same_scope(&before->identity.scope, &keymanager->identity.scope);
}

/* Takes the identity's place: its maker's mark tells which keys were made here. */
static int take_place(struct keymanager *keymanager, struct fault *fault)
{
    uint8_t random[sizeof keymanager->identity.maker.key];

    if (RAND_bytes(random, sizeof random) != 1)
        return fault_set(fault, FAULT_INTERNAL, "no random numbers for the record");
    if (keymanager->identity.maker.known) /* the place of a configured value has its own mark */
        memcpy(random, keymanager->identity.maker.key, sizeof random);
    (void)record_take_place(scribe_edit(keymanager->scribe), keymanager->identity.place, random,
                            generations_now());
    scribe_leave(keymanager->scribe);
    explicit_bzero(random, sizeof random);
    return 0;
}

/* A start whose record_file has no section for it, but those of other servers, would forget its own
 * keys. */
static int check_owner(const struct keymanager *keymanager, struct fault *fault)
{
    char code[RECORD_CODE + 1];
    bool anothers = record_is_anothers(scribe_edit(keymanager->scribe), code);

    scribe_leave(keymanager->scribe);
    if (!anothers)
        return 0;
    if (!loss_is_accepted(&keymanager->config, keymanager->config.record_file, code))
        return loss_refuse_anothers(&keymanager->config, code, fault);
    log_write(LOG_WARN, "this server begins a record in the record_file of others", "path",
              keymanager->config.record_file, "code", code, NULL);
    return 0;
}

/* If both the file and its copy are damaged, the operator can accept their loss. */
static int read_record(struct keymanager *keymanager, enum scribe_found *found, struct fault *fault)
{
    const char *path = keymanager->config.record_file;
    const struct label_scope *scope = &keymanager->identity.scope;
    char code[RECORD_CODE + 1];

    if (scribe_open(path, scope, &keymanager->scribe, found, fault) == 0)
        return 0;
    if (!scribe_is_damaged(path, scope, code))
        return -1;
    if (!loss_is_accepted(&keymanager->config, path, code))
        return loss_refuse_damage(code, fault);
    log_fault(LOG_WARN, fault,
              "the loss of record_file is accepted: the record begins anew with the keys on the "
              "token",
              "path", path, "code", code, NULL);
    *found = SCRIBE_NOTHING;
    return scribe_open_anew(path, scope, &keymanager->scribe, fault);
}

static int open_record(struct keymanager *keymanager, struct keymanager *before,
                       struct fault *fault)
{
    enum scribe_found found = SCRIBE_RECORD;

    if (shares_record(before, keymanager))
        keymanager->scribe = scribe_hold(before->scribe);
    else if (read_record(keymanager, &found, fault) != 0)
        return -1;
    keymanager->recorded = found == SCRIBE_RECORD;
    if (!before && !keymanager->recorded && check_owner(keymanager, fault) != 0)
        return -1;
    keymanager->rivals.scribe = keymanager->scribe;
    keymanager->disposals.scribe = keymanager->scribe;
    return take_place(keymanager, fault);
}

/* How long the token took to open: the limit for a library that hangs during a reconfiguration. */
static int64_t opened_in(const struct keymanager *before, const char *module)
{
    struct supervisor_figures figures;

    if (!before || strcmp(before->config.place.module, module) != 0)
        return 0;
    supervisor_measure(before->supervisor, &figures);
    return figures.opened_in;
}

static int start(struct keymanager *keymanager, const struct keymanager *before,
                 const struct config *config, struct fault *fault)
{
    struct supervisor_options options = {
        .lock = keymanager->identity.lock,
        .operation_limit = config->keymanager.operation_timeout,
        .generate_limit = config->keymanager.generate_timeout,
        .keep_alive = config->keymanager.keep_alive,
        .startup_wait = config->keymanager.startup_wait,
        .opened_in = opened_in(before, config->keymanager.place.module),
        .tick = tick,
        .ended = free_keymanager,
        .context = keymanager,
    };
    int result;

    config_settings(&config->keymanager, &options.settings);
    result = supervisor_start(&options, &keymanager->supervisor, fault);
    hsm_settings_wipe(&options.settings);
    return result;
}

static int start_source(struct keymanager *keymanager, const struct config *config,
                        struct fault *fault)
{
    OWNED(config_wipe) struct config previous = {.kind = CONFIG_KEYMANAGER};

    if (!config_previous(config, &previous))
        return 0;
    return source_open(&previous, false, &keymanager->source, fault);
}

static int load(struct keymanager *keymanager, struct keymanager *before, const atomic_bool *cancel,
                struct fault *fault)
{
    int64_t deadline = clock_now() + keymanager->config.startup_wait;

    if (supervisor_wait(keymanager->supervisor, deadline, cancel, &keymanager->info, fault) != 0)
        return -1;
    deadline = clock_later(deadline, clock_now() + loading_time);
    if (before && rotation_drain(before, deadline, cancel, fault) != 0)
        return -1;
    return loading_run(keymanager, before, deadline, cancel, fault);
}

int keymanager_open(const struct config *config, struct keymanager *before,
                    const atomic_bool *cancel, struct keymanager **keymanager, struct fault *fault)
{
    struct keymanager *made = new_keymanager(config);

    if (!made)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    if (identity_open(config, before ? &before->identity : NULL, &made->identity, fault) != 0 ||
        open_record(made, before, fault) != 0 || start(made, before, config, fault) != 0) {
        free_keymanager(made);
        return -1;
    }
    if (start_source(made, config, fault) != 0 || load(made, before, cancel, fault) != 0) {
        if (before)
            rotation_open_gate(before, before);
        keymanager_release(made);
        return -1;
    }
    made->disposals.supervisor = made->supervisor;
    rivals_begin(&made->rivals, made->supervisor);
    *keymanager = made;
    return 0;
}

void keymanager_succeed(struct keymanager *keymanager, struct keymanager *before)
{
    if (before)
        rotation_open_gate(before, keymanager);
    else
        disposals_allow(&keymanager->disposals, true);
}

struct keymanager *keymanager_hold(struct keymanager *keymanager)
{
    atomic_fetch_add(&keymanager->holders, 1);
    return keymanager;
}

void keymanager_release(struct keymanager *keymanager)
{
    if (atomic_fetch_sub(&keymanager->holders, 1) != 1)
        return;
    disposals_allow(&keymanager->disposals, false);
    if (keymanager->source)
        source_retire(keymanager->source);
    supervisor_retire(keymanager->supervisor);
}

void keymanager_abandon(struct keymanager *keymanager)
{
    rotation_abandon(keymanager);
    supervisor_abandon(keymanager->supervisor);
    if (keymanager->source)
        source_abandon(keymanager->source);
}

/* The key is in the record as condemned, and nobody signs with it any more. */
static void condemn(struct keymanager *keymanager, const struct catalogue_key *key)
{
    struct label label = {.scope = keymanager->identity.scope, .generation = key->generation};

    memcpy(label.key_id, key->key_id, sizeof label.key_id);
    disposals_add(&keymanager->disposals, DISPOSE_SUPERSEDED, &label, &key->name, &key->public_key,
                  scribe_ran(keymanager->scribe));
}

void keymanager_drop(struct keymanager *keymanager, struct catalogue_key *key)
{
    if (!catalogue_drop(key))
        return;
    if (key->superseded && key->made && !key->unproven)
        condemn(keymanager, key);
    free(key);
}

/* ---- signing ---- */

struct signing {
    struct keymanager *keymanager;
    struct catalogue_key *key;
    keymanager_signed *done;
    void *context;
};

static void signing_end(struct signing *signing)
{
    keymanager_drop(signing->keymanager, signing->key);
    keymanager_release(signing->keymanager);
    free(signing);
}

/* The token says that the served key is absent. Only the request for the key itself may be answered
 * NOT_FOUND, as SPIRE then drops the CA. For a signature the key is unavailable. */
static void explain_gone(const struct signing *signing, const struct hsm_reply *reply)
{
    struct hsm_reply gone = {.fault = reply->fault};

    (void)fault_set(&gone.fault, FAULT_UNAVAILABLE,
                    "key \"%s\" (label %s) is not on token \"%s\" any more: %s",
                    signing->key->key_id, signing->key->name.label, signing->keymanager->info.label,
                    reply->fault.message);
    signing->done(signing->context, signing->key, &gone);
}

/* The source or its key is absent, or another one is in its place. Once it is put back, it
 * signs. */
static void explain_source(const struct signing *signing, const struct hsm_reply *reply)
{
    const struct source *source = signing->keymanager->source;
    struct hsm_reply away = {.fault = reply->fault};

    if (away.fault.code == FAULT_NOT_FOUND || away.fault.code == FAULT_FAILED_PRECONDITION)
        away.fault.code = FAULT_UNAVAILABLE;
    if (!strstr(away.fault.message, "previous"))
        (void)fault_prefix(&away.fault, "previous (%s)", source_name(source));
    signing->done(signing->context, signing->key, &away);
}

static void noted(void *context, bool written)
{
    (void)context;
    (void)written; /* the scribe tries again by itself */
}

/* A signature with a key of `previous` prepares nothing: for a new authority SPIRE makes a new key
 * on the token. */
static void note_use_there(const struct signing *signing)
{
    struct scribe *scribe = signing->keymanager->scribe;
    struct record_previous *key;

    if (signing->key->in_use)
        return;
    signing->key->in_use = true;
    key = previous_find(scribe_edit(scribe), signing->key->key_id);
    if (key)
        key->in_use = true;
    scribe_commit(scribe, noted, NULL);
}

/* Preparing an authority signs too, but within moments of making the key. Only a later signature
 * shows that the key is in use. */
static void note_use(const struct signing *signing)
{
    struct scribe *scribe = signing->keymanager->scribe;
    struct record_key *key;

    if (signing->key->in_use || clock_now() - signing->key->begun < KEYMANAGER_IN_USE_AGE)
        return;
    signing->key->in_use = true;
    key = record_find(scribe_edit(scribe), &signing->key->name);
    if (key)
        key->in_use = true;
    scribe_commit(scribe, noted, NULL);
}

static void signed_done(void *context, const struct hsm_reply *reply)
{
    struct signing *signing = context;

    if (reply->fault.code == FAULT_NONE && signing->key->previous)
        note_use_there(signing);
    else if (reply->fault.code == FAULT_NONE)
        note_use(signing);
    if (reply->fault.code != FAULT_NONE && signing->key->previous)
        explain_source(signing, reply);
    else if (reply->fault.code == FAULT_NOT_FOUND)
        explain_gone(signing, reply);
    else
        signing->done(signing->context, signing->key, reply);
    signing_end(signing);
}

static void refuse_to_sign(keymanager_signed *done, void *context, enum fault_code code,
                           const char *key_id)
{
    struct hsm_reply reply = {0};

    if (code == FAULT_NOT_FOUND)
        (void)fault_set(&reply.fault, code, "key \"%s\" not found", key_id);
    else
        (void)fault_set(&reply.fault, code, "out of memory signing with key \"%s\"", key_id);
    done(context, NULL, &reply);
}

void keymanager_sign(struct keymanager *keymanager, const char *key_id,
                     const struct hsm_request *request, int64_t deadline, keymanager_signed *done,
                     void *context)
{
    struct catalogue_key *key = catalogue_find(&keymanager->catalogue, key_id);
    struct signing *signing = key ? malloc(sizeof *signing) : NULL;
    struct hsm_request full = *request;

    if (!signing) {
        if (key)
            keymanager_drop(keymanager, key);
        refuse_to_sign(done, context, key ? FAULT_UNAVAILABLE : FAULT_NOT_FOUND, key_id);
        return;
    }
    *signing = (struct signing){
        .keymanager = keymanager_hold(keymanager), .key = key, .done = done, .context = context};
    full.op = HSM_SIGN;
    full.key = key->name;
    full.type = key->public_key.type;
    memcpy(full.fingerprint, key->public_key.fingerprint, sizeof full.fingerprint);
    supervisor_submit(
        key->previous ? source_supervisor(keymanager->source) : keymanager->supervisor,
        &(struct supervisor_request){
            .request = &full, .deadline = deadline, .done = signed_done, .context = signing});
}
