/* The keys of SPIRE's disk key manager: what its file says is signed with, and OpenSSL alone
 * judges; a file that is not what it should be gets one clear sentence, with nothing of it in it;
 * and the file stays as it is. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include "hsm/base/base64.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/hsm.h"
#include "hsm/keyfile.h"
#include "hsm/wire/hash.h"

enum { FILE_MAX = 1 << 16, TEXT_MAX = 8192 };

/* ---- the file ---- */

static char folder[64];
static char path[96];

static int make_folder(void **state)
{
    (void)state;
    (void)strcpy(folder, "/tmp/keyfile-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    (void)snprintf(path, sizeof path, "%s/keys.json", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    (void)unlink(path);
    (void)rmdir(path);
    return rmdir(folder);
}

static void write_bytes(const void *bytes, size_t length)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, length), length);
    assert_int_equal(close(fd), 0);
}

static void write_text(const char *text)
{
    write_bytes(text, strlen(text));
}

/* A key of OpenSSL's, under SPIRE's id for it. */
struct made {
    const char *id;
    EVP_PKEY *pkey;
};

static EVP_PKEY *ec(const char *curve)
{
    EVP_PKEY *pkey = EVP_EC_gen(curve);

    assert_non_null(pkey);
    return pkey;
}

static EVP_PKEY *rsa(size_t bits)
{
    EVP_PKEY *pkey = EVP_RSA_gen(bits);

    assert_non_null(pkey);
    return pkey;
}

static char *pkcs8_of(EVP_PKEY *pkey)
{
    OWNED(pkcs8_free) PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(pkey);
    OWNED(der_free) unsigned char *der = NULL;
    int length = i2d_PKCS8_PRIV_KEY_INFO(info, &der);
    char *text = length > 0 ? base64_encode(BASE64_STANDARD, der, (size_t)length) : NULL;

    assert_non_null(text);
    return text;
}

/* As Go's json.MarshalIndent writes it for SPIRE. */
static void write_keys(const struct made *keys, size_t count)
{
    static char text[FILE_MAX];
    int at = snprintf(text, sizeof text, "{\n\t\"keys\": {");

    for (size_t i = 0; i < count; i++) {
        OWNED(scope_free) char *value = pkcs8_of(keys[i].pkey);

        at += snprintf(text + at, sizeof text - (size_t)at, "%s\n\t\t\"%s\": \"%s\"",
                       i > 0 ? "," : "", keys[i].id, value);
    }
    (void)snprintf(text + at, sizeof text - (size_t)at, "\n\t}\n}");
    write_text(text);
}

/* The server's four and an agent's two, of all our types, made once. They are not in order. */
static struct made keys[] = {
    {"x509-CA-B", NULL},    {"JWT-Signer-A", NULL}, {"agent-svid-A", NULL},
    {"JWT-Signer-B", NULL}, {"x509-CA-A", NULL},
};
static const enum hsm_key_type types[] = {HSM_EC_P256, HSM_RSA_2048, HSM_EC_P384, HSM_RSA_4096,
                                          HSM_EC_P256};
enum { KEYS = sizeof keys / sizeof keys[0] };

static int make_keys(void **state)
{
    (void)state;
    keys[0].pkey = ec("P-256");
    keys[1].pkey = rsa(2048);
    keys[2].pkey = ec("P-384");
    keys[3].pkey = rsa(4096);
    keys[4].pkey = ec("P-256");
    return 0;
}

static int free_keys(void **state)
{
    (void)state;
    for (size_t i = 0; i < KEYS; i++)
        EVP_PKEY_free(keys[i].pkey);
    return 0;
}

/* ---- the door ---- */

static struct hsm_settings settings(void)
{
    struct hsm_settings settings = {.sessions = 4};

    (void)snprintf(settings.keys_file, sizeof settings.keys_file, "%s", path);
    return settings;
}

