/* Records for the tests of plugin/keys/record.h. Give sample_set_up() to cmocka_run_group_tests();
 * the records are the caller's, to be closed. What cannot be made fails the test. */
#ifndef TESTS_RECORD_SAMPLE_H
#define TESTS_RECORD_SAMPLE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plugin/keys/record.h"

extern struct label_scope sample_scope; /* of example.org and a server */
extern struct hsm_public_key sample_p256;

int sample_set_up(void **state);

/* A key made by us. Its public key is sample_p256, if that is known in its state. */
struct record_key sample_key(enum record_state state, const char *id, uint32_t generation);
struct record_key sample_in_use(struct record_key key);
struct record_key sample_condemned(const char *id, uint32_t generation, int64_t since);

void sample_put(struct record *record, struct record_key key);

struct record sample_empty(void);

/* With one key of each state, and two makers. */
struct record sample_record(void);

/* To its text, which is malloc'd, and back. */
char *sample_format(struct record *record);
struct record sample_parsed(const char *text);

void assert_same_record(struct record *a, struct record *b);

#endif
