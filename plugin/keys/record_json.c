/* The record as JSON, as its file has it. */
#include "plugin/keys/record.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/sha.h>

#include "hsm/base/hex.h"
#include "hsm/base/scope.h"
#include "hsm/base/utf8.h"
#include "hsm/wire/keytype.h"
#include "hsm/wire/pubkey.h"
#include "plugin/keys/previous.h"

enum {
    VERSION = 1, /* the version written, and the newest that can be read */
    DIGEST_TEXT = 2 * SHA256_DIGEST_LENGTH,
    BASE64_MAX = (HSM_PKIX_MAX + 2) / 3 * 4,
    WORD_MAX = HSM_LABEL_MAX + 1 + 2 * HSM_ID_MAX + 1,
    SCOPE_TEXT = 2 * LABEL_HASH,
};

static const char *const states[] = {
    [RECORD_SERVED] = "served",       [RECORD_MISSING] = "missing",
    [RECORD_CONDEMNED] = "condemned", [RECORD_ATTEMPTED] = "attempted",
    [RECORD_FOUND] = "found",
};

static const char moved[] = "moved"; /* a key of previous; until then "served" */

enum { STATES = sizeof states / sizeof states[0] };

static void free_json(json_t **json)
{
    json_decref(*json);
}

static int no_memory(struct fault *fault)
{
    return fault_set(fault, FAULT_UNAVAILABLE, "cannot be kept in memory: there is none left");
}

static void name_scope(const struct label_scope *scope, char text[SCOPE_TEXT + 1])
{
    (void)stpcpy(stpcpy(text, scope->trust_domain), scope->server);
}

/* The document must not have the member "sha256". */
static bool digest_of(const json_t *document, char text[DIGEST_TEXT + 1])
{
    OWNED(scope_free) char *bytes = json_dumps(document, JSON_COMPACT | JSON_SORT_KEYS);
    uint8_t digest[SHA256_DIGEST_LENGTH];

    if (!bytes || !SHA256((const uint8_t *)bytes, strlen(bytes), digest))
        return false;
    hex_encode(digest, sizeof digest, text);
    return true;
}

/* ---- reading: members ---- */

static int wrong_member(struct fault *fault, const char *where, const char *name)
{
    return fault_set(fault, FAULT_FAILED_PRECONDITION, "is damaged: the \"%s\" of %s is wrong",
                     name, where);
}

static bool get_text(const json_t *object, const char *name, char *text, size_t size)
{
    const json_t *member = json_object_get(object, name);

    if (!json_is_string(member) || json_string_length(member) >= size)
        return false;
    memcpy(text, json_string_value(member), json_string_length(member) + 1);
    return true;
}

static bool get_hex(const json_t *object, const char *name, size_t most, void *bytes,
                    size_t *length)
{
    const json_t *member = json_object_get(object, name);

    *length = json_string_length(member) / 2;
    return json_is_string(member) && json_string_length(member) % 2 == 0 && *length <= most &&
           hex_decode(json_string_value(member), *length, bytes);
}

static bool get_number(const json_t *object, const char *name, int64_t *number)
{
    const json_t *member = json_object_get(object, name);

    *number = json_integer_value(member);
    return json_is_integer(member) && *number >= 0;
}

static bool get_flag(const json_t *object, const char *name, bool *flag)
{
    const json_t *member = json_object_get(object, name);

    *flag = json_is_true(member);
    return json_is_boolean(member);
}

/* ---- reading: a key ---- */

static bool get_state(const json_t *object, enum record_state *state)
{
    const char *text = json_string_value(json_object_get(object, "state"));

    for (size_t i = 0; text && i < STATES; i++)
        if (strcmp(states[i], text) == 0) {
            *state = (enum record_state)i;
            return true;
        }
    return false;
}

static bool get_type(const json_t *object, enum hsm_key_type *type)
{
    const char *text = json_string_value(json_object_get(object, "type"));

    for (enum hsm_key_type i = HSM_KEY_NONE; text && i <= HSM_RSA_4096; i++)
        if (strcmp(hsm_key_type_name(i), text) == 0) {
            *type = i;
            return true;
        }
    return false;
}

static bool get_name(const json_t *object, const struct label_scope *scope, struct record_key *key)
{
    return get_text(object, "label", key->name.label, sizeof key->name.label) &&
           label_parse(key->name.label, &key->label) && label_same_scope(&key->label.scope, scope);
}