static struct hsm_token *open_file(void)
{
    struct hsm_settings named = settings();
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

static struct hsm_token *open_keys(void)
{
    write_keys(keys, KEYS);
    return open_file();
}

/* No eight bytes in a row of any string in the file are in the sentence, ids aside. */
static void assert_tells_nothing(const char *message)
{
    static char text[FILE_MAX];
    OWNED(scope_close) int fd = open(path, O_RDONLY | O_NONBLOCK);
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

/* One sentence that names setting and path, and says `words`. */
static void must_refuse(enum fault_code code, const char *words)
{
    struct hsm_settings named = settings();
    struct hsm_token_info info;
    struct hsm_token *token = NULL;
    struct fault fault = {.code = FAULT_NONE};

    assert_int_equal(hsm_open(&named, &token, &info, &fault), -1);
    assert_null(token);
    if (fault.code != code || !strstr(fault.message, words))
        fail_msg("code %d, '%s', not '%s'", (int)fault.code, fault.message, words);
    assert_non_null(strstr(fault.message, "previous: keys_file"));
    assert_non_null(strstr(fault.message, path));
    assert_null(strchr(fault.message, '\n'));
    assert_tells_nothing(fault.message);
    assert_int_equal(ERR_peek_error(), 0);
}

static struct hsm_reply ask(struct hsm_token *token, enum hsm_op op, const char *id)
{
    struct hsm_request request = {.op = op};
    struct hsm_reply reply;

    (void)snprintf(request.key.label, sizeof request.key.label, "%s", id);
    hsm_execute(token, &request, &reply, NULL, NULL);
    return reply;
}

static struct hsm_public_key prove(struct hsm_token *token, const char *id)
{
    struct hsm_reply reply = ask(token, HSM_PROVE, id);

    if (reply.fault.code != FAULT_NONE || reply.state != HSM_COMPLETE)
        fail_msg("%s: state %d, '%s%s'", id, (int)reply.state, reply.why, reply.fault.message);
    return reply.public_key;
}

/* ---- listing ---- */

struct list {
    struct hsm_item items[8];
    size_t count;
};

static void take_item(void *context, const struct hsm_item *item)
{
    struct list *list = context;

    assert_in_range(list->count, 0, 7);
    list->items[list->count++] = *item;
}

static void assert_public_key(const struct hsm_public_key *key, size_t i)
{
    OWNED(der_free) unsigned char *der = NULL;
    int length = i2d_PUBKEY(keys[i].pkey, &der);
    uint8_t digest[HSM_FINGERPRINT];

    assert_int_equal(key->type, types[i]);
    assert_int_equal(key->pkix_length, length);
    assert_memory_equal(key->pkix, der, (size_t)length);
    assert_int_equal(EVP_Digest(der, (size_t)length, digest, NULL, EVP_sha256(), NULL), 1);
    assert_memory_equal(key->fingerprint, digest, sizeof digest);
}

static void every_key_is_listed_with_its_public_key_in_the_order_of_ids(void **state)
{
    static const size_t order[KEYS] = {1, 3, 2, 4, 0};
    struct hsm_token *token = open_keys();
    struct hsm_request scan = {.op = HSM_SCAN, .prefix = "sp1-", .sliced = true, .limit_ms = 1};
    struct list list = {.count = 0};
    struct hsm_reply reply;

    (void)state;
    hsm_execute(token, &scan, &reply, take_item, &list);
    assert_int_equal(reply.fault.code, FAULT_NONE);
    assert_int_equal(reply.items, KEYS);
    assert_int_equal(list.count, KEYS);
    assert_int_equal(reply.next.handle | reply.next.epoch, 0);
    for (size_t i = 0; i < KEYS; i++) {
        assert_string_equal(list.items[i].key.label, keys[order[i]].id);
        assert_int_equal(list.items[i].key.id_length, 0);
        assert_int_equal(list.items[i].state, HSM_COMPLETE);
        assert_public_key(&list.items[i].public_key, order[i]);
    }
    hsm_close(token);
}

static void a_key_is_proven_by_its_id_whatever_its_cka_id(void **state)
{
    struct hsm_token *token = open_keys();
    struct hsm_request request = {.op = HSM_PROVE, .key = {.id_length = 2}};
    struct hsm_reply reply;

    (void)state;
    for (size_t i = 0; i < KEYS; i++) {
        struct hsm_public_key key = prove(token, keys[i].id);

        assert_public_key(&key, i);
    }
    (void)strcpy(request.key.label, "x509-CA-A");
    request.type = HSM_EC_P384;
    hsm_execute(token, &request, &reply, NULL, NULL);
    assert_int_equal(reply.state, HSM_UNFIT);
    assert_string_equal(reply.why, "it is of another type");
    request.type = HSM_EC_P256;
    hsm_execute(token, &request, &reply, NULL, NULL);
    assert_int_equal(reply.state, HSM_COMPLETE);
    reply = ask(token, HSM_PROVE, "x509-CA-C");
    assert_int_equal(reply.fault.code, FAULT_NONE);
    assert_int_equal(reply.state, HSM_ABSENT);
    hsm_close(token);
}

/* ---- signing ---- */

static const uint8_t message[] = "what a server or an agent signs";

static struct hsm_request signature_of(const char *id, const struct hsm_public_key *key,
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

/* By OpenSSL, from the message on: nothing of ours has a part in it. */
static bool verifies(EVP_PKEY *pkey, const struct hsm_request *request,
                     const struct hsm_reply *reply, int salt)
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

static void must_sign(struct hsm_token *token, const struct hsm_request *request, EVP_PKEY *pkey,
                      int salt)
{
    struct hsm_reply reply;

    hsm_execute(token, request, &reply, NULL, NULL);
    if (reply.fault.code != FAULT_NONE)
        fail_msg("%s, %s: %s", request->key.label, hash_find(request->hash)->name,
                 reply.fault.message);
    if (!verifies(pkey, request, &reply, salt))
        fail_msg("%s, %s: the signature is wrong", request->key.label,
                 hash_find(request->hash)->name);
}

static void every_type_signs_every_hash(void **state)
{
    struct hsm_token *token = open_keys();

    (void)state;
    for (size_t i = 0; i < KEYS; i++) {
        struct hsm_public_key key = prove(token, keys[i].id);

        for (enum hsm_hash hash = HSM_SHA224; hash <= HSM_SHA512_256; hash++)
            if (hash_find(hash)) {
                struct hsm_request request = signature_of(keys[i].id, &key, hash);

                must_sign(token, &request, keys[i].pkey, 0);
            }
    }
    hsm_close(token);
}

static void rsa_signs_pss_with_every_hash_and_salt(void **state)
{
    static const struct {
        int32_t asked;
        int verified;
    } salts[] = {{HSM_SALT_HASH, RSA_PSS_SALTLEN_DIGEST},
                 {HSM_SALT_MAX, RSA_PSS_SALTLEN_MAX},
                 {1, 1},
                 {20, 20},
                 {190, 190}};
    struct hsm_token *token = open_keys();

    (void)state;
    for (size_t i = 1; i < KEYS; i += 2) {
        struct hsm_public_key key = prove(token, keys[i].id);

        for (enum hsm_hash hash = HSM_SHA224; hash <= HSM_SHA512_256; hash++)
            for (size_t s = 0; hash_find(hash) && s < sizeof salts / sizeof salts[0]; s++) {
                struct hsm_request request = signature_of(keys[i].id, &key, hash);

                request.scheme = HSM_PSS;
                request.salt_length = salts[s].asked;
                must_sign(token, &request, keys[i].pkey, salts[s].verified);
            }
    }
    hsm_close(token);
}

static void refused(struct hsm_token *token, const struct hsm_request *request,
                    enum fault_code code, const char *words)
{
    static const uint8_t nothing[HSM_SIGNATURE_MAX];
    struct hsm_reply reply;

    hsm_execute(token, request, &reply, NULL, NULL);
    if (reply.fault.code != code || !strstr(reply.fault.message, words))
        fail_msg("code %d, '%s', not '%s'", (int)reply.fault.code, reply.fault.message, words);
    assert_non_null(strstr(reply.fault.message, path));
    assert_int_equal(reply.signature_length, 0);
    assert_memory_equal(reply.signature, nothing, sizeof nothing);
}

static void what_cannot_be_signed_is_refused_by_name(void **state)
{
    struct hsm_token *token = open_keys();
    struct hsm_public_key p256 = prove(token, "x509-CA-A");
    struct hsm_public_key rsa2048 = prove(token, "JWT-Signer-A");
    struct hsm_request request = signature_of("x509-CA-C", &p256, HSM_SHA256);

    (void)state;
    refused(token, &request, FAULT_NOT_FOUND, "has no key 'x509-CA-C'");
    request = signature_of("x509-CA-B", &p256, HSM_SHA256);
    refused(token, &request, FAULT_FAILED_PRECONDITION,
            "has another key in the place of 'x509-CA-B'");
    request = signature_of("x509-CA-A", &p256, HSM_SHA256);
    request.type = HSM_EC_P384;
    refused(token, &request, FAULT_INVALID_ARGUMENT, "key 'x509-CA-A': the key is of type ec-p256");
    request = signature_of("x509-CA-A", &p256, HSM_SHA256);
    request.scheme = HSM_PSS;
    refused(token, &request, FAULT_INVALID_ARGUMENT, "RSA-PSS with an ec-p256 key");
    request = signature_of("x509-CA-A", &p256, HSM_SHA256);
    request.digest_length = 20;
    refused(token, &request, FAULT_INVALID_ARGUMENT, "digest is 20 bytes long");
    request = signature_of("JWT-Signer-A", &rsa2048, HSM_SHA512);
    request.scheme = HSM_PSS;
    request.salt_length = 191;
    refused(token, &request, FAULT_INVALID_ARGUMENT, "too long for an rsa-2048 key");
    hsm_close(token);
}

static void nothing_is_made_or_destroyed_there(void **state)
{
    struct hsm_token *token = open_keys();

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct hsm_reply reply = ask(token, i == 0 ? HSM_GENERATE : HSM_DESTROY, "x509-CA-A");

        assert_int_equal(reply.fault.code, FAULT_FAILED_PRECONDITION);
        assert_non_null(strstr(reply.fault.message, path));
        assert_non_null(strstr(reply.fault.message, "no key is made or destroyed there"));
    }
    assert_int_equal(ask(token, HSM_PING, "").fault.code, FAULT_NONE);
    (void)prove(token, "x509-CA-A");
    hsm_close(token);
}

struct shared {
    struct hsm_token *token;
    struct hsm_public_key keys[KEYS];
    int right;
};

static void *sign_many(void *context)
{
    struct shared *shared = context;

    for (int i = 0; i < 40; i++) {
        size_t k = (size_t)i % KEYS;
        struct hsm_request request = signature_of(keys[k].id, &shared->keys[k], HSM_SHA256);
        struct hsm_reply reply;

        hsm_execute(shared->token, &request, &reply, NULL, NULL);
        shared->right +=
            reply.fault.code == FAULT_NONE && verifies(keys[k].pkey, &request, &reply, 0);
    }
    return NULL;
}

static void many_threads_sign_with_one_file(void **state)
{
    enum { THREADS = 4 };
    struct shared shared[THREADS] = {{.token = open_keys()}};
    pthread_t threads[THREADS];

    (void)state;
    for (size_t k = 0; k < KEYS; k++)
        shared[0].keys[k] = prove(shared[0].token, keys[k].id);
    for (int i = 1; i < THREADS; i++)
        shared[i] = shared[0];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, sign_many, &shared[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(shared[i].right, 40);
    }
    hsm_close(shared[0].token);
}

/* ---- what is refused: the file ---- */

static void a_file_that_is_not_there_may_come_yet(void **state)
{
    (void)state;
    must_refuse(FAULT_UNAVAILABLE, "cannot be opened");
    write_keys(keys, KEYS);
    hsm_close(open_file());
}

static void what_is_no_regular_file_is_refused(void **state)
{
    (void)state;
    assert_int_equal(mkdir(path, 0700), 0);
    must_refuse(FAULT_FAILED_PRECONDITION, "is not a regular file");
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    must_refuse(FAULT_FAILED_PRECONDITION, "is not a regular file");
}

static void a_file_that_others_can_read_or_write_is_refused(void **state)
{
    static const mode_t modes[] = {0640, 0660, 0604, 0644, 0602, 0666, 0610, 0601};

    (void)state;
    write_keys(keys, KEYS);
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        char words[16];

        (void)snprintf(words, sizeof words, "has mode %04o", (unsigned)modes[i]);
        assert_int_equal(chmod(path, modes[i]), 0);
        must_refuse(FAULT_FAILED_PRECONDITION, words);
        must_refuse(FAULT_FAILED_PRECONDITION, "chmod 0600");
    }
    assert_int_equal(chmod(path, 0400), 0);
    hsm_close(open_file());
}

static void a_file_of_somebody_else_is_refused(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    write_keys(keys, KEYS);
    assert_int_equal(chown(path, 12345, (gid_t)-1), 0);
    must_refuse(FAULT_FAILED_PRECONDITION, "belongs to user 12345, neither to root nor to us");
}

/* As a secret of Kubernetes is. What counts is what the link leads to. */
static void a_link_to_the_file_is_fine(void **state)
{
    char target[128];

    (void)state;
    write_keys(keys, KEYS);
    (void)snprintf(target, sizeof target, "%s/real", folder);
    assert_int_equal(rename(path, target), 0);
    assert_int_equal(symlink(target, path), 0);
    hsm_close(open_file());
    assert_int_equal(chmod(target, 0644), 0);
    must_refuse(FAULT_FAILED_PRECONDITION, "has mode 0644");
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
        write_text(rows[i].text);
        must_refuse(FAULT_FAILED_PRECONDITION, rows[i].words);
    }
}

