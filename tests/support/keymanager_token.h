/* A token that is a page shared by a test and its worker processes, which are the test
 * program started again. Keys are told apart by their CKA_ID; what goes wrong is said in
 * `mischief`. One program includes this once. */
#ifndef TESTS_KEYMANAGER_TOKEN_H
#define TESTS_KEYMANAGER_TOKEN_H

#include "hsm/hsm.h"
#include "plugin/keys/keymanager.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "hsm/base/clock.h"
#include "plugin/worker/child.h"

enum {
    WORKER_SOCKET = 3,
    WORKER_PAGE = 4,
    OBJECTS = 32,
    PATIENCE_S = 60,
    SLOW_SCAN_S = 2,
    DESTROYED_AGAIN_S = 7
};

static const char token_variable[] = "UNIT_KEYMANAGER_TOKEN";

enum mischief {
    NONE,
    DIES_BEFORE,
    DIES_HALF_WAY,
    DIES_AFTER,
    DIES_WITHOUT_SESSION, /* its own count for a while: the next destruction fails */
    SLOW,
    SLOW_BUT_FOR_CA, /* whose keys fail */
    SCAN_FAILS,
    HALF_IS_LATE, /* halves are whole from the scan after the next one on */
    HALF_IS_THERE,
    SLOW_SCANS,
    MAY_NOT_DESTROY,
    HAS_NO_SESSION,
    WRITE_PROTECTED
};

static struct token {
    struct object {
        atomic_int there; /* 0 no, 1 half, 2 whole */
        char label[HSM_LABEL_MAX + 1];
        uint8_t id[HSM_ID_MAX];
        enum hsm_key_type type;
    } objects[OBJECTS];
    _Atomic enum mischief mischief; /* those that last: SLOW.., MAY_.., WRITE_.. */
    atomic_bool gate;               /* ends SLOW */
    atomic_uint generated;
    atomic_uint refused;
    atomic_uint looks; /* for what was to be destroyed, and was not there */
} * token;

static int map_token(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);

    token = mmap(NULL, sizeof *token, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    (void)close(fd);
    return token == MAP_FAILED ? -1 : 0;
}

static void nap(void)
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
                                    .write_protected = token->mischief == WRITE_PROTECTED,
                                    .can_generate = {false, true, true, true, true}};
    return 0;
}

void hsm_close(struct hsm_token *opened)
{
    (void)opened;
}

static bool once(enum mischief mischief)
{
    return atomic_compare_exchange_strong(&token->mischief, &mischief, NONE);
}

static unsigned objects(void)
{
    unsigned count = 0;

    for (size_t i = 0; i < OBJECTS; i++)
        count += token->objects[i].there != 0;
    return count;
}

static struct object *lookup(const char *label)
{
    for (size_t i = 0; i < OBJECTS; i++)
        if (token->objects[i].there && strcmp(token->objects[i].label, label) == 0)
            return &token->objects[i];
    return NULL;
}

static void assert_left(const char *label)
{
    int64_t until = clock_now() + PATIENCE_S * CLOCK_SECOND;
    struct object *object;

    while (objects() > 1 && clock_now() < until)
        nap();
    assert_int_equal(objects(), 1);
    object = lookup(label);
    assert_non_null(object);
    assert_int_equal(object->there, 2);
}

static void await(enum mischief mischief)
{
    int64_t until = clock_now() + PATIENCE_S * CLOCK_SECOND;

    while (token->mischief != mischief && clock_now() < until)
        nap();
    assert_int_equal(token->mischief, mischief);
}

static void put(const struct hsm_key_name *name, enum hsm_key_type type, int there)
{
    struct object *object = token->objects;

    while (object->there)
        object++;
    memcpy(object->label, name->label, sizeof object->label);
    memcpy(object->id, name->id, sizeof object->id);
    object->type = type;
    object->there = there;
}

/* Every key is told apart by its CKA_ID here. */
static void tell(const struct object *object, struct hsm_reply *reply)
{
    reply->state = object->there == 2 ? HSM_COMPLETE : HSM_HALF;
    reply->public_key.type = object->type;
    memcpy(reply->public_key.fingerprint, object->id, HSM_ID_MAX);
}