static bool get_id(const json_t *object, struct hsm_key_name *name)
{
    size_t length;

    if (!get_hex(object, "cka_id", sizeof name->id, name->id, &length) || length == 0)
        return false;
    name->id_length = (uint32_t)length;
    return true;
}

/* OpenSSL's decoder skips blanks and takes stray bits. Only its own spelling is accepted. */
static bool decode_base64(const char *text, uint8_t bytes[BASE64_MAX], size_t *length)
{
    unsigned char again[BASE64_MAX + 1];
    size_t size = strlen(text);
    int got;

    if (size > BASE64_MAX || size % 4 != 0)
        return false;
    got = EVP_DecodeBlock(bytes, (const unsigned char *)text, (int)size);
    if (got < 0)
        return false;
    for (size_t i = size; i > 0 && size - i < 2 && text[i - 1] == '='; i--)
        got--;
    (void)EVP_EncodeBlock(again, bytes, got);
    *length = (size_t)got;
    return strcmp((const char *)again, text) == 0;
}

static bool is_same_pkix(const struct hsm_public_key *key, const uint8_t *pkix, size_t length)
{
    return key->pkix_length == length && memcmp(key->pkix, pkix, length) == 0;
}

/* "" stands for a key of which only the type is known. */
static int get_public_key(const json_t *object, const char *where, struct hsm_public_key *key,
                          struct fault *fault)
{
    const char *text = json_string_value(json_object_get(object, "public_key"));
    uint8_t pkix[BASE64_MAX];
    struct hsm_public_key read;
    size_t length;

    if (text && *text == '\0')
        return 0;
    if (!text || !decode_base64(text, pkix, &length))
        return wrong_member(fault, where, "public_key");
    if (pubkey_from_pkix(pkix, length, &read, fault) != 0)
        return fault->code == FAULT_UNAVAILABLE ? no_memory(fault)
                                                : wrong_member(fault, where, "public_key");
    if (read.type != key->type || !is_same_pkix(&read, pkix, length))
        return wrong_member(fault, where, "public_key");
    *key = read;
    return 0;
}

/* Returns the name of the first wrong member, or NULL. */
static const char *get_members(const json_t *object, const struct label_scope *scope,
                               struct record_key *key)
{
    if (!get_state(object, &key->state))
        return "state";
    if (!get_name(object, scope, key))
        return "label";
    if (!get_id(object, &key->name))
        return "cka_id";
    if (!get_type(object, &key->public_key.type))
        return "type";
    if (!get_flag(object, "made", &key->made))
        return "made";
    if (!get_flag(object, "in_use", &key->in_use))
        return "in_use";
    return get_number(object, "since", &key->since) ? NULL : "since";
}

static int read_key(const json_t *object, size_t index, struct record *record, struct fault *fault)
{
    struct record_key key = {0};
    char where[32];
    const char *wrong = get_members(object, &record->scope, &key);

    (void)snprintf(where, sizeof where, "key %zu", index + 1);
    if (wrong)
        return wrong_member(fault, where, wrong);
    if (get_public_key(object, where, &key.public_key, fault) != 0)
        return -1;
    if (record_find(record, &key.name))
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "is damaged: it has %s twice", where);
    if (key.state == RECORD_SERVED && record_served(record, key.label.key_id))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "is damaged: it has two served keys of the id \"%s\"", key.label.key_id);
    return record_put(record, &key) == 0 ? 0 : no_memory(fault);
}

/* ---- reading: the section ---- */

static int read_keys(const json_t *section, struct record *record, struct fault *fault)
{
    const json_t *keys = json_object_get(section, "keys");
    const json_t *key;
    size_t i;

    if (!json_is_array(keys))
        return wrong_member(fault, "its scope", "keys");
    json_array_foreach (keys, i, key)
        if (read_key(key, i, record, fault) != 0)
            return -1;
    return 0;
}

/* ---- reading: the keys of previous ---- */

static const char *get_previous_members(const json_t *object, struct record_previous *key)
{
    const char *state = json_string_value(json_object_get(object, "state"));
    size_t length;

    if (!state || (strcmp(state, states[RECORD_SERVED]) != 0 && strcmp(state, moved) != 0))
        return "state";
    key->moved = strcmp(state, moved) == 0;
    if (!get_text(object, "id", key->key_id, sizeof key->key_id) || key->key_id[0] == '\0')
        return "id";
    if (!get_text(object, "label", key->name.label, sizeof key->name.label))
        return "label";
    if (!get_hex(object, "cka_id", sizeof key->name.id, key->name.id, &length))
        return "cka_id";
    key->name.id_length = (uint32_t)length;
    if (!get_type(object, &key->public_key.type))
        return "type";
    return get_flag(object, "in_use", &key->in_use) ? NULL : "in_use";
}