static void a_file_that_is_cut_or_too_long_is_refused(void **state)
{
    char *longer = malloc(KEYFILE_BYTES_MAX + 1);
    struct stat file;

    (void)state;
    write_keys(keys, KEYS);
    assert_int_equal(stat(path, &file), 0);
    for (off_t length = file.st_size - 1; length > 0; length -= length > 40 ? 37 : 1) {
        assert_int_equal(truncate(path, length), 0);
        must_refuse(FAULT_FAILED_PRECONDITION, "is damaged, or is not JSON (line ");
    }
    assert_non_null(longer);
    memset(longer, ' ', KEYFILE_BYTES_MAX + 1);
    write_bytes(longer, KEYFILE_BYTES_MAX + 1);
    must_refuse(FAULT_FAILED_PRECONDITION, "is longer than 1048576 bytes");
    write_bytes(longer, KEYFILE_BYTES_MAX);
    must_refuse(FAULT_FAILED_PRECONDITION, "is not JSON");
    free(longer);
}

static void too_many_keys_or_too_long_an_id_are_refused(void **state)
{
    char *text = malloc(KEYFILE_BYTES_MAX);
    char id[HSM_LABEL_MAX + 2];
    struct made one = {id, keys[0].pkey};
    int at = sprintf(text, "{\"keys\": {");

    (void)state;
    for (int i = 0; i <= KEYFILE_KEYS_MAX; i++)
        at += sprintf(text + at, "%s\"%d\": \"\"", i > 0 ? ", " : "", i);
    (void)strcpy(text + at, "}}");
    write_text(text);
    free(text);
    must_refuse(FAULT_FAILED_PRECONDITION, "holds 257 keys, 256 are the most");
    for (int i = 0; i <= HSM_LABEL_MAX; i++)
        id[i] = "i-"[i % 2];
    id[HSM_LABEL_MAX + 1] = '\0';
    write_keys(&one, 1);
    must_refuse(FAULT_FAILED_PRECONDITION, "has an id that is empty or too long");
    id[HSM_LABEL_MAX] = '\0';
    write_keys(&one, 1);
    hsm_close(open_file());
}

