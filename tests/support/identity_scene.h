/* A place for an identity file, for the tests of plugin/keys/identity.h.
 *
 * Register tests with AT(): *state is then a struct place, a folder of the test's own that is
 * empty. The test fails at its end if a file is left there beside the identity.
 *
 * This is a stand-in: it replaces identity_place(), so that what the product keeps in
 * /dev/shm is in the test's folder. The Makefile links it to the programs it names. */
#ifndef TESTS_IDENTITY_SCENE_H
#define TESTS_IDENTITY_SCENE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <cmocka.h>

#include "plugin/keys/identity.h"

enum { UUID_LENGTH = 36 };

struct place {
    char folder[64];
    struct config config; /* key_identifier_file is in the folder, trust domain example.org */
};

extern char in_memory[IDENTITY_PLACE_MAX]; /* the path that replaces the one in /dev/shm */

#define AT(test) cmocka_unit_test_setup_teardown(test, make_place, remove_place)
int make_place(void **state);
int remove_place(void **state);

/* Write the identity file by hand: any bytes and mode, or a text with mode 0600. */
void put(const struct place *place, const void *bytes, size_t length, mode_t mode);
void put_text(const struct place *place, const char *text);

/* The place, configured with key_identifier_value "server-7" in place of a file. */
struct place *with_value(void **state);

/* identity_open() succeeds. The caller holds the lock in it. */
struct identity take(const struct place *place);

/* identity_open() fails, says `why` and the file's name, and touches nothing. */
void assert_refused(const struct place *place, const char *why);

void assert_is(const struct identity *identity, const char *text);

#endif
