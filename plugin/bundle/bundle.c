/* A trust bundle in each format, written so that Go's readers accept it; and a published file read
 * back, which must be whole. */
#include "plugin/bundle/bundle.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "hsm/base/base64.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "plugin/bundle/document.h"
#include "plugin/bundle/jwk.h"

/* SPIFFE Trust Domain and Bundle, 4.2.2 */
static const char use_x509[] = "x509-svid";
static const char use_jwt[] = "jwt-svid";

/* The differences between the JSON formats. */
static const struct dialect {
    const char *use_x509; /* NULL: keys have no member `use` */
    const char *use_jwt;
    bool numbers;   /* has a sequence number and a refresh hint, and may have keys of other uses */
    bool jwt_alone; /* has no X.509 authorities */
    bool algorithm; /* keys have an `alg` */
} dialects[] = {
    [BUNDLE_SPIFFE] = {.use_x509 = use_x509, .use_jwt = use_jwt, .numbers = true},
    [BUNDLE_JWKS] = {0},
    [BUNDLE_OIDC] = {.jwt_alone = true, .algorithm = true},
};

static int no_memory(struct fault *fault)
{
    return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
}

static int invalid(struct fault *fault, const char *what)
{
    ERR_clear_error();
    return fault_set(fault, FAULT_INVALID_ARGUMENT, "%s", what);
}

static X509 *read_certificate(const uint8_t *der, size_t length, struct fault *fault)
{
    const unsigned char *end = der;
    X509 *certificate = NULL;

    if (length > 0 && length <= LONG_MAX)
        certificate = d2i_X509(NULL, &end, (long)length);
    if (certificate && end == der + length)
        return certificate;
    X509_free(certificate);
    (void)invalid(fault, "not one DER certificate");
    return NULL;
}

/* ---- keys ---- */

/* OpenSSL reads spellings of a key that Go refuses: compressed points, curves by their parameters,
 * RSA without NULL. So the JWK's members are encoded again in the usual way, and the key must equal
 * the result. */
static int check_spelling(const json_t *jwk, const uint8_t *pkix, size_t length,
                          struct fault *fault)
{
    OWNED(jwk_free_key) EVP_PKEY *key = jwk_read(jwk, fault);
    OWNED(der_free) unsigned char *der = NULL;
    int usual;

    if (!key)
        return -1;
    usual = i2d_PUBKEY(key, &der);
    if (usual > 0 && (size_t)usual == length && memcmp(der, pkix, length) == 0)
        return 0;
    return invalid(fault, "public key in an unusual DER encoding");
}

static int write_key(const uint8_t *pkix, size_t length, json_t *jwk, struct fault *fault)
{
    const unsigned char *der = pkix;
    OWNED(jwk_free_key) EVP_PKEY *key = NULL;

    if (length > 0 && length <= LONG_MAX)
        key = d2i_PUBKEY(NULL, &der, (long)length);
    if (!key)
        return invalid(fault, "public key that is not a known DER SubjectPublicKeyInfo");
    if (jwk_write(key, jwk, fault) != 0)
        return -1;
    return check_spelling(jwk, pkix, length, fault);
}

/* ---- X.509 authorities ---- */

static bool is_repeated(const struct bundle *bundle, size_t index)
{
    const struct bundle_bytes *one = &bundle->x509[index];

    for (size_t i = 0; i < index; i++)
        if (bundle->x509[i].length == one->length &&
            memcmp(bundle->x509[i].bytes, one->bytes, one->length) == 0)
            return true;
    return false;
}

static int write_certificate_key(const X509 *certificate, json_t *jwk, struct fault *fault)
{
    OWNED(der_free) unsigned char *pkix = NULL;
    int length = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(certificate), &pkix);

    if (length <= 0)
        return invalid(fault, "no public key");
    return write_key(pkix, (size_t)length, jwk, fault);
}