static int read_previous_key(const json_t *object, size_t index, struct record *record,
                             struct fault *fault)
{
    struct record_previous key = {.moved = false};
    char where[48];
    const char *wrong = get_previous_members(object, &key);

    (void)snprintf(where, sizeof where, "key %zu of previous", index + 1);
    if (wrong)
        return wrong_member(fault, where, wrong);
    if (get_public_key(object, where, &key.public_key, fault) != 0)
        return -1;
    if (key.public_key.pkix_length == 0)
        return wrong_member(fault, where, "public_key");
    if (previous_find(record, key.key_id))
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "is damaged: it has %s twice", where);
    return previous_add(record, &key) == 0 ? 0 : no_memory(fault);
}

/* Records of versions without `previous` have no such member. */
static int read_previous(const json_t *section, struct record *record, struct fault *fault)
{
    const json_t *keys = json_object_get(section, "previous");
    const json_t *key;
    size_t i;

    if (keys && (!json_is_array(keys) || json_array_size(keys) > RECORD_PREVIOUS_MAX))
        return wrong_member(fault, "its scope", "previous");
    json_array_foreach (keys, i, key)
        if (read_previous_key(key, i, record, fault) != 0)
            return -1;
    return 0;
}

static bool read_maker(const json_t *object, struct record_maker *maker)
{
    int64_t until;
    size_t length;

    if (!get_number(object, "until", &until) || until > UINT32_MAX)
        return false;
    maker->maker.known = true;
    maker->until = (uint32_t)until;
    return get_hex(object, "key", sizeof maker->maker.key, maker->maker.key, &length) &&
           length == sizeof maker->maker.key &&
           get_text(object, "place", maker->place, sizeof maker->place);
}

static int read_makers(const json_t *section, struct record *record, struct fault *fault)
{
    const json_t *makers = json_object_get(section, "makers");
    const json_t *maker;
    size_t i;

    if (!json_is_array(makers))
        return wrong_member(fault, "its scope", "makers");
    json_array_foreach (makers, i, maker) {
        if (i == RECORD_MAKERS)
            break;
        if (!read_maker(maker, &record->makers[i]))
            return wrong_member(fault, "its scope", "makers");
        record->maker_count = i + 1;
    }
    return 0;
}

static int read_section(const json_t *section, struct record *record, struct fault *fault)
{
    const json_t *token = json_object_get(section, "token");

    if (!get_hex(section, "identity", sizeof record->identity, record->identity,
                 &record->identity_length))
        return wrong_member(fault, "its scope", "identity");
    if (!get_number(section, "ran", &record->ran))
        return wrong_member(fault, "its scope", "ran");
    if (!get_text(token, "label", record->token_label, sizeof record->token_label) ||
        !get_text(token, "serial", record->token_serial, sizeof record->token_serial))
        return wrong_member(fault, "its scope", "token");
    if (read_makers(section, record, fault) != 0)
        return -1;
    if (read_keys(section, record, fault) != 0)
        return -1;
    return read_previous(section, record, fault);
}

/* ---- reading: the document ---- */

static int refuse_json(const json_error_t *error, size_t length, struct fault *fault)
{
    switch (json_error_code(error)) {
    case json_error_out_of_memory:
    case json_error_unknown: /* jansson's word for some failures of memory, too */
        return no_memory(fault);
    case json_error_end_of_input_expected:
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "is damaged: something follows its end");
    default:
        if (error->position >= 0 && (size_t)error->position >= length)
            return fault_set(fault, FAULT_FAILED_PRECONDITION, "is damaged: its end is missing");
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "is damaged: line %d is not JSON",
                         error->line);
    }
}

static json_t *load(const char *bytes, size_t length, struct fault *fault)
{
    json_error_t error;
    json_t *document;

    if (length == 0) {
        (void)fault_set(fault, FAULT_FAILED_PRECONDITION, "is empty");
        return NULL;
    }
    if (length > RECORD_BYTES_MAX) {
        (void)fault_set(fault, FAULT_FAILED_PRECONDITION, "is no record: it has more than %d bytes",
                        RECORD_BYTES_MAX);
        return NULL;
    }
    document = json_loadb(bytes, length, JSON_REJECT_DUPLICATES, &error);
    if (!document)
        (void)refuse_json(&error, length, fault);
    return document;
}

