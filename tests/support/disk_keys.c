/* The file of disk_keys.h. */
#include "tests/support/disk_keys.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include "hsm/base/base64.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/wire/hash.h"

enum { FILE_MAX = 1 << 16 };

/* ---- the file ---- */

char disk_folder[64];
char disk_path[96];

int disk_setup(void **state)
{
    (void)state;
    (void)strcpy(disk_folder, "/tmp/keyfile-XXXXXX");
    if (!mkdtemp(disk_folder))
        return -1;
    (void)snprintf(disk_path, sizeof disk_path, "%s/keys.json", disk_folder);
    return 0;
}

int disk_teardown(void **state)
{
    (void)state;
    (void)unlink(disk_path);
    (void)rmdir(disk_path);
    return rmdir(disk_folder);
}

void disk_write_bytes(const void *bytes, size_t length)
{
    int fd = open(disk_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, length), length);
    assert_int_equal(close(fd), 0);
}

void disk_write(const char *text)
{
    disk_write_bytes(text, strlen(text));
}

EVP_PKEY *disk_ec(const char *curve)
{
    EVP_PKEY *pkey = EVP_EC_gen(curve);

    assert_non_null(pkey);
    return pkey;
}

EVP_PKEY *disk_rsa(size_t bits)
{
    EVP_PKEY *pkey = EVP_RSA_gen(bits);

    assert_non_null(pkey);
    return pkey;
}

char *disk_pkcs8(EVP_PKEY *pkey)
{
    OWNED(pkcs8_free) PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(pkey);
    OWNED(der_free) unsigned char *der = NULL;
    int length = i2d_PKCS8_PRIV_KEY_INFO(info, &der);
    char *text = length > 0 ? base64_encode(BASE64_STANDARD, der, (size_t)length) : NULL;

    assert_non_null(text);
    return text;
}

/* As Go's json.MarshalIndent has it. */
void disk_write_keys(const struct disk_key *keys, size_t count)
{
    static char text[FILE_MAX];
    int at = snprintf(text, sizeof text, "{\n\t\"keys\": {");

    for (size_t i = 0; i < count; i++) {
        OWNED(scope_free) char *value = disk_pkcs8(keys[i].pkey);

        at += snprintf(text + at, sizeof text - (size_t)at, "%s\n\t\t\"%s\": \"%s\"",
                       i > 0 ? "," : "", keys[i].id, value);
    }
    (void)snprintf(text + at, sizeof text - (size_t)at, "\n\t}\n}");
    disk_write(text);
}

struct disk_key disk_keys[DISK_KEYS] = {
    {"x509-CA-B", NULL},    {"JWT-Signer-A", NULL}, {"agent-svid-A", NULL},
    {"JWT-Signer-B", NULL}, {"x509-CA-A", NULL},
};
const enum hsm_key_type disk_types[DISK_KEYS] = {HSM_EC_P256, HSM_RSA_2048, HSM_EC_P384,
                                                 HSM_RSA_4096, HSM_EC_P256};

int disk_make_keys(void **state)
{
    (void)state;
    disk_keys[0].pkey = disk_ec("P-256");
    disk_keys[1].pkey = disk_rsa(2048);
    disk_keys[2].pkey = disk_ec("P-384");
    disk_keys[3].pkey = disk_rsa(4096);
    disk_keys[4].pkey = disk_ec("P-256");
    return 0;
}

int disk_free_keys(void **state)
{
    (void)state;
    for (size_t i = 0; i < DISK_KEYS; i++)
        EVP_PKEY_free(disk_keys[i].pkey);
    return 0;
}

/* ---- the door ---- */

struct hsm_settings disk_settings(void)
{
    struct hsm_settings settings = {.sessions = 4};

    (void)snprintf(settings.keys_file, sizeof settings.keys_file, "%s", disk_path);
    return settings;
}

struct hsm_token *disk_open(void)
{
    struct hsm_settings named = disk_settings();
    struct hsm_token_info info;
    struct hsm_token *token;
    struct fault fault;

    if (hsm_open(&named, &token, &info, &fault) != 0)
        fail_msg("%s", fault.message);
    assert_int_equal(info.sessions, 4);
    assert_string_equal(info.label, "keys_file");
    assert_true(info.write_protected);
    return token;
}

struct hsm_token *disk_open_all(void)
{
    disk_write_keys(disk_keys, DISK_KEYS);
    return disk_open();
}