static void generate(const struct hsm_request *request, struct hsm_reply *reply)
{
    if (once(DIES_BEFORE))
        (void)raise(SIGKILL);
    if (once(DIES_WITHOUT_SESSION)) {
        token->mischief = HAS_NO_SESSION;
        (void)raise(SIGKILL);
    }
    if (token->mischief == SLOW_BUT_FOR_CA && strstr(request->key.label, "x509-CA")) {
        atomic_fetch_add(&token->refused, 1);
        (void)fault_set(&reply->fault, FAULT_UNAVAILABLE, "CKR_DEVICE_ERROR");
        return;
    }
    while ((token->mischief == SLOW || token->mischief == SLOW_BUT_FOR_CA) && !token->gate)
        nap();
    if (once(DIES_HALF_WAY)) {
        put(&request->key, request->type, 1);
        (void)raise(SIGKILL);
    }
    put(&request->key, request->type, 2);
    atomic_fetch_add(&token->generated, 1);
    if (once(DIES_AFTER))
        (void)raise(SIGKILL);
    tell(lookup(request->key.label), reply);
}

static void sign(const struct hsm_request *request, struct hsm_reply *reply)
{
    const struct object *object = lookup(request->key.label);

    if (!object || memcmp(object->id, request->fingerprint, HSM_ID_MAX) != 0) {
        (void)fault_set(&reply->fault, FAULT_NOT_FOUND, "no such key");
        return;
    }
    memcpy(reply->signature, object->id, HSM_ID_MAX);
    reply->signature_length = HSM_ID_MAX;
}

static void destroy(struct object *object, struct hsm_reply *reply)
{
    if (once(HAS_NO_SESSION)) {
        (void)fault_set(&reply->fault, FAULT_RESOURCE_EXHAUSTED, "CKR_SESSION_COUNT");
        return;
    }
    if (!object) {
        atomic_fetch_add(&token->looks, 1);
        return;
    }
    if (token->mischief != MAY_NOT_DESTROY) {
        object->there = 0;
        return;
    }
    atomic_fetch_add(&token->refused, 1);
    (void)fault_set(&reply->fault, FAULT_PERMISSION_DENIED, "CKR_ACTION_PROHIBITED");
}

static void complete_halves(void)
{
    for (size_t i = 0; i < OBJECTS; i++)
        if (token->objects[i].there)
            token->objects[i].there = 2;
}

static void scan(struct hsm_reply *reply, hsm_item_fn *item, void *context)
{
    if (token->mischief == SLOW_SCANS)
        (void)nanosleep(&(struct timespec){.tv_sec = SLOW_SCAN_S}, NULL);
    if (once(HALF_IS_THERE))
        complete_halves();
    if (once(HALF_IS_LATE))
        token->mischief = HALF_IS_THERE;
    for (size_t i = 0; i < OBJECTS; i++) {
        const struct object *object = &token->objects[i];
        struct hsm_item found = {.key.id_length = HSM_ID_MAX};

        if (!object->there)
            continue;
        memcpy(found.key.label, object->label, sizeof found.key.label);
        memcpy(found.key.id, object->id, sizeof found.key.id);
        found.state = object->there == 2 ? HSM_COMPLETE : HSM_HALF;
        item(context, &found);
    }
    if (once(SCAN_FAILS))
        (void)fault_set(&reply->fault, FAULT_UNAVAILABLE, "CKR_DEVICE_ERROR");
}

void hsm_on_wait(struct hsm_token *opened, hsm_waits_fn *waits)
{
    (void)opened;
    (void)waits;
}

void hsm_execute(struct hsm_token *opened, const struct hsm_request *request,
                 struct hsm_reply *reply, hsm_item_fn *item, void *context)
{
    struct object *object = lookup(request->key.label);

    (void)opened;
    if (request->op == HSM_SCAN)
        scan(reply, item, context);
    else if (request->op == HSM_GENERATE)
        generate(request, reply);
    else if (request->op == HSM_SIGN)
        sign(request, reply);
    else if (request->op == HSM_PROVE && object)
        tell(object, reply);
    else if (request->op == HSM_DESTROY)
        destroy(object, reply);
}

#endif
