/* The keys of SPIRE's disk key manager: what its file says is listed and signed with, and OpenSSL
 * alone judges; the file stays as it is. */
#include "tests/support/disk_keys.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/wire/hash.h"

enum { FILE_MAX = 1 << 16 };

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
    int length = i2d_PUBKEY(disk_keys[i].pkey, &der);
    uint8_t digest[HSM_FINGERPRINT];

    assert_int_equal(key->type, disk_types[i]);
    assert_int_equal(key->pkix_length, length);
    assert_memory_equal(key->pkix, der, (size_t)length);
    assert_int_equal(EVP_Digest(der, (size_t)length, digest, NULL, EVP_sha256(), NULL), 1);
    assert_memory_equal(key->fingerprint, digest, sizeof digest);
}

static void every_key_is_listed_with_its_public_key_in_the_order_of_ids(void **state)
{
    static const size_t order[DISK_KEYS] = {1, 3, 2, 4, 0};
    struct hsm_token *token = disk_open_all();
    struct hsm_request scan = {.op = HSM_SCAN, .prefix = "sp1-", .sliced = true, .limit_ms = 1};
    struct list list = {.count = 0};
    struct hsm_reply reply;

    (void)state;
    hsm_execute(token, &scan, &reply, take_item, &list);
    assert_int_equal(reply.fault.code, FAULT_NONE);
    assert_int_equal(reply.items, DISK_KEYS);
    assert_int_equal(list.count, DISK_KEYS);
    assert_int_equal(reply.next.handle | reply.next.epoch, 0);
    for (size_t i = 0; i < DISK_KEYS; i++) {
        assert_string_equal(list.items[i].key.label, disk_keys[order[i]].id);
        assert_int_equal(list.items[i].key.id_length, 0);
        assert_int_equal(list.items[i].state, HSM_COMPLETE);
        assert_public_key(&list.items[i].public_key, order[i]);
    }
    hsm_close(token);
}

