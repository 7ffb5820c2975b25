/* What the tests of the hsm room have in common: settings for a SoftHSM of the test's own,
 * requests by name, and calls that must succeed.
 *
 *   register with cmocka_unit_test_setup_teardown(test, room_setup, room_teardown), then
 *   settings = room_good(); token = room_open(&settings); .. hsm_close(token);
 *
 * A `name` is a key's, without the prefix of our labels; its CKA_ID is made of the name too.
 * The token is the test's, who closes it. Everything else is by value.
 *
 * Programs that use these run with every HSM_PROFILE too (softhsm.h): a key may not show at
 * once there, which is why a test makes keys with room_make() or room_generate(). */
#ifndef TESTS_HSM_ROOM_H
#define TESTS_HSM_ROOM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "hsm/hsm.h"
#include "tests/support/softhsm.h"

#define ROOM_LABEL "sp1-0123456789abcdef-000001-"

extern struct softhsm softhsm; /* with one token, "spire" */

int room_setup(void **state);
int room_teardown(void **state);

/* What a name may have: a YubiHSM has little room. */
uint32_t room_id_length(void);
size_t room_label_max(void);

/* ---- opening ---- */

/* The right PIN file and four sessions: for the token of that URI, or for "spire". */
struct hsm_settings room_settings(const char *uri);
struct hsm_settings room_good(void);

/* room_good() with faulty.so, which follows this script; softhsm_script() changes it. */
struct hsm_settings room_faulty(const char *script);

/* Opening succeeds, or the test fails. room_opens() closes the token again. */
struct hsm_token *room_open(const struct hsm_settings *settings);
void room_opens(const struct hsm_settings *settings);

/* Opening fails with this code and says `words`, but not the PIN. */
struct fault room_refused(const struct hsm_settings *settings, enum fault_code code,
                          const char *words);

/* ---- requests ---- */

struct hsm_request room_request(enum hsm_op op, const char *name, enum hsm_key_type type);

/* SIGN. Another `salt`, another digest. */
struct hsm_request room_signature(const char *name, const struct hsm_public_key *key,
                                  enum hsm_hash hash, uint32_t salt);

/* hsm_execute(), with whatever comes of it; or the test fails if it fails. */
struct hsm_reply room_execute(struct hsm_token *token, const struct hsm_request *request);
struct hsm_reply room_must(struct hsm_token *token, const struct hsm_request *request);

/* GENERATE as the product has it done: a key of which it is not known whether it was made is
 * looked for until it shows. The key of room_generate() is whole, or the test fails. */
struct hsm_reply room_make(struct hsm_token *token, const struct hsm_request *request);
struct hsm_public_key room_generate(struct hsm_token *token, const char *name,
                                    enum hsm_key_type type);

/* What PROVE says of the key. */
enum hsm_state room_state(struct hsm_token *token, const char *name);

#endif
