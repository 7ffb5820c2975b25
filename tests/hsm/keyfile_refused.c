/* A file that is not what SPIRE's disk key manager writes, or that others have access to: one
 * clear sentence, with nothing of the file in it, and no key is left out in silence. */
#include "tests/support/disk_keys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>
#include <openssl/x509.h>

#include "hsm/base/base64.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/keyfile.h"

enum { TEXT_MAX = 8192 };

/* ---- what is refused: the file ---- */

static void a_file_that_is_not_there_may_come_yet(void **state)
{
    (void)state;
    disk_must_refuse(FAULT_UNAVAILABLE, "cannot be opened");
    disk_write_keys(disk_keys, DISK_KEYS);
    hsm_close(disk_open());
}

static void what_is_no_regular_file_is_refused(void **state)
{
    (void)state;
    assert_int_equal(mkdir(disk_path, 0700), 0);
    disk_must_refuse(FAULT_FAILED_PRECONDITION, "is not a regular file");
    assert_int_equal(rmdir(disk_path), 0);
    assert_int_equal(mkfifo(disk_path, 0600), 0);
    disk_must_refuse(FAULT_FAILED_PRECONDITION, "is not a regular file");
}

static void a_file_that_others_can_read_or_write_is_refused(void **state)
{
    static const mode_t modes[] = {0604, 0644, 0602, 0666, 0641, 0601};

    (void)state;
    disk_write_keys(disk_keys, DISK_KEYS);
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        char words[16];

        (void)snprintf(words, sizeof words, "has mode %04o", (unsigned)modes[i]);
        assert_int_equal(chmod(disk_path, modes[i]), 0);
        disk_must_refuse(FAULT_FAILED_PRECONDITION, words);
        disk_must_refuse(FAULT_FAILED_PRECONDITION, "chmod 0600");
    }
    assert_int_equal(chmod(disk_path, 0400), 0);
    hsm_close(disk_open());
    assert_int_equal(chmod(disk_path, 0660), 0); /* as with Kubernetes' fsGroup */
    hsm_close(disk_open());
}

static void a_file_of_somebody_else_is_refused(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    disk_write_keys(disk_keys, DISK_KEYS);
    assert_int_equal(chown(disk_path, 12345, (gid_t)-1), 0);
    disk_must_refuse(FAULT_FAILED_PRECONDITION, "belongs to user 12345, neither to root nor to us");
}

/* As a secret of Kubernetes is. What counts is what the link leads to. */
static void a_link_to_the_file_is_fine(void **state)
{
    char target[128];

    (void)state;
    disk_write_keys(disk_keys, DISK_KEYS);
    (void)snprintf(target, sizeof target, "%s/real", disk_folder);
    assert_int_equal(rename(disk_path, target), 0);
    assert_int_equal(symlink(target, disk_path), 0);
    hsm_close(disk_open());
    assert_int_equal(chmod(target, 0644), 0);
    disk_must_refuse(FAULT_FAILED_PRECONDITION, "has mode 0644");
    assert_int_equal(unlink(target), 0);
}

/* ---- what is refused: what is in it ---- */

