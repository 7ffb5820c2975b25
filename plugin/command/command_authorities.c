/* The authorities in a published file, for the commands that go through them one by one. */
#include <string.h>
#include <time.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "hsm/base/base64.h"
#include "hsm/base/hex.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "plugin/command/command_private.h"

static const size_t file_max = (size_t)16 << 20;

/* ---- format ---- */

static const char *const formats[] = {
    [BUNDLE_SPIFFE] = "spiffe",
    [BUNDLE_JWKS] = "jwks",
    [BUNDLE_PEM] = "pem",
    [BUNDLE_OIDC] = "oidc",
};

const char *command_format_name(enum bundle_format format)
{
    return formats[format];
}

static bool has_use(const json_t *document)
{
    const json_t *key;
    size_t i;

    json_array_foreach (json_object_get(document, "keys"), i, key)
        if (json_object_get(key, "use"))
            return true;
    return json_object_get(document, "spiffe_sequence") ||
           json_object_get(document, "spiffe_refresh_hint");
}

/* Among our formats, only the key set for OIDC has the algorithm of each key. */
static bool has_algorithm(const json_t *document)
{
    const json_t *key;
    size_t i;

    json_array_foreach (json_object_get(document, "keys"), i, key)
        if (json_object_get(key, "alg"))
            return true;
    return false;
}

static int choose_format(const char *wanted, struct command_bundle *bundle, struct fault *fault)
{
    bundle->format = has_algorithm(bundle->document) ? BUNDLE_OIDC : BUNDLE_JWKS;
    if (has_use(bundle->document))
        bundle->format = BUNDLE_SPIFFE;
    if (!bundle->document)
        bundle->format = strstr(bundle->bytes, "-----BEGIN ") ? BUNDLE_PEM : BUNDLE_SPIFFE;
    if (!wanted)
        return 0;
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++)
        if (strcmp(formats[i], wanted) == 0) {
            bundle->format = (enum bundle_format)i;
            return 0;
        }
    return fault_set(fault, FAULT_INVALID_ARGUMENT, "--format: expected spiffe, jwks, pem or oidc");
}

/* ---- the file ---- */

int command_read_bundle(const char *path, const char *format, struct command_bundle *bundle,
                        struct fault *fault)
{
    *bundle = (struct command_bundle){.bytes = NULL};
    bundle->bytes = command_read_file(path, file_max, &bundle->length, fault);
    if (!bundle->bytes)
        return -1;
    bundle->document = json_loadb(bundle->bytes, bundle->length, JSON_REJECT_DUPLICATES, NULL);
    return choose_format(format, bundle, fault);
}

void command_free_bundle(struct command_bundle *bundle)
{
    json_decref(bundle->document);
    free(bundle->bytes);
    *bundle = (struct command_bundle){.bytes = NULL};
}

/* ---- authorities ---- */

struct visit {
    const struct command_bundle *bundle;
    const struct command_bundle_visitor *visitor;
    void *context;
};

static void visit_der(const struct visit *visit, const uint8_t *der, size_t length)
{
    const unsigned char *at = der;
    OWNED(x509_free)
    X509 *certificate = length < file_max ? d2i_X509(NULL, &at, (long)length) : NULL;

    ERR_clear_error();
    visit->visitor->certificate(visit->context, certificate);
}

static void visit_pem(const struct visit *visit)
{
    OWNED(bio_free) BIO *bio = BIO_new_mem_buf(visit->bundle->bytes, (int)visit->bundle->length);

    for (;;) {
        OWNED(x509_free) X509 *certificate = PEM_read_bio_X509(bio, NULL, NULL, NULL);

        if (!certificate)
            break;
        visit->visitor->certificate(visit->context, certificate);
    }
    ERR_clear_error();
}

static void visit_entry(const struct visit *visit, const json_t *jwk)
{
    const char *x5c = json_string_value(json_array_get(json_object_get(jwk, "x5c"), 0));
    const char *use = json_string_value(json_object_get(jwk, "use"));
    size_t length = 0;
    OWNED(scope_free) uint8_t *der = x5c ? base64_decode(BASE64_STANDARD, x5c, &length) : NULL;

    if (visit->bundle->format == BUNDLE_SPIFFE && bundle_passes_over(use))
        return;
    if (json_object_get(jwk, "x5c"))
        visit_der(visit, der, length);
    else
        visit->visitor->key(visit->context, jwk);
}

void command_visit_bundle(const struct command_bundle *bundle,
                          const struct command_bundle_visitor *visitor, void *context)
{
    const struct visit visit = {bundle, visitor, context};
    const json_t *jwk;
    size_t i;

    if (bundle->format == BUNDLE_PEM) {
        visit_pem(&visit);
        return;
    }
    json_array_foreach (json_object_get(bundle->document, "keys"), i, jwk)
        visit_entry(&visit, jwk);
}

/* ---- what stands in a certificate ---- */

void command_ski(X509 *certificate, char text[SKI_TEXT])
{
    const ASN1_OCTET_STRING *id = X509_get0_subject_key_id(certificate);
    int length = id ? ASN1_STRING_length(id) : 0;

    text[0] = '\0';
    if (length > 0 && length <= SKI_TEXT / 2)
        hex_encode(ASN1_STRING_get0_data(id), (size_t)length, text);
}

void command_time(const ASN1_TIME *time, char text[TIME_TEXT])
{
    struct tm utc;

    if (ASN1_TIME_to_tm(time, &utc) != 1 ||
        strftime(text, TIME_TEXT, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0)
        (void)snprintf(text, TIME_TEXT, "?");
}
