/* The token of unit/keymanager.c and keymanager_start.c: a page of memory, shared by the test and
 * its workers.
 *
 * This is a stand-in: it replaces hsm_open(), hsm_execute() and the rest of hsm/hsm.h behind
 * hsm_worker(). A worker is the test program started again, with "worker" as its argument.
 *
 *   the test:    make the page's file, set token_variable to its path, map_token(path)
 *   the worker:  map_token(getenv(token_variable)), then hsm_worker(WORKER_SOCKET, WORKER_PAGE)
 *
 * From then on the test reads `token` to see what the workers did, and writes
 * token->misbehaviour to say what goes wrong next. Their signatures are
 * their CKA_ID. */
#ifndef TESTS_KEYMANAGER_TOKEN_H
#define TESTS_KEYMANAGER_TOKEN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hsm/hsm.h"

enum {
    WORKER_SOCKET = 3,
    WORKER_PAGE = 4,
    OBJECTS = 32,
    PATIENCE_S = 60, /* then a test is stuck */
    SLOW_SCAN_S = 2
};

#define token_variable "UNIT_KEYMANAGER_TOKEN"

enum misbehaviour {
    BEHAVES,

    /* once: the token behaves again afterwards */
    DIES_BEFORE_GENERATING,
    DIES_WITH_HALF_A_KEY,
    DIES_AFTER_GENERATING,
    DIES_HOLDING_SESSIONS,   /* at GENERATE; then NO_SESSION_LEFT, as the token still counts its */
    NO_SESSION_LEFT,         /* DESTROY fails */
    SCAN_FAILS_AT_ITS_END,   /* when all items are told */
    HALVES_COMPLETE_LATER,   /* in the next scan but one: the next one goes on to .. */
    HALVES_COMPLETE_IN_SCAN, /* .. this: every half is whole from its beginning on */

    /* until the test changes it */
    SIGNS_WRONGLY,          /* on trial: new keys are HSM_MISSIGNED */
    GENERATES_SLOWLY,       /* not before token->gate is open */
    CA_KEYS_FAIL_REST_SLOW, /* GENERATE fails for x509-CA keys, others wait for token->gate */
    SCANS_SLOWLY,           /* SLOW_SCAN_S */
    DESTROYS_SLOWLY,        /* a quarter of a second for each */
    REFUSES_TO_DESTROY,
    WRITE_PROTECTED
};

enum presence { ABSENT, HALF, WHOLE };

struct object {
    _Atomic enum presence there;
    char label[HSM_LABEL_MAX + 1];
    uint8_t id[HSM_ID_MAX];
    struct hsm_public_key public_key;
};

extern struct token {
    struct object objects[OBJECTS];
    _Atomic enum misbehaviour misbehaviour;
    atomic_bool gate;
    atomic_uint room; /* for so many objects; 0 = for all */
    atomic_uint generated;
    atomic_uint refused;
    atomic_uint missigned;
    atomic_uint destroyed_in_vain; /* DESTROY of what was not there */
} * token;

/* 0, or -1. */
int map_token(const char *path);

/* ---- for the test ---- */

void nap(void); /* a millisecond */

/* How many objects there are; the one of that label, or NULL. */
unsigned objects(void);
struct object *lookup(const char *label);

/* Puts an object on the token by hand. */
void put(const struct hsm_key_name *name, enum hsm_key_type type, enum presence there);

/* Waits until the object of that label is the only one, and is whole. */
void assert_left(const char *label);

/* Waits until the token has come to this misbehaviour by itself. */
void await(enum misbehaviour misbehaviour);

#endif