/* One such key, and the others would do: all the same nothing is left out. */
static void a_key_of_a_type_that_we_have_not_is_named_with_it(void **state)
{
    const struct {
        EVP_PKEY *pkey;
        const char *words;
    } rows[] = {
        {ec("P-521"), "key 'x509-CA-B' is of type EC secp521r1, but only ec-p256"},
        {ec("secp256k1"), "is of type EC secp256k1, but"},
        {rsa(3072), "is of type RSA-3072, but"},
        {rsa(1024), "is of type RSA-1024, but"},
        {EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"), "is of type ED25519, but"},
        {EVP_PKEY_Q_keygen(NULL, NULL, "X25519"), "is of type X25519, but"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct made two[] = {keys[4], {"x509-CA-B", rows[i].pkey}};

        assert_non_null(rows[i].pkey);
        write_keys(two, 2);
        must_refuse(FAULT_FAILED_PRECONDITION, "key 'x509-CA-B'");
        must_refuse(FAULT_FAILED_PRECONDITION, rows[i].words);
        EVP_PKEY_free(rows[i].pkey);
    }
}

/* Every byte of a key changed once. It is refused, or no less a key: what is served has signed. */
static void a_damaged_key_is_never_served_with_another_public_key(void **state)
{
    OWNED(pkcs8_free) PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(keys[0].pkey);
    OWNED(der_free) unsigned char *der = NULL;
    int length = i2d_PKCS8_PRIV_KEY_INFO(info, &der);
    int served = 0;

    (void)state;
    for (int i = 0; i < length; i++) {
        OWNED(scope_free) char *value = NULL;
        struct hsm_settings named = settings();
        struct hsm_token *token = NULL;
        struct hsm_token_info about;
        struct fault fault;
        char text[TEXT_MAX];

        der[i] ^= 0x04;
        value = base64_encode(BASE64_STANDARD, der, (size_t)length);
        der[i] ^= 0x04;
        (void)snprintf(text, sizeof text, "{\"keys\": {\"a\": \"%s\"}}", value);
        write_text(text);
        if (hsm_open(&named, &token, &about, &fault) == 0) {
            struct hsm_public_key key = prove(token, "a");
            struct hsm_request request = signature_of("a", &key, HSM_SHA256);

            must_sign(token, &request, keys[0].pkey, 0);
            served++;
        } else {
            must_refuse(FAULT_FAILED_PRECONDITION, "key 'a' is ");
        }
        hsm_close(token);
    }
    assert_in_range(served, 0, 4); /* version, and tags that OpenSSL passes over */
}

static void bytes_behind_a_key_are_refused(void **state)
{
    OWNED(pkcs8_free) PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(keys[0].pkey);
    uint8_t der[512] = {0};
    uint8_t *end = der;
    int length = i2d_PKCS8_PRIV_KEY_INFO(info, &end);
    OWNED(scope_free) char *value = base64_encode(BASE64_STANDARD, der, (size_t)length + 1);
    char text[TEXT_MAX];

    (void)state;
    (void)snprintf(text, sizeof text, "{\"keys\": {\"a\": \"%s\"}}", value);
    write_text(text);
    must_refuse(FAULT_FAILED_PRECONDITION, "key 'a' is not a private key in PKCS #8");
}

static void members_beside_the_keys_are_of_no_consequence(void **state)
{
    OWNED(scope_free) char *value = pkcs8_of(keys[0].pkey);
    char text[TEXT_MAX];

    (void)state;
    (void)snprintf(text, sizeof text,
                   "{\"version\": 2, \"keys\": {\"x509-CA-A\": \"%s\"}, \"more\": [{}, null]}\n",
                   value);
    write_text(text);
    hsm_close(open_file());
}

/* ---- what is left behind ---- */

/* A descriptor left open takes its place. */
static int first_free_descriptor(void)
{
    int fd = dup(STDERR_FILENO);

    assert_true(fd >= 0);
    (void)close(fd);
    return fd;
}

static size_t read_whole(char bytes[FILE_MAX])
{
    FILE *file = fopen(path, "r");
    size_t length;

    assert_non_null(file);
    length = fread(bytes, 1, FILE_MAX, file);
    (void)fclose(file);
    return length;
}

static void the_file_stays_as_it_is_and_is_closed(void **state)
{
    static char before[FILE_MAX];
    static char after[FILE_MAX];
    struct hsm_token *token = open_keys(); /* what libraries keep open, they have open now */
    int descriptor = first_free_descriptor();
    size_t length = read_whole(before);
    struct stat was;
    struct stat is;

    (void)state;
    hsm_close(token);
    assert_int_equal(stat(path, &was), 0);
    token = open_file();
    assert_int_equal(first_free_descriptor(), descriptor);
    (void)prove(token, "x509-CA-A");
    (void)ask(token, HSM_DESTROY, "x509-CA-A");
    (void)ask(token, HSM_GENERATE, "x509-CA-A");
    hsm_close(token);
    assert_int_equal(first_free_descriptor(), descriptor);
    assert_int_equal(stat(path, &is), 0);
    assert_int_equal(is.st_ino, was.st_ino);
    assert_int_equal(is.st_mode, was.st_mode);
    assert_memory_equal(&is.st_mtim, &was.st_mtim, sizeof is.st_mtim);
    assert_memory_equal(&is.st_ctim, &was.st_ctim, sizeof is.st_ctim);
    assert_int_equal(read_whole(after), length);
    assert_memory_equal(after, before, length);
}

static void a_file_that_is_refused_is_closed_too(void **state)
{
    int descriptor;

    (void)state;
    must_refuse(FAULT_UNAVAILABLE, "");
    descriptor = first_free_descriptor();
    write_text("{");
    must_refuse(FAULT_FAILED_PRECONDITION, "");
    assert_int_equal(chmod(path, 0666), 0);
    must_refuse(FAULT_FAILED_PRECONDITION, "");
    assert_int_equal(first_free_descriptor(), descriptor);
}

/* Its keys are in memory. A worker that starts after that is told what is wrong. */
static void a_file_that_vanishes_takes_no_key_along(void **state)
{
    struct hsm_token *token = open_keys();

    (void)state;
    assert_int_equal(unlink(path), 0);
    (void)prove(token, "x509-CA-A");
    must_refuse(FAULT_UNAVAILABLE, "cannot be opened");
    hsm_close(token);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_key_is_listed_with_its_public_key_in_the_order_of_ids),
        TEST(a_key_is_proven_by_its_id_whatever_its_cka_id),
        TEST(every_type_signs_every_hash),
        TEST(rsa_signs_pss_with_every_hash_and_salt),
        TEST(what_cannot_be_signed_is_refused_by_name),
        TEST(nothing_is_made_or_destroyed_there),
        TEST(many_threads_sign_with_one_file),
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
        TEST(the_file_stays_as_it_is_and_is_closed),
        TEST(a_file_that_is_refused_is_closed_too),
        TEST(a_file_that_vanishes_takes_no_key_along),
    };

    return cmocka_run_group_tests(tests, make_keys, free_keys);
}