static int write_x5c(const struct bundle_bytes *der, json_t *jwk, struct fault *fault)
{
    OWNED(scope_free) char *text = base64_encode(BASE64_STANDARD, der->bytes, der->length);

    if (!text || json_object_set_new(jwk, "x5c", json_pack("[s]", text)) != 0)
        return no_memory(fault);
    return 0;
}

static int write_x509(const struct bundle_bytes *der, const char *use, json_t *jwk,
                      struct fault *fault)
{
    OWNED(x509_free)
    X509 *certificate = read_certificate(der->bytes, der->length, fault);

    if (!certificate)
        return -1;
    if (use && json_object_set_new(jwk, "use", json_string(use)) != 0)
        return no_memory(fault);
    if (write_certificate_key(certificate, jwk, fault) != 0)
        return -1;
    return write_x5c(der, jwk, fault);
}

static int add_x509(const struct bundle *bundle, const char *use, json_t *keys, struct fault *fault)
{
    for (size_t i = 0; i < bundle->x509_count; i++) {
        OWNED(document_free) json_t *jwk = json_object();

        if (is_repeated(bundle, i))
            continue;
        if (!jwk)
            return no_memory(fault);
        if (write_x509(&bundle->x509[i], use, jwk, fault) != 0)
            return fault_prefix(fault, "X.509 authority %zu of %zu", i + 1, bundle->x509_count);
        if (json_array_append(keys, jwk) != 0)
            return no_memory(fault);
    }
    return 0;
}

/* ---- JWT authorities ---- */

static int compare_ids(const void *a, const void *b)
{
    const struct bundle_jwt_key *const *one = a;
    const struct bundle_jwt_key *const *other = b;

    return strcmp((*one)->key_id, (*other)->key_id);
}

/* Sorted by key id: the datastore's order means nothing, and a change of it must not change the
 * file. */
static const struct bundle_jwt_key **sort_jwt(const struct bundle *bundle)
{
    const struct bundle_jwt_key **sorted = calloc(bundle->jwt_count + 1, sizeof *sorted);

    if (!sorted)
        return NULL;
    for (size_t i = 0; i < bundle->jwt_count; i++)
        sorted[i] = &bundle->jwt[i];
    qsort(sorted, bundle->jwt_count, sizeof *sorted, compare_ids);
    return sorted;
}

/* The `alg` that `jwk` should have; NULL: none. */
static const char *algorithm_of(const json_t *jwk)
{
    OWNED(jwk_free_key) EVP_PKEY *key = jwk_read(jwk, NULL);

    return key ? jwk_algorithm(key) : NULL;
}

static int write_algorithm(json_t *jwk, struct fault *fault)
{
    const char *algorithm = algorithm_of(jwk);

    if (algorithm && json_object_set_new(jwk, "alg", json_string(algorithm)) != 0)
        return no_memory(fault);
    return 0;
}

static int write_jwt(const struct bundle_jwt_key *key, const struct dialect *dialect, json_t *jwk,
                     struct fault *fault)
{
    const char *use = dialect->use_jwt;

    if (!*key->key_id)
        return invalid(fault, "no key id");
    if (use && json_object_set_new(jwk, "use", json_string(use)) != 0)
        return no_memory(fault);
    if (json_object_set_new(jwk, "kid", json_string(key->key_id)) != 0)
        return invalid(fault, "key id that is not UTF-8");
    if (write_key(key->pkix.bytes, key->pkix.length, jwk, fault) != 0)
        return -1;
    return dialect->algorithm ? write_algorithm(jwk, fault) : 0;
}

static int add_jwt(const struct bundle *bundle, const struct dialect *dialect, json_t *keys,
                   struct fault *fault)
{
    OWNED(scope_free) const struct bundle_jwt_key **sorted = sort_jwt(bundle);