/* No eight bytes in a row of any string in the file are in the sentence, ids aside. */
static void assert_tells_nothing(const char *message)
{
    static char text[FILE_MAX];
    OWNED(scope_close) int fd = open(disk_path, O_RDONLY | O_NONBLOCK);
    ssize_t got = fd >= 0 ? read(fd, text, sizeof text) : 0;
    size_t length = got > 0 ? (size_t)got : 0;

    for (size_t i = 0; i + 8 <= length; i++) {
        char piece[9];

        memcpy(piece, text + i, 8);
        piece[8] = '\0';
        if (strlen(piece) == 8 && !strpbrk(piece, "-\" \n\t") && strstr(message, piece))
            fail_msg("'%s' is in '%s'", piece, message);
    }
}

/* One sentence that names setting and disk_path, and says `words`. */
void disk_must_refuse(enum fault_code code, const char *words)
{
    struct hsm_settings named = disk_settings();
    struct hsm_token_info info;
    struct hsm_token *token = NULL;
    struct fault fault = {.code = FAULT_NONE};

    assert_int_equal(hsm_open(&named, &token, &info, &fault), -1);
    assert_null(token);
    if (fault.code != code || !strstr(fault.message, words))
        fail_msg("code %d, '%s', not '%s'", (int)fault.code, fault.message, words);
    assert_non_null(strstr(fault.message, "previous: keys_file"));
    assert_non_null(strstr(fault.message, disk_path));
    assert_null(strchr(fault.message, '\n'));
    assert_tells_nothing(fault.message);
    assert_int_equal(ERR_peek_error(), 0);
}

struct hsm_reply disk_ask(struct hsm_token *token, enum hsm_op op, const char *id)
{
    struct hsm_request request = {.op = op};
    struct hsm_reply reply;

    (void)snprintf(request.key.label, sizeof request.key.label, "%s", id);
    hsm_execute(token, &request, &reply, NULL, NULL);
    return reply;
}

struct hsm_public_key disk_prove(struct hsm_token *token, const char *id)
{
    struct hsm_reply reply = disk_ask(token, HSM_PROVE, id);

    if (reply.fault.code != FAULT_NONE || reply.state != HSM_COMPLETE)
        fail_msg("%s: state %d, '%s%s'", id, (int)reply.state, reply.why, reply.fault.message);
    return reply.public_key;
}

/* ---- signing ---- */

static const uint8_t message[] = "what a server or an agent signs";

struct hsm_request disk_signature(const char *id, const struct hsm_public_key *key,
                                  enum hsm_hash hash)
{
    struct hsm_request request = {.op = HSM_SIGN, .type = key->type, .hash = hash};
    OWNED(md_free) EVP_MD *md = EVP_MD_fetch(NULL, hash_find(hash)->name, NULL);
    unsigned length = 0;

    (void)snprintf(request.key.label, sizeof request.key.label, "%s", id);
    memcpy(request.fingerprint, key->fingerprint, sizeof request.fingerprint);
    assert_int_equal(EVP_Digest(message, sizeof message, request.digest, &length, md, NULL), 1);
    request.digest_length = length;
    return request;
}

bool disk_verifies(EVP_PKEY *pkey, const struct hsm_request *request, const struct hsm_reply *reply,
                   int salt)
{
    OWNED(md_ctx_free) EVP_MD_CTX *context = EVP_MD_CTX_new();
    EVP_PKEY_CTX *with = NULL;
    bool right;

    assert_int_equal(EVP_DigestVerifyInit_ex(context, &with, hash_find(request->hash)->name, NULL,
                                             NULL, pkey, NULL),
                     1);
    if (request->scheme == HSM_PSS) {
        assert_int_equal(EVP_PKEY_CTX_set_rsa_padding(with, RSA_PKCS1_PSS_PADDING), 1);
        assert_int_equal(EVP_PKEY_CTX_set_rsa_pss_saltlen(with, salt), 1);
    }
    right = EVP_DigestVerify(context, reply->signature, reply->signature_length, message,
                             sizeof message) == 1;
    ERR_clear_error();
    return right;
}

void disk_must_sign(struct hsm_token *token, const struct hsm_request *request, EVP_PKEY *pkey,
                    int salt)
{
    struct hsm_reply reply;

    hsm_execute(token, request, &reply, NULL, NULL);
    if (reply.fault.code != FAULT_NONE)
        fail_msg("%s, %s: %s", request->key.label, hash_find(request->hash)->name,
                 reply.fault.message);
    if (!disk_verifies(pkey, request, &reply, salt))
        fail_msg("%s, %s: the signature is wrong", request->key.label,
                 hash_find(request->hash)->name);
}
