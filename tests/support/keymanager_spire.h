/* SPIRE, for unit/keymanager.c and unit/keymanager_start.c: it asks a keymanager for keys and for
 * signatures, crashes it and starts it again, on the token of keymanager_token.h.
 *
 *   each test    PLAY(test): a new token, identity and record, and `keymanager` open on them
 *   main         return keymanager_main(argc, argv, tests, count): the tests, or the worker's half
 *
 * All requests are for key id x509-CA-A unless they are made by the test itself. An answer is the
 * test's, and lives until it is heard. */
#ifndef TESTS_KEYMANAGER_SPIRE_H
#define TESTS_KEYMANAGER_SPIRE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plugin/keys/keymanager.h"
#include "tests/support/keymanager_token.h"

enum { KEPT = 4 }; /* keep_condemned */

extern struct config settings;        /* a test sets back what it changes */
extern struct keymanager *keymanager; /* NULL while it is closed */

struct answer {
    atomic_uint count;
    struct fault fault;
    char label[HSM_LABEL_MAX + 1];
    enum hsm_key_type type;
};

#define PLAY(test) cmocka_unit_test_setup_teardown(test, start, end)
int start(void **state);
int end(void **state);
int keymanager_main(int argc, char **argv, const struct CMUnitTest *tests, size_t count);

/* ---- the plugin's life ---- */

/* In the place of the one that is open, if any, as a reconfiguration does it. */
void open_keymanager(void);
void crash_and_restart(void);

/* Removes the file whose name is the record's and the suffix. */
void remove_beside(const char *suffix);

/* ---- requests ---- */

/* For keymanager_generate(): writes to a struct answer. */
void generated(void *context, const struct catalogue_key *key, const struct fault *fault);

/* Both return at once; `patience` is ns. */
void ask_for(enum hsm_key_type type, struct answer *answer, int64_t patience);
void ask(struct answer *answer, int64_t patience);

/* Waits for the answer, which must be this. */
void hear(struct answer *answer, enum fault_code code);

/* Each asks and hears: the answer has the label of the key that was made, or that signed. */
struct answer make_key(void);
struct answer sign_once(void);

#endif
