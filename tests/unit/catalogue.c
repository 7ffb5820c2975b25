/* The map from key id to the key served, and how long a key lives. */
#include "plugin/keys/catalogue.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <openssl/x509.h>

enum { THREADS = 8, IDS = 5, ROUNDS = 4000 };

static struct catalogue_key *make(const char *key_id, uint32_t generation)
{
    struct label label = {.generation = generation};
    struct hsm_key_name name = {.id_length = HSM_ID_MAX};
    struct hsm_public_key public_key = {.type = HSM_EC_P256};
    struct catalogue_key *key;

    (void)snprintf(label.key_id, sizeof label.key_id, "%s", key_id);
    (void)snprintf(name.label, sizeof name.label, "label of %s", key_id);
    memset(public_key.fingerprint, (int)generation, sizeof public_key.fingerprint);
    key = catalogue_key_new(&label, &name, &public_key);
    assert_non_null(key);
    return key;
}

static void let_go(struct catalogue_key *key)
{
    if (catalogue_drop(key))
        free(key);
}

/* Serves a key and returns the one it replaces, with the catalogue's hold. */
static struct catalogue_key *serve(struct catalogue *catalogue, struct catalogue_key *key)
{
    struct catalogue_key *old = key;

    assert_int_equal(catalogue_serve(catalogue, key, &old), 0);
    return old;
}

static int open_catalogue(void **state)
{
    struct catalogue *catalogue = malloc(sizeof *catalogue);

    catalogue_open(catalogue);
    *state = catalogue;
    return 0;
}

static int close_catalogue(void **state)
{
    catalogue_close(*state);
    free(*state);
    return 0;
}

/* ---- finding ---- */

static void an_id_that_is_not_served_is_not_found(void **state)
{
    struct catalogue *catalogue = *state;
    size_t count = 7;
    struct catalogue_key **list = catalogue_list(catalogue, &count);

    assert_non_null(list); /* empty is not out of memory */
    assert_int_equal(count, 0);
    free(list);
    assert_null(catalogue_find(catalogue, "a"));
    assert_null(serve(catalogue, make("b", 1)));
    assert_null(catalogue_find(catalogue, "a"));
    assert_null(catalogue_find(catalogue, "c"));
    assert_null(catalogue_find(catalogue, "B"));
    assert_null(catalogue_find(catalogue, ""));
}

static void every_key_is_found_and_listed_by_id(void **state)
{
    struct catalogue *catalogue = *state;
    struct catalogue_key **list;
    char id[16];
    size_t count;

    for (uint32_t i = 0; i < 100; i++) {
        (void)snprintf(id, sizeof id, "key-%02u", i * 37 % 100);
        assert_null(serve(catalogue, make(id, i + 1)));
    }
    list = catalogue_list(catalogue, &count);
    assert_int_equal(count, 100);
    for (uint32_t i = 0; i < 100; i++) {
        struct catalogue_key *found;

        (void)snprintf(id, sizeof id, "key-%02u", i);
        assert_string_equal(list[i]->key_id, id);
        found = catalogue_find(catalogue, id);
        assert_ptr_equal(found, list[i]);
        assert_int_equal((found->generation - 1) * 37 % 100, i);
        let_go(found);
        let_go(list[i]);
    }
    free(list);
}

/* ---- replacing ---- */

static void a_newer_key_takes_over_its_id(void **state)
{
    struct catalogue *catalogue = *state;
    struct catalogue_key *first = make("a", 1);
    struct catalogue_key *second = make("a", 2);
    struct catalogue_key *found;

    assert_null(serve(catalogue, first));
    assert_null(serve(catalogue, make("b", 1)));
    assert_false(first->superseded);
    assert_ptr_equal(serve(catalogue, second), first);
    assert_true(first->superseded);
    assert_false(second->superseded);
    found = catalogue_find(catalogue, "a");
    assert_ptr_equal(found, second);
    let_go(found);
    assert_true(catalogue_drop(first)); /* nobody signs with it: it may leave the token */
    free(first);
}

static void a_superseded_key_lives_until_its_last_signature(void **state)
{
    struct catalogue *catalogue = *state;
    struct catalogue_key *old = make("a", 1);
    struct catalogue_key *signing;

    assert_null(serve(catalogue, old));
    signing = catalogue_find(catalogue, "a");
    assert_ptr_equal(serve(catalogue, make("a", 2)), old);
    assert_false(catalogue_drop(old));
    assert_true(signing->superseded);
    assert_true(catalogue_drop(signing));
    free(signing);
}

static void a_served_key_is_never_the_last_holders_to_free(void **state)
{
    struct catalogue *catalogue = *state;

    assert_null(serve(catalogue, make("a", 1)));
    for (unsigned i = 0; i < 3; i++)
        assert_false(catalogue_drop(catalogue_find(catalogue, "a")));
}

/* ---- threads ---- */

struct traffic {
    struct catalogue *catalogue;
    unsigned number;
    atomic_uint *alive;
    atomic_uint *last_holders;
};

static void done_with(const struct traffic *traffic, struct catalogue_key *key)
{
    if (!catalogue_drop(key))
        return;
    if (!key->superseded)
        abort(); /* a key that is served has a holder */
    atomic_fetch_sub(traffic->alive, 1);
    atomic_fetch_add(traffic->last_holders, 1);
    free(key);
}