    if (!sorted)
        return no_memory(fault);
    for (size_t i = 0; i < bundle->jwt_count; i++) {
        OWNED(document_free) json_t *jwk = json_object();

        if (i > 0 && compare_ids(&sorted[i - 1], &sorted[i]) == 0)
            return fault_set(fault, FAULT_INVALID_ARGUMENT,
                             "two JWT authorities have one key id, \"%s\"", sorted[i]->key_id);
        if (!jwk)
            return no_memory(fault);
        if (write_jwt(sorted[i], dialect, jwk, fault) != 0)
            return fault_prefix(fault, "JWT authority \"%s\"", sorted[i]->key_id);
        if (json_array_append(keys, jwk) != 0)
            return no_memory(fault);
    }
    return 0;
}

/* ---- JSON formats ---- */

/* Zeros are left out, as SPIRE does. */
static int add_numbers(const struct bundle *bundle, json_t *document, struct fault *fault)
{
    if (bundle->sequence > INT64_MAX)
        return invalid(fault, "the bundle's sequence number is beyond 63 bits");
    if (bundle->sequence > 0 &&
        json_object_set_new(document, "spiffe_sequence",
                            json_integer((json_int_t)bundle->sequence)) != 0)
        return no_memory(fault);
    if (bundle->refresh_hint > 0 && json_object_set_new(document, "spiffe_refresh_hint",
                                                        json_integer(bundle->refresh_hint)) != 0)
        return no_memory(fault);
    return 0;
}

static int encode_json(const struct bundle *bundle, const struct dialect *dialect, char **bytes,
                       size_t *length, struct fault *fault)
{
    OWNED(document_free) json_t *document = json_object();
    json_t *keys = json_array();

    if (!document || json_object_set_new(document, "keys", keys) != 0)
        return no_memory(fault);
    if (dialect->jwt_alone && bundle->jwt_count == 0)
        return invalid(fault, "the bundle has no JWT authorities, and OIDC needs one");
    if (!dialect->jwt_alone && add_x509(bundle, dialect->use_x509, keys, fault) != 0)
        return -1;
    if (add_jwt(bundle, dialect, keys, fault) != 0 ||
        (dialect->numbers && add_numbers(bundle, document, fault) != 0))
        return -1;
    return document_bytes(document, bytes, length, fault);
}

/* The certificate must hold the key beside it. */
static int check_x5c(const json_t *jwk, struct fault *fault)
{
    const json_t *x5c = json_object_get(jwk, "x5c");
    const char *text = json_string_value(json_array_get(x5c, 0));
    size_t length = 0;
    OWNED(scope_free) uint8_t *der = text ? base64_decode(BASE64_STANDARD, text, &length) : NULL;
    OWNED(x509_free) X509 *certificate = NULL;
    OWNED(der_free) unsigned char *pkix = NULL;
    int size;

    if (!der || json_array_size(x5c) != 1)
        return invalid(fault, "not exactly one certificate");
    certificate = read_certificate(der, length, fault);
    if (!certificate)
        return -1;
    size = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(certificate), &pkix);
    if (size <= 0)
        return invalid(fault, "no public key");
    return check_spelling(jwk, pkix, (size_t)size, fault);
}

static int check_kid(const json_t *jwk, json_t *seen, struct fault *fault)
{
    const char *kid = json_string_value(json_object_get(jwk, "kid"));

    if (!kid || !*kid)
        return invalid(fault, "no key id");
    if (json_object_get(seen, kid))
        return invalid(fault, "same key id as another");
    if (json_object_set_new(seen, kid, json_true()) != 0)
        return no_memory(fault);
    return 0;
}

static bool is_text(const json_t *text, const char *wanted)
{
    return json_is_string(text) && strcmp(json_string_value(text), wanted) == 0;
}

/* In the SPIFFE format. A `use` that is no text means that the file is damaged. */
static bool is_other(const json_t *use)
{
    return !use || (json_is_string(use) && bundle_passes_over(json_string_value(use)));
}