/* Takes the digest out of the document: the rest is what it was made of. */
static int check_digest(json_t *document, struct fault *fault)
{
    char written[DIGEST_TEXT + 1];
    char found[DIGEST_TEXT + 1];

    if (!get_text(document, "sha256", written, sizeof written))
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "is damaged: its \"sha256\" is missing");
    (void)json_object_del(document, "sha256");
    if (!digest_of(document, found))
        return no_memory(fault);
    if (strcmp(written, found) != 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "is damaged: its \"sha256\" is not that of its content");
    return 0;
}

static int check_version(const json_t *document, struct fault *fault)
{
    int64_t number;

    if (!get_number(document, "min_reader", &number))
        return wrong_member(fault, "the record", "min_reader");
    if (number > VERSION)
        return fault_set(fault, FAULT_UNIMPLEMENTED,
                         "is of a newer version: its min_reader is %" PRId64
                         ", and this version reads %d",
                         number, VERSION);
    return 0;
}

static int read_document(const json_t *document, struct record *record, bool *known,
                         struct fault *fault)
{
    const json_t *scopes = json_object_get(document, "scopes");
    const json_t *section;
    char name[SCOPE_TEXT + 1];
    int64_t written;

    if (!get_number(document, "written", &written))
        return wrong_member(fault, "the record", "written");
    if (!json_is_object(scopes))
        return wrong_member(fault, "the record", "scopes");
    record->written = (uint64_t)written;
    name_scope(&record->scope, name);
    section = json_object_get(scopes, name);
    *known = section != NULL;
    return section ? read_section(section, record, fault) : 0;
}

static int parse(const char *bytes, size_t length, struct record *record, bool *known,
                 struct fault *fault)
{
    OWNED(free_json) json_t *document = load(bytes, length, fault);

    if (!document)
        return -1;
    if (!json_is_integer(json_object_get(document, "spire_hsm_record")))
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "is no record of spire-hsm");
    if (check_digest(document, fault) != 0 || check_version(document, fault) != 0 ||
        read_document(document, record, known, fault) != 0)
        return -1;
    record->document = json_incref(document);
    return 0;
}

int record_parse(const char *bytes, size_t length, const struct label_scope *scope,
                 struct record *record, bool *known, struct fault *fault)
{
    struct fault why;
    bool has_section = false;

    record_open(scope, record);
    if (parse(bytes, length, record, &has_section, &why) != 0) {
        record_close(record);
        record_open(scope, record);
        if (fault)
            *fault = why;
        return -1;
    }
    *known = has_section;
    return 0;
}

/* ---- whose the record is ---- */

static size_t identity_of(const json_t *section, uint8_t identity[CONFIG_IDENTITY_MAX])
{
    size_t length;

    return get_hex(section, "identity", CONFIG_IDENTITY_MAX, identity, &length) ? length : 0;
}

/* The identity that the sections with this beginning share; 0 if there is none. */
static size_t shared_identity(json_t *scopes, const char *begins,
                              uint8_t identity[CONFIG_IDENTITY_MAX])
{
    uint8_t other[CONFIG_IDENTITY_MAX];
    size_t found = 0;
    const char *name;
    json_t *section;

    json_object_foreach (scopes, name, section) {
        size_t length = identity_of(section, other);

        if (length == 0 || strncmp(name, begins, strlen(begins)) != 0)
            continue;
        if (found > 0 && (length != found || memcmp(other, identity, length) != 0))
            return 0;
        memcpy(identity, other, length);
        found = length;
    }
    return found;
}

size_t record_identity(const struct record *record, uint8_t identity[CONFIG_IDENTITY_MAX])
{
    json_t *scopes = json_object_get(record->document, "scopes");
    size_t length = shared_identity(scopes, record->scope.trust_domain, identity);

    return length > 0 ? length : shared_identity(scopes, "", identity);
}

