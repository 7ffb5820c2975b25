/* Labels and ids of keys on the token: how they name server, key id and generation, so that each
 * server finds its own keys again. */
#include "plugin/keys/label.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include "hsm/base/hex.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/base/utf8.h"
#include "plugin/report/log.h"

enum {
    GENERATION_CHARACTERS = 6,
    GENERATION_BYTES = 4,
    GENERATION_MAX = (1 << 30) - 1,
    SCOPE_BYTES = 5, /* 40 bits are 8 characters of base32 */
    ID_LONG = 16,
    ID_SHORT = 2,
    MARK_AT = 8, /* from here to the end of the id */
};

static const char format_1[] = "sp1-";
static const char base32hex[] = "0123456789abcdefghijklmnopqrstuv"; /* RFC 4648 section 7 */
static const int64_t epoch = 1735689600;                            /* 2025-01-01T00:00Z */

_Static_assert(sizeof format_1 - 1 + 2 * LABEL_HASH + 1 + GENERATION_CHARACTERS + 1 +
                       3 * LABEL_KEY_ID_MAX <=
                   HSM_LABEL_MAX,
               "the longest key id fits");

/* ---- base32hex ---- */

static void put_base32(uint64_t value, size_t characters, char *text)
{
    for (size_t i = characters; i-- > 0; value >>= 5)
        text[i] = base32hex[value & 31];
}

static bool get_base32(const char *text, size_t characters, uint64_t *value)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < characters; i++) {
        const char *digit = text[i] ? strchr(base32hex, text[i]) : NULL;

        if (!digit)
            return false;
        sum = sum << 5 | (uint64_t)(digit - base32hex);
    }
    *value = sum;
    return true;
}

/* ---- scope ---- */

/* `kind` is hashed with its NUL. A wrong hash would turn us into another server, so without memory
 * for a right one the plugin ends. */
static void hash(const char *kind, const void *bytes, size_t length, char text[LABEL_HASH + 1])
{
    OWNED(md_ctx_free) EVP_MD_CTX *context = EVP_MD_CTX_new();
    uint8_t digest[EVP_MAX_MD_SIZE];
    uint64_t value = 0;

    if (!context || EVP_DigestInit_ex2(context, EVP_sha256(), NULL) != 1 ||
        EVP_DigestUpdate(context, kind, strlen(kind) + 1) != 1 ||
        EVP_DigestUpdate(context, bytes, length) != 1 ||
        EVP_DigestFinal_ex(context, digest, NULL) != 1) {
        log_write(
            LOG_ERROR,
            "OpenSSL has no SHA-256 or no memory: the plugin ends, as it cannot name its keys",
            NULL);
        abort();
    }
    for (size_t i = 0; i < SCOPE_BYTES; i++)
        value = value << 8 | digest[i];
    put_base32(value, LABEL_HASH, text);
    text[LABEL_HASH] = '\0';
}

void label_trust_domain_hash(const char *trust_domain, char text[LABEL_HASH + 1])
{
    hash("spire-p11-1/td", trust_domain, strlen(trust_domain), text);
}

void label_scope(const char *trust_domain, const void *identity, size_t length,
                 struct label_scope *scope)
{
    label_trust_domain_hash(trust_domain, scope->trust_domain);
    hash("spire-p11-1/server", identity, length, scope->server);
}

bool label_same_name(const struct hsm_key_name *a, const struct hsm_key_name *b)
{
    return a->id_length == b->id_length && a->id_length <= HSM_ID_MAX &&
           memcmp(a->id, b->id, a->id_length) == 0 && strcmp(a->label, b->label) == 0;
}

bool label_same_scope(const struct label_scope *a, const struct label_scope *b)
{
    return strcmp(a->trust_domain, b->trust_domain) == 0 && strcmp(a->server, b->server) == 0;
}

void label_prefix(const struct label_scope *scope, char prefix[16])
{
    memcpy(stpcpy(prefix, format_1), scope->trust_domain, LABEL_HASH + 1);
}

/* ---- key id <-> name ---- */

/* isalnum is avoided: the locale must not change names. */
static bool is_plain(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
}

static char *put_name(const char *key_id, char *text)
{
    for (; *key_id; key_id++) {
        if (is_plain(*key_id)) {
            *text++ = *key_id;
            continue;
        }
        *text++ = '_';
        hex_encode(key_id, 1, text);
        text += 2;
    }
    *text = '\0';
    return text;
}

/* Reads one byte behind a '_'. Returns 0, which no key id has, unless put_name would have written
 * it so. */
static char get_escaped(const char *text)
{
    char byte;

    return hex_decode(text, 1, &byte) && !is_plain(byte) ? byte : '\0';
}

static bool get_name(const char *text, char key_id[LABEL_KEY_ID_MAX + 1])
{
    size_t length = 0;

    while (*text && length < LABEL_KEY_ID_MAX) {
        bool escaped = *text == '_';
        char c = escaped ? get_escaped(text + 1) : *text;

        if (c == '\0' || (!escaped && !is_plain(c)))
            return false;
        key_id[length++] = c;
        text += escaped ? 3 : 1;
    }
    key_id[length] = '\0';
    return *text == '\0' && length > 0 && utf8_is_text(key_id, length);
}

