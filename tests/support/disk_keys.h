/* The file of SPIRE's disk key manager, made by the test, and what may be asked of its keys.
 *
 *   cmocka_run_group_tests(tests, disk_make_keys, disk_free_keys), and for each test
 *   cmocka_unit_test_setup_teardown(test, disk_setup, disk_teardown): a folder without a file, then
 *   token = disk_open_all(); .. hsm_close(token);
 *
 * Everything that must succeed fails the test if it does not. */
#ifndef TESTS_DISK_KEYS_H
#define TESTS_DISK_KEYS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <openssl/types.h>

#include "hsm/hsm.h"

extern char disk_folder[64];
extern char disk_path[96]; /* of the file */

int disk_setup(void **state);
int disk_teardown(void **state);

/* ---- keys ---- */

/* A key of OpenSSL's, under SPIRE's id for it. */
struct disk_key {
    const char *id;
    EVP_PKEY *pkey;
};

/* A server's and an agent's, of all our types, made once. They are not in order. */
enum { DISK_KEYS = 5 };
extern struct disk_key disk_keys[DISK_KEYS];
extern const enum hsm_key_type disk_types[DISK_KEYS];

int disk_make_keys(void **state);
int disk_free_keys(void **state);

/* The caller's to free. */
EVP_PKEY *disk_ec(const char *curve);
EVP_PKEY *disk_rsa(size_t bits);

/* The base 64 of a key's PKCS #8, the caller's to free. */
char *disk_pkcs8(EVP_PKEY *pkey);

/* ---- the file: mode 0600 ---- */

void disk_write_bytes(const void *bytes, size_t length);
void disk_write(const char *text);
void disk_write_keys(const struct disk_key *keys, size_t count); /* as SPIRE writes it */

/* ---- the door ---- */

/* The settings that name the file; a token with its keys; and one of disk_keys. */
struct hsm_settings disk_settings(void);
struct hsm_token *disk_open(void);
struct hsm_token *disk_open_all(void);

/* Opening fails with one sentence that names setting and path, says `words`, and tells nothing of
 * what stands in the file. */
void disk_must_refuse(enum fault_code code, const char *words);

struct hsm_reply disk_ask(struct hsm_token *token, enum hsm_op op, const char *id);
struct hsm_public_key disk_prove(struct hsm_token *token, const char *id);

/* ---- signatures, all of one message ---- */

struct hsm_request disk_signature(const char *id, const struct hsm_public_key *key,
                                  enum hsm_hash hash);

/* OpenSSL judges, from the message on: nothing of ours has a part in it. */
bool disk_verifies(EVP_PKEY *pkey, const struct hsm_request *request, const struct hsm_reply *reply,
                   int salt);
void disk_must_sign(struct hsm_token *token, const struct hsm_request *request, EVP_PKEY *pkey,
                    int salt);

#endif