bool record_is_anothers(const struct record *record, char code[RECORD_CODE + 1])
{
    json_t *scopes = json_object_get(record->document, "scopes");
    const struct label_scope *own = &record->scope;
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char names[SHA256_DIGEST_LENGTH + SCOPE_TEXT + 1] = "";
    const char *name;
    json_t *section;

    json_object_foreach (scopes, name, section) {
        if (strlen(name) == SCOPE_TEXT && strcmp(name + LABEL_HASH, own->server) == 0)
            return false;
        (void)snprintf(names + sizeof digest, SCOPE_TEXT + 1, "%s", name);
        if (!SHA256((const uint8_t *)names, sizeof names, digest))
            return false;
        memcpy(names, digest, sizeof digest);
    }
    name_scope(own, names + sizeof digest);
    if (json_object_size(scopes) == 0 || !SHA256((const uint8_t *)names, sizeof names, digest))
        return false;
    hex_encode(digest, RECORD_CODE / 2, code);
    return true;
}

/* ---- writing ---- */

/* All put_... functions return false when memory is short. */
static bool put(json_t *object, const char *name, json_t *value)
{
    return json_object_set_new(object, name, value) == 0;
}

static bool put_hex(json_t *object, const char *name, const void *bytes, size_t length)
{
    char text[2 * CONFIG_IDENTITY_MAX + 1];

    hex_encode(bytes, length, text);
    return put(object, name, json_string(text));
}

/* A text from a token need not be UTF-8. */
static bool put_text(json_t *object, const char *name, const char *text)
{
    char clean[RECORD_PLACE_MAX];

    utf8_clean(text, false, clean, sizeof clean);
    return put(object, name, json_string(clean));
}

static bool put_public_key(json_t *object, const struct hsm_public_key *key)
{
    unsigned char text[BASE64_MAX + 1] = "";

    if (key->pkix_length > 0)
        (void)EVP_EncodeBlock(text, key->pkix, (int)key->pkix_length);
    return put(object, "public_key", json_string((const char *)text));
}

/* Returns the object that is there, with members of newer versions in it, or a new one. The parent
 * owns it. */
static json_t *object_in(json_t *parent, const char *name)
{
    json_t *there = json_object_get(parent, name);

    if (!json_is_object(there) && !put(parent, name, json_object()))
        return NULL;
    return json_object_get(parent, name);
}

/* A key's name in one word. */
static void word_of(const char *label, const char *id, char word[WORD_MAX])
{
    (void)snprintf(word, WORD_MAX, "%s %s", label, id);
}

/* The objects of an array by the names of their keys: there may be a thousand. The caller owns
 * it. */
static json_t *index_of(json_t *keys)
{
    json_t *index = json_object();
    json_t *object;
    size_t i;

    json_array_foreach (keys, i, object) {
        const char *label = json_string_value(json_object_get(object, "label"));
        const char *id = json_string_value(json_object_get(object, "cka_id"));
        char word[WORD_MAX];

        if (!label || !id || strlen(label) > HSM_LABEL_MAX || strlen(id) > 2 * HSM_ID_MAX)
            continue; /* not written by us */
        word_of(label, id, word);
        if (json_object_set(index, word, object) != 0) {
            json_decref(index);
            return NULL;
        }
    }
    return index;
}

/* As object_in, but through such an index. The caller owns the reference. */
static json_t *object_of(json_t *index, const struct hsm_key_name *name)
{
    char id[2 * HSM_ID_MAX + 1];
    char word[WORD_MAX];
    json_t *object;

    hex_encode(name->id, name->id_length, id);
    word_of(name->label, id, word);
    object = json_object_get(index, word);
    return object ? json_incref(object) : json_object();
}

static json_t *encode_key(json_t *index, const struct record_key *key)
{
    json_t *object = object_of(index, &key->name);

    if (object && put(object, "state", json_string(states[key->state])) &&
        put(object, "label", json_string(key->name.label)) &&
        put_hex(object, "cka_id", key->name.id, key->name.id_length) &&
        put(object, "type", json_string(hsm_key_type_name(key->public_key.type))) &&
        put_public_key(object, &key->public_key) && put(object, "made", json_boolean(key->made)) &&
        put(object, "in_use", json_boolean(key->in_use)) &&
        put(object, "since", json_integer(key->since)))
        return object;
    json_decref(object);
    return NULL;
}

static int compare_keys(const void *a, const void *b)
{
    const struct hsm_key_name *first = &(*(const struct record_key *const *)a)->name;
    const struct hsm_key_name *second = &(*(const struct record_key *const *)b)->name;
    int order = strcmp(first->label, second->label);

    if (order == 0)
        order = (int)first->id_length - (int)second->id_length;
    return order != 0 ? order : memcmp(first->id, second->id, first->id_length);
}