static size_t label_length(const char *key_id)
{
    size_t length = sizeof format_1 - 1 + 2 * LABEL_HASH + 1 + GENERATION_CHARACTERS + 1;

    for (; *key_id; key_id++)
        length += is_plain(*key_id) ? 1 : 3;
    return length;
}

int label_check_key_id(const char *key_id, size_t label_max, struct fault *fault)
{
    size_t length = strlen(key_id);

    if (length == 0)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "key id is empty");
    if (length > LABEL_KEY_ID_MAX)
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "key id of %zu bytes is too long, %d are the most", length,
                         LABEL_KEY_ID_MAX);
    if (!utf8_is_text(key_id, length))
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "key id is not UTF-8");
    if (label_max > 0 && label_length(key_id) > label_max)
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "key id '%s' needs a label of %zu bytes, label_max is %zu", key_id,
                         label_length(key_id), label_max);
    return 0;
}

/* ---- labels ---- */

void label_format(const struct label *label, char text[HSM_LABEL_MAX + 1])
{
    char *at = stpcpy(text, format_1);

    at = stpcpy(at, label->scope.trust_domain);
    at = stpcpy(at, label->scope.server);
    *at++ = '-';
    put_base32(label->generation, GENERATION_CHARACTERS, at);
    at += GENERATION_CHARACTERS;
    *at++ = '-';
    (void)put_name(label->key_id, at);
}

/* Copies the next `characters` into `field` and steps over them, if all of them are base32hex. */
static bool get_field(const char **text, size_t characters, char *field, uint64_t *value)
{
    if (!get_base32(*text, characters, value))
        return false;
    memcpy(field, *text, characters);
    field[characters] = '\0';
    *text += characters;
    return true;
}

bool label_parse(const char *text, struct label *label)
{
    struct label made;
    char generation[GENERATION_CHARACTERS + 1];
    uint64_t value;

    if (strncmp(text, format_1, sizeof format_1 - 1) != 0)
        return false;
    text += sizeof format_1 - 1;
    if (!get_field(&text, LABEL_HASH, made.scope.trust_domain, &value) ||
        !get_field(&text, LABEL_HASH, made.scope.server, &value) || *text++ != '-' ||
        !get_field(&text, GENERATION_CHARACTERS, generation, &value) || *text++ != '-')
        return false;
    made.generation = (uint32_t)value;
    if (!get_name(text, made.key_id))
        return false;
    *label = made;
    return true;
}

/* ---- generations ---- */

int label_next_generation(int64_t now, uint32_t highest, uint32_t *generation, struct fault *fault)
{
    int64_t next = (int64_t)highest + 1;

    if (now - epoch > next)
        next = now - epoch;
    if (next > GENERATION_MAX)
        return fault_set(fault, FAULT_INTERNAL,
                         "no generations are left for new keys: the clock, or the label of a "
                         "key on the token, is far ahead");
    *generation = (uint32_t)next;
    return 0;
}

/* ---- CKA_ID ---- */

void label_maker(const void *secret, size_t length, struct label_maker *maker)
{
    maker->known = EVP_Q_digest(NULL, "SHA256", NULL, secret, length, maker->key, NULL) == 1;
}

/* The mark over the id's first MARK_AT bytes, which are already there. */
static bool mark_of(const struct label_maker *maker, const struct hsm_key_name *name,
                    uint8_t mark[EVP_MAX_MD_SIZE])
{
    uint8_t text[HSM_LABEL_MAX + MARK_AT];
    size_t length = strlen(name->label);

    memcpy(text, name->label, length);
    memcpy(text + length, name->id, MARK_AT);
    return maker->known && HMAC(EVP_sha256(), maker->key, sizeof maker->key, text, length + MARK_AT,
                                mark, NULL) != NULL;
}

int label_new_id(uint32_t generation, uint32_t id_length, const struct label_maker *maker,
                 struct hsm_key_name *name, struct fault *fault)
{
    uint8_t mark[EVP_MAX_MD_SIZE];
    uint8_t id[ID_LONG];

    if (id_length != ID_LONG && id_length != ID_SHORT)
        return fault_set(fault, FAULT_INTERNAL, "no CKA_ID of %u bytes", id_length);
    if (RAND_bytes(id, sizeof id) != 1)
        return fault_set(fault, FAULT_INTERNAL, "no random bytes for a CKA_ID");
    for (size_t i = 0; id_length == ID_LONG && i < GENERATION_BYTES; i++)
        id[i] = (uint8_t)(generation >> (8 * (GENERATION_BYTES - 1 - i)));
    memcpy(name->id, id, id_length);
    name->id_length = id_length;
    if (id_length == ID_LONG && mark_of(maker, name, mark))
        memcpy(name->id + MARK_AT, mark, ID_LONG - MARK_AT);
    return 0;
}

bool label_made_by(const struct label_maker *maker, const struct hsm_key_name *name)
{
    uint8_t mark[EVP_MAX_MD_SIZE];

    return name->id_length == ID_LONG && mark_of(maker, name, mark) &&
           memcmp(name->id + MARK_AT, mark, ID_LONG - MARK_AT) == 0;
}