static void what_is_not_the_file_of_spire_is_refused(void **state)
{
    static const struct {
        const char *text;
        const char *words;
    } rows[] = {
        {"", "is empty"},
        {"\n", "is damaged, or is not JSON"},
        {"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n", "is not JSON (line 1, column"},
        {"{\"keys\": {\"a\": \"c2VjcmV0c2VjcmV0\n\"}}", "is not JSON (line 1, column"},
        {"{\n\t\"keys\": {\n\t\t\"a\": c2VjcmV0c2VjcmV0", "is not JSON (line 3, column"},
        {"{\"keys\": {}} {\"keys\": {}}", "is damaged"},
        {"[]", "has no object \"keys\""},
        {"{}", "has no object \"keys\""},
        {"{\"Keys\": {}}", "has no object \"keys\""},
        {"{\"keys\": null}", "has no object \"keys\""},
        {"{\"keys\": [\"c2VjcmV0c2VjcmV0\"]}", "has no object \"keys\""},
        {"{\"keys\": {}}", "holds no key"},
        {"{\"keys\": {\"a\": 1}}", "key 'a' is not a string"},
        {"{\"keys\": {\"a\": null}}", "key 'a' is not a string"},
        {"{\"keys\": {\"a\": \"\"}}", "key 'a' is not a private key in PKCS #8"},
        {"{\"keys\": {\"a\": \"c2VjcmV0c2VjcmV0!\"}}", "key 'a' is not in base 64"},
        {"{\"keys\": {\"a\": \"c2VjcmV0c2VjcmV\"}}", "key 'a' is not in base 64"},
        {"{\"keys\": {\"a\": \"c2VjcmV0c2VjcmV0\"}}", "key 'a' is not a private key in PKCS #8"},
        {"{\"keys\": {\"\": \"c2VjcmV0c2VjcmV0\"}}", "has an id that is empty"},
        {"{\"keys\": {\"a\\nb\": \"c2VjcmV0c2VjcmV0\"}}", "key 'a?b' is not"},
        {"{\"keys\": {\"a\": \"c2VjcmV0\", \"a\": \"c2VjcmV0\"}}", "has a name twice (line 1)"},
        {"{\"keys\": {\"a\\u0000b\": \"c2VjcmV0\"}}", "is damaged"},
        {"\xff\xfe{", "is damaged"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        disk_write(rows[i].text);
        disk_must_refuse(FAULT_FAILED_PRECONDITION, rows[i].words);
    }
}

static void a_file_that_is_cut_or_too_long_is_refused(void **state)
{
    char *longer = malloc(KEYFILE_BYTES_MAX + 1);
    struct stat file;

    (void)state;
    disk_write_keys(disk_keys, DISK_KEYS);
    assert_int_equal(stat(disk_path, &file), 0);
    for (off_t length = file.st_size - 1; length > 0; length -= length > 40 ? 37 : 1) {
        assert_int_equal(truncate(disk_path, length), 0);
        disk_must_refuse(FAULT_FAILED_PRECONDITION, "is damaged, or is not JSON (line ");
    }
    assert_non_null(longer);
    memset(longer, ' ', KEYFILE_BYTES_MAX + 1);
    disk_write_bytes(longer, KEYFILE_BYTES_MAX + 1);
    disk_must_refuse(FAULT_FAILED_PRECONDITION, "is longer than 1048576 bytes");
    disk_write_bytes(longer, KEYFILE_BYTES_MAX);
    disk_must_refuse(FAULT_FAILED_PRECONDITION, "is not JSON");
    free(longer);
}

static void too_many_keys_or_too_long_an_id_are_refused(void **state)
{
    char *text = malloc(KEYFILE_BYTES_MAX);
    char id[HSM_LABEL_MAX + 2];
    struct disk_key one = {id, disk_keys[0].pkey};
    int at = sprintf(text, "{\"keys\": {");

    (void)state;
    for (int i = 0; i <= KEYFILE_KEYS_MAX; i++)
        at += sprintf(text + at, "%s\"%d\": \"\"", i > 0 ? ", " : "", i);
    (void)strcpy(text + at, "}}");
    disk_write(text);
    free(text);
    disk_must_refuse(FAULT_FAILED_PRECONDITION, "holds 257 keys, 256 are the most");
    for (int i = 0; i <= HSM_LABEL_MAX; i++)
        id[i] = "i-"[i % 2];
    id[HSM_LABEL_MAX + 1] = '\0';
    disk_write_keys(&one, 1);
    disk_must_refuse(FAULT_FAILED_PRECONDITION, "has an id that is empty or too long");
    id[HSM_LABEL_MAX] = '\0';
    disk_write_keys(&one, 1);
    hsm_close(disk_open());
}

/* One such key, and the others would do: all the same nothing is left out. */
static void a_key_of_a_type_that_we_have_not_is_named_with_it(void **state)
{
    const struct {
        EVP_PKEY *pkey;
        const char *words;
    } rows[] = {
        {disk_ec("P-521"), "key 'x509-CA-B' is of type EC secp521r1, but only ec-p256"},
        {disk_ec("secp256k1"), "is of type EC secp256k1, but"},
        {disk_rsa(3072), "is of type RSA-3072, but"},
        {disk_rsa(1024), "is of type RSA-1024, but"},
        {EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"), "is of type ED25519, but"},
        {EVP_PKEY_Q_keygen(NULL, NULL, "X25519"), "is of type X25519, but"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct disk_key two[] = {disk_keys[4], {"x509-CA-B", rows[i].pkey}};

        assert_non_null(rows[i].pkey);
        disk_write_keys(two, 2);
        disk_must_refuse(FAULT_FAILED_PRECONDITION, "key 'x509-CA-B'");
        disk_must_refuse(FAULT_FAILED_PRECONDITION, rows[i].words);
        EVP_PKEY_free(rows[i].pkey);
    }
}

/* Every byte of a key changed once. It is refused, or no less a key: what is served has signed. */
static void a_damaged_key_is_never_served_with_another_public_key(void **state)
{
    OWNED(pkcs8_free) PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(disk_keys[0].pkey);
    OWNED(der_free) unsigned char *der = NULL;
    int length = i2d_PKCS8_PRIV_KEY_INFO(info, &der);
    int served = 0;

    (void)state;
    for (int i = 0; i < length; i++) {
        OWNED(scope_free) char *value = NULL;
        struct hsm_settings named = disk_settings();
        struct hsm_token *token = NULL;
        struct hsm_token_info about;
        struct fault fault;
        char text[TEXT_MAX];

        der[i] ^= 0x04;
        value = base64_encode(BASE64_STANDARD, der, (size_t)length);
        der[i] ^= 0x04;
        (void)snprintf(text, sizeof text, "{\"keys\": {\"a\": \"%s\"}}", value);
        disk_write(text);
        if (hsm_open(&named, &token, &about, &fault) == 0) {
            struct hsm_public_key key = disk_prove(token, "a");
            struct hsm_request request = disk_signature("a", &key, HSM_SHA256);

            disk_must_sign(token, &request, disk_keys[0].pkey, 0);
            served++;
        } else {
            disk_must_refuse(FAULT_FAILED_PRECONDITION, "key 'a' is ");
        }
        hsm_close(token);
    }
    assert_in_range(served, 0, 4); /* version, and tags that OpenSSL passes over */
}

static void bytes_behind_a_key_are_refused(void **state)
{
    OWNED(pkcs8_free) PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(disk_keys[0].pkey);
    uint8_t der[512] = {0};
    uint8_t *end = der;
    int length = i2d_PKCS8_PRIV_KEY_INFO(info, &end);
    OWNED(scope_free) char *value = base64_encode(BASE64_STANDARD, der, (size_t)length + 1);
    char text[TEXT_MAX];

    (void)state;
    (void)snprintf(text, sizeof text, "{\"keys\": {\"a\": \"%s\"}}", value);
    disk_write(text);
    disk_must_refuse(FAULT_FAILED_PRECONDITION, "key 'a' is not a private key in PKCS #8");
}

static void members_beside_the_keys_are_of_no_consequence(void **state)
{
    OWNED(scope_free) char *value = disk_pkcs8(disk_keys[0].pkey);
    char text[TEXT_MAX];

    (void)state;
    (void)snprintf(text, sizeof text,
                   "{\"version\": 2, \"keys\": {\"x509-CA-A\": \"%s\"}, \"more\": [{}, null]}\n",
                   value);
    disk_write(text);
    hsm_close(disk_open());
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, disk_setup, disk_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_file_that_is_not_there_may_come_yet),
        TEST(what_is_no_regular_file_is_refused),
        TEST(a_file_that_others_can_read_or_write_is_refused),
        TEST(a_file_of_somebody_else_is_refused),
        TEST(a_link_to_the_file_is_fine),
        TEST(what_is_not_the_file_of_spire_is_refused),
        TEST(a_file_that_is_cut_or_too_long_is_refused),
        TEST(too_many_keys_or_too_long_an_id_are_refused),
        TEST(a_key_of_a_type_that_we_have_not_is_named_with_it),
        TEST(a_damaged_key_is_never_served_with_another_public_key),
        TEST(bytes_behind_a_key_are_refused),
        TEST(members_beside_the_keys_are_of_no_consequence),
    };

    return cmocka_run_group_tests(tests, disk_make_keys, disk_free_keys);
}