/* Sorted by label, and so by age: equal records give equal texts, and people can read them. */
static const struct record_key **sort_keys(const struct record *record)
{
    const struct record_key **sorted = calloc(record->count + 1, sizeof *sorted);

    if (!sorted)
        return NULL;
    for (size_t i = 0; i < record->count; i++)
        sorted[i] = &record->keys[i];
    qsort(sorted, record->count, sizeof *sorted, compare_keys);
    return sorted;
}

static bool put_keys(json_t *section, const struct record *record)
{
    OWNED(scope_free) const struct record_key **sorted = sort_keys(record);
    OWNED(free_json) json_t *keys = json_array();
    OWNED(free_json) json_t *index = index_of(json_object_get(section, "keys"));

    if (!sorted || !keys || !index)
        return false;
    for (size_t i = 0; i < record->count; i++)
        if (json_array_append_new(keys, encode_key(index, sorted[i])) != 0)
            return false;
    return json_object_set(section, "keys", keys) == 0;
}

static json_t *encode_previous(const struct record_previous *key)
{
    json_t *object = json_object();

    if (object && put(object, "state", json_string(key->moved ? moved : states[RECORD_SERVED])) &&
        put(object, "id", json_string(key->key_id)) &&
        put(object, "label", json_string(key->name.label)) &&
        put_hex(object, "cka_id", key->name.id, key->name.id_length) &&
        put(object, "type", json_string(hsm_key_type_name(key->public_key.type))) &&
        put_public_key(object, &key->public_key) &&
        put(object, "in_use", json_boolean(key->in_use)))
        return object;
    json_decref(object);
    return NULL;
}

static bool put_previous(json_t *section, const struct record *record)
{
    OWNED(free_json) json_t *keys = json_array();

    (void)json_object_del(section, "previous");
    for (size_t i = 0; i < record->previous_count; i++)
        if (json_array_append_new(keys, encode_previous(&record->previous[i])) != 0)
            return false;
    return record->previous_count == 0 || json_object_set(section, "previous", keys) == 0;
}

static bool put_makers(json_t *section, const struct record *record)
{
    OWNED(free_json) json_t *makers = json_array();

    for (size_t i = 0; i < record->maker_count; i++) {
        const struct record_maker *maker = &record->makers[i];
        json_t *object = json_object();

        if (json_array_append_new(makers, object) != 0 ||
            !put_hex(object, "key", maker->maker.key, sizeof maker->maker.key) ||
            !put_text(object, "place", maker->place) ||
            !put(object, "until", json_integer(maker->until)))
            return false;
    }
    return json_object_set(section, "makers", makers) == 0;
}

static bool put_section(json_t *section, const struct record *record)
{
    json_t *token = object_in(section, "token");

    return put_hex(section, "identity", record->identity, record->identity_length) &&
           put(section, "ran", json_integer(record->ran)) &&
           put_text(token, "label", record->token_label) &&
           put_text(token, "serial", record->token_serial) && put_makers(section, record) &&
           put_keys(section, record) && put_previous(section, record);
}

static bool put_document(json_t *document, const struct record *record)
{
    char name[SCOPE_TEXT + 1];
    json_t *section;

    name_scope(&record->scope, name);
    section = object_in(object_in(document, "scopes"), name);
    return put(document, "spire_hsm_record", json_integer(VERSION)) &&
           put(document, "min_reader", json_integer(VERSION)) &&
           put(document, "written", json_integer((json_int_t)record->written + 1)) &&
           put_section(section, record);
}

/* With the digest, which only the text has. */
static char *print(json_t *document)
{
    char digest[DIGEST_TEXT + 1];
    char *text;

    if (!digest_of(document, digest) || !put(document, "sha256", json_string(digest)))
        return NULL;
    text = json_dumps(document, JSON_INDENT(1) | JSON_SORT_KEYS);
    (void)json_object_del(document, "sha256");
    return text;
}

char *record_format(struct record *record, size_t *length)
{
    OWNED(scope_free) char *text = NULL;
    char *line;
    size_t size;

    if (!record->document)
        record->document = json_object();
    if (!put_document(record->document, record) || !(text = print(record->document)))
        return NULL;
    size = strlen(text);
    line = realloc(text, size + 2);
    if (!line)
        return NULL;
    text = NULL; /* it now belongs to the caller */
    line[size] = '\n';
    line[size + 1] = '\0';
    record->written++;
    *length = size + 1;
    return line;
}