/* The members that say what an authority is for. */
static int check_purpose(const json_t *jwk, bool x509, const struct dialect *dialect,
                         const EVP_PKEY *key, struct fault *fault)
{
    const json_t *use = json_object_get(jwk, "use");
    const json_t *alg = json_object_get(jwk, "alg");
    const char *wanted = x509 ? dialect->use_x509 : dialect->use_jwt;
    const char *algorithm = jwk_algorithm(key);

    if (x509 && dialect->jwt_alone)
        return invalid(fault, "an X.509 authority, which does not belong into a key set for OIDC");
    if (wanted ? !is_text(use, wanted) : use != NULL)
        return invalid(fault, "its \"use\" does not belong into such a file");
    if (dialect->algorithm && (algorithm ? !is_text(alg, algorithm) : alg != NULL))
        return invalid(fault, "its \"alg\" is not one that SPIRE signs with");
    return 0;
}

static int read_entry(const json_t *jwk, const struct dialect *dialect, json_t *seen,
                      struct bundle_summary *summary, struct fault *fault)
{
    bool x509 = json_object_get(jwk, "x5c") != NULL;
    OWNED(jwk_free_key) EVP_PKEY *key = jwk_read(jwk, fault);

    if (!key)
        return -1;
    if (dialect->numbers && is_other(json_object_get(jwk, "use"))) {
        summary->others++;
        return 0;
    }
    if (check_purpose(jwk, x509, dialect, key, fault) != 0)
        return -1;
    if (x509) {
        summary->x509++;
        return check_x5c(jwk, fault);
    }
    summary->jwt++;
    return check_kid(jwk, seen, fault);
}

static int read_keys(const json_t *keys, const struct dialect *dialect,
                     struct bundle_summary *summary, struct fault *fault)
{
    OWNED(document_free) json_t *seen = json_object();
    const json_t *jwk;
    size_t i;

    if (!seen)
        return no_memory(fault);
    if (!json_is_array(keys))
        return invalid(fault, "the file has no list of keys");
    json_array_foreach (keys, i, jwk)
        if (read_entry(jwk, dialect, seen, summary, fault) != 0)
            return fault_prefix(fault, "key %zu of %zu", i + 1, json_array_size(keys));
    if (summary->x509 + summary->jwt == 0)
        return fault_set(fault, FAULT_NOT_FOUND, "no authorities in it");
    return 0;
}

static int read_sequence(const json_t *document, uint64_t *sequence, struct fault *fault)
{
    const json_t *number = json_object_get(document, "spiffe_sequence");
    const json_t *hint = json_object_get(document, "spiffe_refresh_hint");

    if (number && (!json_is_integer(number) || json_integer_value(number) < 0))
        return invalid(fault, "\"spiffe_sequence\" is not a whole number from 0 up");
    if (hint && !json_is_integer(hint))
        return invalid(fault, "\"spiffe_refresh_hint\" is not a whole number");
    *sequence = (uint64_t)json_integer_value(number);
    return 0;
}

static int read_json(const char *bytes, size_t length, const struct dialect *dialect,
                     struct bundle_summary *summary, struct fault *fault)
{
    json_error_t error;
    OWNED(document_free)
    json_t *document = json_loadb(bytes, length, JSON_REJECT_DUPLICATES, &error);

    if (!document)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "not JSON: line %d: %s", error.line,
                         error.text);
    if (dialect->numbers && read_sequence(document, &summary->sequence, fault) != 0)
        return -1;
    return read_keys(json_object_get(document, "keys"), dialect, summary, fault);
}

/* ---- PEM ---- */

/* Hands over the bytes that were written to `bio`. */
static int take_bio(BIO *bio, char **bytes, size_t *length, struct fault *fault)
{
    char *data;
    long size = BIO_get_mem_data(bio, &data);
    char *copy = size > 0 ? malloc((size_t)size + 1) : NULL;

    if (!copy)
        return no_memory(fault);
    memcpy(copy, data, (size_t)size);
    copy[size] = '\0';
    *bytes = copy;
    *length = (size_t)size;
    return 0;
}