static void rotate(const struct traffic *traffic, const char *id, uint32_t generation)
{
    struct catalogue_key *old;

    atomic_fetch_add(traffic->alive, 1);
    old = serve(traffic->catalogue, make(id, generation));
    if (old)
        done_with(traffic, old);
}

static void use(const struct traffic *traffic, const char *id)
{
    struct catalogue_key *key = catalogue_find(traffic->catalogue, id);

    if (!key)
        return;
    if (strcmp(key->key_id, id) != 0 || key->public_key.fingerprint[0] != (uint8_t)key->generation)
        abort();
    done_with(traffic, key);
}

static void list_all(const struct traffic *traffic)
{
    size_t count;
    struct catalogue_key **list = catalogue_list(traffic->catalogue, &count);

    for (size_t i = 0; i < count; i++) {
        if (i > 0 && strcmp(list[i - 1]->key_id, list[i]->key_id) >= 0)
            abort();
        if (i > 0)
            done_with(traffic, list[i - 1]);
    }
    if (count > 0)
        done_with(traffic, list[count - 1]);
    free(list);
}

static void *busy(void *context)
{
    const struct traffic *traffic = context;
    char id[8];

    for (uint32_t i = 0; i < ROUNDS; i++) {
        (void)snprintf(id, sizeof id, "k%u", (i + traffic->number) % IDS);
        if (i % 8 == traffic->number)
            rotate(traffic, id, i);
        else if (i % 16 == 3)
            list_all(traffic);
        else
            use(traffic, id);
    }
    return NULL;
}

static void eight_threads_lose_no_key_and_free_none_twice(void **state)
{
    struct traffic traffic[THREADS];
    pthread_t threads[THREADS];
    atomic_uint last_holders = 0;
    atomic_uint alive = 0;
    size_t count;

    for (unsigned i = 0; i < THREADS; i++) {
        traffic[i] = (struct traffic){*state, i, &alive, &last_holders};
        assert_int_equal(pthread_create(&threads[i], NULL, busy, &traffic[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        (void)pthread_join(threads[i], NULL);
    count = ((struct catalogue *)*state)->count;
    assert_int_equal(count, IDS);
    assert_int_equal(alive, IDS);
    assert_int_equal(last_holders, THREADS * (ROUNDS / 8) - IDS);
}

/* ---- what SPIRE calls a key ---- */

static struct catalogue_key *from_openssl(EVP_PKEY *pkey)
{
    struct label label = {.generation = 1, .key_id = "a"};
    struct hsm_key_name name = {.label = "a"};
    struct hsm_public_key public_key = {.type = HSM_EC_P256};
    uint8_t *der = NULL;
    int length = i2d_PUBKEY(pkey, &der);

    assert_in_range(length, 1, HSM_PKIX_MAX);
    memcpy(public_key.pkix, der, (size_t)length);
    public_key.pkix_length = (uint32_t)length;
    (void)SHA256(der, (size_t)length, public_key.fingerprint);
    OPENSSL_free(der);
    return catalogue_key_new(&label, &name, &public_key);
}

static void hex(const uint8_t *bytes, size_t length, char *text)
{
    for (size_t i = 0; i < length; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

static void check_names(EVP_PKEY *pkey)
{
    struct catalogue_key *key = from_openssl(pkey);
    X509 *certificate = X509_new();
    uint8_t digest[EVP_MAX_MD_SIZE];
    char text[2 * EVP_MAX_MD_SIZE + 1];
    unsigned length = 0;

    assert_non_null(key);
    assert_int_equal(X509_set_pubkey(certificate, pkey), 1);
    assert_int_equal(X509_pubkey_digest(certificate, EVP_sha1(), digest, &length), 1);
    hex(digest, length, text);
    assert_string_equal(key->authority_id, text);
    hex(key->public_key.fingerprint, HSM_FINGERPRINT, text);
    assert_string_equal(key->fingerprint, text);
    X509_free(certificate);
    EVP_PKEY_free(pkey);
    let_go(key);
}

static void the_authority_id_is_the_subject_key_identifier(void **state)
{
    (void)state;
    check_names(EVP_EC_gen("P-256"));
    check_names(EVP_EC_gen("P-384"));
    check_names(EVP_RSA_gen(2048));
}

static void a_public_key_that_is_none_has_no_authority_id(void **state)
{
    struct catalogue_key *key = make("a", 1);

    (void)state;
    assert_string_equal(key->authority_id, "");
    let_go(key);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, open_catalogue, close_catalogue)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(an_id_that_is_not_served_is_not_found),
        WITH(every_key_is_found_and_listed_by_id),
        WITH(a_newer_key_takes_over_its_id),
        WITH(a_superseded_key_lives_until_its_last_signature),
        WITH(a_served_key_is_never_the_last_holders_to_free),
        WITH(eight_threads_lose_no_key_and_free_none_twice),
        cmocka_unit_test(the_authority_id_is_the_subject_key_identifier),
        cmocka_unit_test(a_public_key_that_is_none_has_no_authority_id),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
