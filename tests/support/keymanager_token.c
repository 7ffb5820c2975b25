/* The token of keymanager_token.h. All but `for the test` runs in worker processes. */
#include "tests/support/keymanager_token.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "hsm/base/clock.h"
#include "hsm/wire/pubkey.h"
#include "tests/support/authority.h"

struct token *token;

int map_token(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);

    token = mmap(NULL, sizeof *token, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    (void)close(fd);
    return token == MAP_FAILED ? -1 : 0;
}

void nap(void)
{
    (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

int hsm_open(const struct hsm_settings *settings, struct hsm_token **opened,
             struct hsm_token_info *info, struct fault *fault)
{
    (void)fault;
    *opened = (struct hsm_token *)token;
    *info = (struct hsm_token_info){.label = "made up",
                                    .sessions = settings->sessions,
                                    .write_protected = token->misbehaviour == WRITE_PROTECTED,
                                    .can_generate = {false, true, true, true, true}};
    return 0;
}

void hsm_close(struct hsm_token *opened)
{
    (void)opened;
}

/* A worker has several threads. */
static pthread_mutex_t places = PTHREAD_MUTEX_INITIALIZER;

static void lock(void)
{
    (void)pthread_mutex_lock(&places);
}

static void unlock(void)
{
    (void)pthread_mutex_unlock(&places);
}

static bool once(enum misbehaviour misbehaviour)
{
    return atomic_compare_exchange_strong(&token->misbehaviour, &misbehaviour, BEHAVES);
}

unsigned objects(void)
{
    unsigned count = 0;

    for (size_t i = 0; i < OBJECTS; i++)
        count += token->objects[i].there != ABSENT;
    return count;
}

struct object *lookup(const char *label)
{
    for (size_t i = 0; i < OBJECTS; i++)
        if (token->objects[i].there && strcmp(token->objects[i].label, label) == 0)
            return &token->objects[i];
    return NULL;
}

void assert_left(const char *label)
{
    int64_t until = clock_now() + PATIENCE_S * CLOCK_SECOND;
    struct object *object;

    while (objects() > 1 && clock_now() < until)
        nap();
    assert_int_equal(objects(), 1);
    object = lookup(label);
    assert_non_null(object);
    assert_int_equal(object->there, WHOLE);
}

void await(enum misbehaviour misbehaviour)
{
    int64_t until = clock_now() + PATIENCE_S * CLOCK_SECOND;

    while (token->misbehaviour != misbehaviour && clock_now() < until)
        nap();
    assert_int_equal(token->misbehaviour, misbehaviour);
}

/* A record is written down and read again, public key and all. */
static void make_public_key(enum hsm_key_type type, struct hsm_public_key *key)
{
    static const char *const kinds[] = {[HSM_EC_P256] = "P-256",
                                        [HSM_EC_P384] = "P-384",
                                        [HSM_RSA_2048] = "RSA-2048",
                                        [HSM_RSA_4096] = "RSA-4096"};
    struct authority pkix = authority_new_pkix(kinds[type]);
    struct fault fault;

    assert_int_equal(pubkey_from_pkix(pkix.bytes, pkix.length, key, &fault), 0);
}

void put(const struct hsm_key_name *name, enum hsm_key_type type, enum presence there)
{
    struct object *object = token->objects;
    struct hsm_public_key key;

    make_public_key(type, &key);
    lock();
    while (object->there)
        object++;
    memcpy(object->label, name->label, sizeof object->label);
    memcpy(object->id, name->id, sizeof object->id);
    object->public_key = key;
    object->there = there;
    unlock();
}

static void sign_wrongly(struct hsm_reply *reply)
{
    atomic_fetch_add(&token->missigned, 1);
    reply->state = HSM_MISSIGNED;
    (void)snprintf(reply->why, sizeof reply->why, "signature does not verify");
}

static void tell(const char *label, struct hsm_reply *reply)
{
    const struct object *object;

    lock();
    object = lookup(label);
    if (object) {
        reply->state = object->there == WHOLE ? HSM_COMPLETE : HSM_HALF;
        if (reply->state == HSM_COMPLETE && token->misbehaviour == SIGNS_WRONGLY)
            sign_wrongly(reply);
        reply->public_key = object->public_key;
    }
    unlock();
}

static void generate(const struct hsm_request *request, struct hsm_reply *reply)
{
    if (once(DIES_BEFORE_GENERATING))
        (void)raise(SIGKILL);
    if (once(DIES_HOLDING_SESSIONS)) {
        token->misbehaviour = NO_SESSION_LEFT;
        (void)raise(SIGKILL);
    }
    if (token->misbehaviour == CA_KEYS_FAIL_REST_SLOW && strstr(request->key.label, "x509-CA")) {
        atomic_fetch_add(&token->refused, 1);
        (void)fault_set(&reply->fault, FAULT_UNAVAILABLE, "CKR_DEVICE_ERROR");
        return;
    }
    while ((token->misbehaviour == GENERATES_SLOWLY ||
            token->misbehaviour == CA_KEYS_FAIL_REST_SLOW) &&
           !token->gate)
        nap();
    if (once(DIES_WITH_HALF_A_KEY)) {
        put(&request->key, request->type, HALF);
        (void)raise(SIGKILL);
    }
    if (token->room > 0 && objects() >= token->room) {
        (void)fault_set(&reply->fault, FAULT_RESOURCE_EXHAUSTED, "CKR_DEVICE_MEMORY");
        return;
    }
    put(&request->key, request->type, WHOLE);
    atomic_fetch_add(&token->generated, 1);
    if (once(DIES_AFTER_GENERATING))
        (void)raise(SIGKILL);
    tell(request->key.label, reply);
}

static void sign(const struct hsm_request *request, struct hsm_reply *reply)
{
    const struct object *object;

    lock();
    object = lookup(request->key.label);
    if (object && memcmp(object->public_key.fingerprint, request->fingerprint,
                         sizeof request->fingerprint) == 0) {
        memcpy(reply->signature, object->id, HSM_ID_MAX);
        reply->signature_length = HSM_ID_MAX;
    } else {
        (void)fault_set(&reply->fault, FAULT_NOT_FOUND, "no such key");
    }
    unlock();
}

static void destroy(const struct hsm_request *request, struct hsm_reply *reply)
{
    struct object *object;

    if (token->misbehaviour == DESTROYS_SLOWLY)
        (void)nanosleep(&(struct timespec){.tv_nsec = 250 * CLOCK_MILLISECOND}, NULL);
    lock();
    object = lookup(request->key.label);
    unlock();
    if (once(NO_SESSION_LEFT)) {
        (void)fault_set(&reply->fault, FAULT_RESOURCE_EXHAUSTED, "CKR_SESSION_COUNT");
        return;
    }
    if (!object) {
        atomic_fetch_add(&token->destroyed_in_vain, 1);
        return;
    }
    if (request->expect == HSM_EXPECT_HALF && object->there == WHOLE) {
        (void)fault_set(&reply->fault, FAULT_FAILED_PRECONDITION, "it is whole");
        return;
    }
    if (token->misbehaviour != REFUSES_TO_DESTROY) {
        object->there = ABSENT;
        reply->items = 1;
        return;
    }
    atomic_fetch_add(&token->refused, 1);
    (void)fault_set(&reply->fault, FAULT_PERMISSION_DENIED, "CKR_ACTION_PROHIBITED");
}

static void complete_halves(void)
{
    for (size_t i = 0; i < OBJECTS; i++)
        if (token->objects[i].there)
            token->objects[i].there = WHOLE;
}

static void scan(const struct hsm_request *request, struct hsm_reply *reply, hsm_item_fn *item,
                 void *context)
{
    if (token->misbehaviour == SCANS_SLOWLY)
        (void)nanosleep(&(struct timespec){.tv_sec = SLOW_SCAN_S}, NULL);
    if (once(HALVES_COMPLETE_IN_SCAN))
        complete_halves();
    if (once(HALVES_COMPLETE_LATER))
        token->misbehaviour = HALVES_COMPLETE_IN_SCAN;
    for (size_t i = 0; i < OBJECTS; i++) {
        const struct object *object = &token->objects[i];
        struct hsm_item found = {.key.id_length = HSM_ID_MAX};
        enum presence there;

        lock();
        there = object->there;
        memcpy(found.key.label, object->label, sizeof found.key.label);
        memcpy(found.key.id, object->id, sizeof found.key.id);
        unlock();
        found.state = there == WHOLE && !request->sliced ? HSM_COMPLETE : HSM_HALF;
        if (there)
            item(context, &found);
    }
    if (once(SCAN_FAILS_AT_ITS_END))
        (void)fault_set(&reply->fault, FAULT_UNAVAILABLE, "CKR_DEVICE_ERROR");
}

void hsm_listen(struct hsm_token *opened, hsm_progress_fn *waits, hsm_progress_fn *proves)
{
    (void)opened;
    (void)waits;
    (void)proves;
}

void hsm_execute(struct hsm_token *opened, const struct hsm_request *request,
                 struct hsm_reply *reply, hsm_item_fn *item, void *context)
{
    (void)opened;
    if (request->op == HSM_SCAN)
        scan(request, reply, item, context);
    else if (request->op == HSM_GENERATE)
        generate(request, reply);
    else if (request->op == HSM_SIGN)
        sign(request, reply);
    else if (request->op == HSM_PROVE)
        tell(request->key.label, reply);
    else if (request->op == HSM_DESTROY)
        destroy(request, reply);
}