static int write_pem(BIO *bio, const uint8_t *der, size_t length)
{
    return PEM_write_bio(bio, PEM_STRING_X509, "", der, (long)length) > 0 ? 0 : -1;
}

static int encode_pem(const struct bundle *bundle, char **bytes, size_t *length,
                      struct fault *fault)
{
    OWNED(bio_free) BIO *bio = BIO_new(BIO_s_mem());
    OWNED(document_free) json_t *checked = json_array();

    if (!bio || !checked)
        return no_memory(fault);
    if (bundle->x509_count == 0)
        return invalid(fault, "the bundle has no X.509 authorities, and PEM needs one");
    if (add_x509(bundle, NULL, checked, fault) != 0)
        return -1;
    for (size_t i = 0; i < bundle->x509_count; i++)
        if (!is_repeated(bundle, i) &&
            write_pem(bio, bundle->x509[i].bytes, bundle->x509[i].length) != 0)
            return no_memory(fault);
    return take_bio(bio, bytes, length, fault);
}

/* Reads the next certificate and writes it to `again`. Returns 1, 0 at the end, or -1. */
static int read_block(BIO *bio, BIO *again, struct fault *fault)
{
    char *name = NULL;
    char *header = NULL;
    OWNED(der_free) unsigned char *der = NULL;
    OWNED(x509_free) X509 *certificate = NULL;
    long length;
    int found = PEM_read_bio(bio, &name, &header, &der, &length);

    ERR_clear_error();
    OPENSSL_free(name);
    OPENSSL_free(header);
    if (!found)
        return 0;
    certificate = read_certificate(der, (size_t)length, fault);
    if (!certificate)
        return -1;
    return write_pem(again, der, (size_t)length) == 0 ? 1 : no_memory(fault);
}

/* OpenSSL skips text between and behind blocks, and stops silently at half a block. So the
 * certificates are written again: only a file that equals the result was whole. */
static int read_pem(const char *bytes, size_t length, struct bundle_summary *summary,
                    struct fault *fault)
{
    OWNED(bio_free)
    BIO *bio = length > 0 && length < INT_MAX ? BIO_new_mem_buf(bytes, (int)length) : NULL;
    OWNED(bio_free) BIO *again = BIO_new(BIO_s_mem());
    char *written;
    int found;

    if (!bio || !again)
        return invalid(fault, "no authorities in it");
    while ((found = read_block(bio, again, fault)) > 0)
        summary->x509++;
    if (found < 0)
        return -1;
    if (summary->x509 == 0)
        return invalid(fault, "no authorities in it");
    if (BIO_get_mem_data(again, &written) != (long)length || memcmp(written, bytes, length) != 0)
        return invalid(fault, "the file holds something besides PEM blocks, or half a block");
    return 0;
}

/* ---- the formats ---- */

int bundle_encode(const struct bundle *bundle, enum bundle_format format, char **bytes,
                  size_t *length, struct fault *fault)
{
    if (bundle->x509_count == 0 && bundle->jwt_count == 0)
        return invalid(fault, "the bundle has no authorities");
    if (format == BUNDLE_PEM)
        return encode_pem(bundle, bytes, length, fault);
    return encode_json(bundle, &dialects[format], bytes, length, fault);
}

int bundle_read(const char *bytes, size_t length, enum bundle_format format,
                struct bundle_summary *summary, struct fault *fault)
{
    struct bundle_summary found = {0};
    int result = format == BUNDLE_PEM ? read_pem(bytes, length, &found, fault)
                                      : read_json(bytes, length, &dialects[format], &found, fault);

    if (result == 0)
        *summary = found;
    return result;
}

bool bundle_passes_over(const char *use)
{
    return !use || (strcmp(use, use_x509) != 0 && strcmp(use, use_jwt) != 0);
}