static void a_key_is_proven_by_its_id_whatever_its_cka_id(void **state)
{
    struct hsm_token *token = disk_open_all();
    struct hsm_request request = {.op = HSM_PROVE, .key = {.id_length = 2}};
    struct hsm_reply reply;

    (void)state;
    for (size_t i = 0; i < DISK_KEYS; i++) {
        struct hsm_public_key key = disk_prove(token, disk_keys[i].id);

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
    reply = disk_ask(token, HSM_PROVE, "x509-CA-C");
    assert_int_equal(reply.fault.code, FAULT_NONE);
    assert_int_equal(reply.state, HSM_ABSENT);
    hsm_close(token);
}

/* ---- signing ---- */

static void every_type_signs_every_hash(void **state)
{
    struct hsm_token *token = disk_open_all();

    (void)state;
    for (size_t i = 0; i < DISK_KEYS; i++) {
        struct hsm_public_key key = disk_prove(token, disk_keys[i].id);

        for (enum hsm_hash hash = HSM_SHA224; hash <= HSM_SHA512_256; hash++)
            if (hash_find(hash)) {
                struct hsm_request request = disk_signature(disk_keys[i].id, &key, hash);

                disk_must_sign(token, &request, disk_keys[i].pkey, 0);
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
    struct hsm_token *token = disk_open_all();

    (void)state;
    for (size_t i = 1; i < DISK_KEYS; i += 2) {
        struct hsm_public_key key = disk_prove(token, disk_keys[i].id);

        for (enum hsm_hash hash = HSM_SHA224; hash <= HSM_SHA512_256; hash++)
            for (size_t s = 0; hash_find(hash) && s < sizeof salts / sizeof salts[0]; s++) {
                struct hsm_request request = disk_signature(disk_keys[i].id, &key, hash);

                request.scheme = HSM_PSS;
                request.salt_length = salts[s].asked;
                disk_must_sign(token, &request, disk_keys[i].pkey, salts[s].verified);
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
    assert_non_null(strstr(reply.fault.message, disk_path));
    assert_int_equal(reply.signature_length, 0);
    assert_memory_equal(reply.signature, nothing, sizeof nothing);
}

static void what_cannot_be_signed_is_refused_by_name(void **state)
{
    struct hsm_token *token = disk_open_all();
    struct hsm_public_key p256 = disk_prove(token, "x509-CA-A");
    struct hsm_public_key rsa2048 = disk_prove(token, "JWT-Signer-A");
    struct hsm_request request = disk_signature("x509-CA-C", &p256, HSM_SHA256);

    (void)state;
    refused(token, &request, FAULT_NOT_FOUND, "has no key 'x509-CA-C'");
    request = disk_signature("x509-CA-B", &p256, HSM_SHA256);
    refused(token, &request, FAULT_FAILED_PRECONDITION,
            "has another key in the place of 'x509-CA-B'");
    request = disk_signature("x509-CA-A", &p256, HSM_SHA256);
    request.type = HSM_EC_P384;
    refused(token, &request, FAULT_INVALID_ARGUMENT, "key 'x509-CA-A': the key is of type ec-p256");
    request = disk_signature("x509-CA-A", &p256, HSM_SHA256);
    request.scheme = HSM_PSS;
    refused(token, &request, FAULT_INVALID_ARGUMENT, "RSA-PSS with an ec-p256 key");
    request = disk_signature("x509-CA-A", &p256, HSM_SHA256);
    request.digest_length = 20;
    refused(token, &request, FAULT_INVALID_ARGUMENT, "digest is 20 bytes long");
    request = disk_signature("JWT-Signer-A", &rsa2048, HSM_SHA512);
    request.scheme = HSM_PSS;
    request.salt_length = 191;
    refused(token, &request, FAULT_INVALID_ARGUMENT, "too long for an rsa-2048 key");
    hsm_close(token);
}

static void nothing_is_made_or_destroyed_there(void **state)
{
    struct hsm_token *token = disk_open_all();

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct hsm_reply reply = disk_ask(token, i == 0 ? HSM_GENERATE : HSM_DESTROY, "x509-CA-A");

        assert_int_equal(reply.fault.code, FAULT_FAILED_PRECONDITION);
        assert_non_null(strstr(reply.fault.message, disk_path));
        assert_non_null(strstr(reply.fault.message, "no key is made or destroyed there"));
    }
    assert_int_equal(disk_ask(token, HSM_PING, "").fault.code, FAULT_NONE);
    (void)disk_prove(token, "x509-CA-A");
    hsm_close(token);
}

struct shared {
    struct hsm_token *token;
    struct hsm_public_key keys[DISK_KEYS];
    int right;
};

static void *sign_many(void *context)
{
    struct shared *shared = context;

    for (int i = 0; i < 40; i++) {
        size_t k = (size_t)i % DISK_KEYS;
        struct hsm_request request = disk_signature(disk_keys[k].id, &shared->keys[k], HSM_SHA256);
        struct hsm_reply reply;

        hsm_execute(shared->token, &request, &reply, NULL, NULL);
        shared->right +=
            reply.fault.code == FAULT_NONE && disk_verifies(disk_keys[k].pkey, &request, &reply, 0);
    }
    return NULL;
}

static void many_threads_sign_with_one_file(void **state)
{
    enum { THREADS = 4 };
    struct shared shared[THREADS] = {{.token = disk_open_all()}};
    pthread_t threads[THREADS];

    (void)state;
    for (size_t k = 0; k < DISK_KEYS; k++)
        shared[0].keys[k] = disk_prove(shared[0].token, disk_keys[k].id);
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
    FILE *file = fopen(disk_path, "r");
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
    struct hsm_token *token = disk_open_all(); /* what libraries keep open, they have open now */
    int descriptor = first_free_descriptor();
    size_t length = read_whole(before);
    struct stat was;
    struct stat is;

    (void)state;
    hsm_close(token);
    assert_int_equal(stat(disk_path, &was), 0);
    token = disk_open();
    assert_int_equal(first_free_descriptor(), descriptor);
    (void)disk_prove(token, "x509-CA-A");
    (void)disk_ask(token, HSM_DESTROY, "x509-CA-A");
    (void)disk_ask(token, HSM_GENERATE, "x509-CA-A");
    hsm_close(token);
    assert_int_equal(first_free_descriptor(), descriptor);
    assert_int_equal(stat(disk_path, &is), 0);
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
    disk_must_refuse(FAULT_UNAVAILABLE, "");
    descriptor = first_free_descriptor();
    disk_write("{");
    disk_must_refuse(FAULT_FAILED_PRECONDITION, "");
    assert_int_equal(chmod(disk_path, 0666), 0);
    disk_must_refuse(FAULT_FAILED_PRECONDITION, "");
    assert_int_equal(first_free_descriptor(), descriptor);
}

/* ---- what is left in memory ---- */

enum { PIECE = 24 };

/* Of the base 64 of a key that this process has never held: each byte inverted, so that it is not
 * found where it is looked for with. */
struct piece {
    uint8_t inverted[PIECE];
};

static void invert(uint8_t *to, const void *from)
{
    for (size_t i = 0; i < PIECE; i++)
        to[i] = (uint8_t) ~((const uint8_t *)from)[i];
}

static void make_piece(int pipe)
{
    struct disk_key one = {"x509-CA-A", disk_ec("P-256")};
    OWNED(scope_free) char *value = disk_pkcs8(one.pkey);
    struct piece piece;

    disk_write_keys(&one, 1);
    invert(piece.inverted, value + 60);
    assert_int_equal(write(pipe, &piece, sizeof piece), sizeof piece);
}

/* Of the key in the file that it writes. */
static struct piece piece_of_another_process(void)
{
    struct piece piece;
    int status;
    int ends[2];
    pid_t child;

    assert_int_equal(pipe(ends), 0);
    child = fork();
    if (child == 0) {
        make_piece(ends[1]);
        _exit(EXIT_SUCCESS);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(read(ends[0], &piece, sizeof piece), sizeof piece);
    (void)close(ends[0]);
    (void)close(ends[1]);
    return piece;
}

static size_t count_between(const uint8_t *from, const uint8_t *to, const struct piece *piece)
{
    size_t found = 0;

    for (const uint8_t *at = from; at + PIECE <= to; at++) {
        size_t same = 0;

        while (same < PIECE && (at[same] ^ piece->inverted[same]) == 0xff)
            same++;
        found += same == PIECE;
    }
    return found;
}

/* Heap, stack and data of this process. */
static size_t count_in_memory(const struct piece *piece)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    size_t found = 0;
    char line[512];

    assert_non_null(maps);
    while (fgets(line, sizeof line, maps)) {
        const char *dash = strchr(line, '-');
        const uint8_t *from = (const uint8_t *)strtoull(line, NULL, 16);

        if (dash && strstr(line, " rw-p "))
            found += count_between(from, (const uint8_t *)strtoull(dash + 1, NULL, 16), piece);
    }
    (void)fclose(maps);
    return found;
}

static void nothing_of_the_text_stays_in_memory(void **state)
{
    struct piece piece = piece_of_another_process();
    uint8_t control[PIECE];
    struct hsm_settings named;
    struct hsm_token_info info;
    struct hsm_token *token;
    struct fault fault;
    struct stat file;

    (void)state;
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    skip(); /* their shadow memory is no memory to read */
#endif
    invert(control, piece.inverted);
    assert_int_equal(count_in_memory(&piece), 1); /* it is found where it is */
    explicit_bzero(control, sizeof control);
    hsm_close(disk_open());
    assert_int_equal(count_in_memory(&piece), 0);
    assert_int_equal(stat(disk_path, &file), 0);
    assert_int_equal(truncate(disk_path, file.st_size - 1), 0);
    named = disk_settings();
    assert_int_equal(hsm_open(&named, &token, &info, &fault), -1);
    assert_int_equal(count_in_memory(&piece), 0);
}

/* Its keys are in memory. A worker that starts after that is told what is wrong. */
static void a_file_that_vanishes_takes_no_key_along(void **state)
{
    struct hsm_token *token = disk_open_all();

    (void)state;
    assert_int_equal(unlink(disk_path), 0);
    (void)disk_prove(token, "x509-CA-A");
    disk_must_refuse(FAULT_UNAVAILABLE, "cannot be opened");
    hsm_close(token);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, disk_setup, disk_teardown)

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
        TEST(the_file_stays_as_it_is_and_is_closed),
        TEST(a_file_that_is_refused_is_closed_too),
        TEST(nothing_of_the_text_stays_in_memory),
        TEST(a_file_that_vanishes_takes_no_key_along),
    };

    return cmocka_run_group_tests(tests, disk_make_keys, disk_free_keys);
}
