/* The record in memory: which keys are served, attempted, condemned, and which have moved. Pure;
 * scribe.c writes it. */
#include "plugin/keys/record.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <openssl/sha.h>

#include "hsm/base/hex.h"
#include "hsm/base/utf8.h"
#include "plugin/keys/previous.h"

/* Families of keys without which agents end. A server has JWT keys, too, which SPIRE replaces. An
 * agent has SVID keys only. The slot, A or B, follows. */
static const char *const families[] = {"x509-CA-", "agent-svid-"};

void record_open(const struct label_scope *scope, struct record *record)
{
    *record = (struct record){.scope = *scope};
}

void record_close(struct record *record)
{
    free(record->keys);
    free(record->previous);
    json_decref(record->document);
    record_open(&(struct label_scope){.server = ""}, record);
}

/* ---- looking ---- */

static bool same_name(const struct hsm_key_name *a, const struct hsm_key_name *b)
{
    return a->id_length == b->id_length && memcmp(a->id, b->id, a->id_length) == 0 &&
           strcmp(a->label, b->label) == 0;
}

struct record_key *record_find(struct record *record, const struct hsm_key_name *name)
{
    for (size_t i = 0; i < record->count; i++)
        if (same_name(&record->keys[i].name, name))
            return &record->keys[i];
    return NULL;
}

static bool is_served(const struct record_key *key, const char *key_id)
{
    return key->state == RECORD_SERVED && strcmp(key->label.key_id, key_id) == 0;
}

struct record_key *record_served(struct record *record, const char *key_id)
{
    for (size_t i = 0; i < record->count; i++)
        if (is_served(&record->keys[i], key_id))
            return &record->keys[i];
    return NULL;
}

static bool is_of(const struct record_maker *maker, const struct hsm_key_name *name)
{
    struct label label;

    return maker->until == 0 ||
           (label_parse(name->label, &label) && label.generation <= maker->until);
}

bool record_knows(struct record *record, const struct hsm_key_name *name)
{
    const struct record_key *key = record_find(record, name);

    if (key && key->state != RECORD_FOUND)
        return true;
    for (size_t i = 0; i < record->maker_count; i++)
        if (label_made_by(&record->makers[i].maker, name))
            return is_of(&record->makers[i], name);
    return false;
}

bool record_made_here(const struct record *record, const struct hsm_key_name *name)
{
    return record->maker_count > 0 && label_made_by(&record->makers[0].maker, name);
}

const char *record_family(const char *key_id)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        if (strncmp(key_id, families[i], strlen(families[i])) == 0)
            return families[i];
    return NULL;
}

static const char *family_of(const struct record_key *key)
{
    return record_family(key->label.key_id);
}

bool record_is_vital(const struct record_key *key)
{
    return family_of(key) != NULL;
}

/* Only SERVED keys count. A key that was condemned while it signed may have been condemned wrongly,
 * and one needed key too many costs less than one too few. */
static uint32_t last_in_use(const struct record *record, const char *family)
{
    uint32_t last = 0;

    for (size_t i = 0; i < record->count; i++) {
        const struct record_key *key = &record->keys[i];

        if (key->state == RECORD_SERVED && key->in_use && family_of(key) == family &&
            key->label.generation > last)
            last = key->label.generation;
    }
    return last;
}

bool record_is_needed(const struct record *record, const struct record_key *key)
{
    const char *family = family_of(key);

    return key->state == RECORD_SERVED && family &&
           key->label.generation >= last_in_use(record, family);
}

/* ---- what is missing ---- */

static int compare_names(const struct hsm_key_name *a, const struct hsm_key_name *b)
{
    int order = strcmp(a->label, b->label);

    if (order == 0)
        order = (int)a->id_length - (int)b->id_length;
    return order != 0 ? order : memcmp(a->id, b->id, a->id_length);
}

/* The missing key with the next name after `last`: an order that needs no memory. */
static const struct record_key *next_missing(const struct record *record,
                                             const struct record_key *last, record_test *is_missing,
                                             void *context)
{
    const struct record_key *next = NULL;

    for (size_t i = 0; i < record->count; i++) {
        const struct record_key *key = &record->keys[i];

        if (key->state == RECORD_SERVED && (!last || compare_names(&key->name, &last->name) > 0) &&
            (!next || compare_names(&key->name, &next->name) < 0) && is_missing(context, key))
            next = key;
    }
    return next;
}

/* digest = SHA-256 (digest, label, NUL, id) */
static bool add_name(const struct hsm_key_name *name, uint8_t digest[SHA256_DIGEST_LENGTH])
{
    uint8_t text[SHA256_DIGEST_LENGTH + sizeof *name];
    size_t label = strlen(name->label) + 1;
    uint8_t *end = text + SHA256_DIGEST_LENGTH;

    memcpy(text, digest, SHA256_DIGEST_LENGTH);
    memcpy(end, name->label, label);
    memcpy(end + label, name->id, name->id_length);
    end += label + name->id_length;
    return SHA256(text, (size_t)(end - text), digest) != NULL;
}

/* In the order of the array, which the file keeps. */
static bool add_previous(const struct record *record, uint8_t digest[SHA256_DIGEST_LENGTH])
{
    for (size_t i = 0; i < record->previous_count; i++) {
        const struct record_previous *key = &record->previous[i];
        struct hsm_key_name name = {.id_length = HSM_ID_MAX};

        if (!previous_is_needed(record, key))
            continue;
        memcpy(name.label, key->key_id, sizeof key->key_id);
        memcpy(name.id, key->public_key.fingerprint, HSM_ID_MAX);
        if (!add_name(&name, digest))
            return false;
    }
    return true;
}

void record_loss_code(const struct record *record, record_test *is_missing, void *context,
                      bool no_previous, char code[RECORD_CODE + 1])
{
    uint8_t digest[SHA256_DIGEST_LENGTH] = {0};
    const struct record_key *key = NULL;
    bool done = true;

    while (done && (key = next_missing(record, key, is_missing, context)))
        done = add_name(&key->name, digest);
    if (done && no_previous)
        done = add_previous(record, digest);
    memset(code, '-', RECORD_CODE);
    code[RECORD_CODE] = '\0';
    if (done)
        hex_encode(digest, RECORD_CODE / 2, code);
}

/* ---- changing ---- */

static int reserve(struct record *record)
{
    size_t room = record->room > 0 ? 2 * record->room : 16;
    struct record_key *keys;

    if (record->count < record->room)
        return 0;
    keys = reallocarray(record->keys, room, sizeof *keys);
    if (!keys)
        return -1;
    record->keys = keys;
    record->room = room;
    return 0;
}

static void remove_key(struct record *record, struct record_key *key)
{
    struct record_key *last = &record->keys[record->count - 1];

    if (key != last)
        *key = *last;
    record->count--;
}

/* Forgets the oldest, but never `kept`, which was put just now. */
static void forget_oldest(struct record *record, enum record_state state, size_t most,
                          const struct hsm_key_name *kept)
{
    struct record_key *oldest = NULL;
    size_t count = 0;

    for (size_t i = 0; i < record->count; i++) {
        struct record_key *key = &record->keys[i];

        if (key->state != state)
            continue;
        count++;
        if ((!oldest || key->label.generation < oldest->label.generation) &&
            !same_name(&key->name, kept))
            oldest = key;
    }
    if (count > most && oldest)
        remove_key(record, oldest);
}

int record_put(struct record *record, const struct record_key *key)
{
    static const struct {
        enum record_state state;
        size_t most;
    } bounds[] = {{RECORD_MISSING, RECORD_MISSING_MAX},
                  {RECORD_CONDEMNED, RECORD_CONDEMNED_MAX},
                  {RECORD_ATTEMPTED, RECORD_ATTEMPTED_MAX},
                  {RECORD_FOUND, RECORD_FOUND_MAX}};
    struct record_key *there = record_find(record, &key->name);

    if (!there && reserve(record) != 0)
        return -1;
    if (!there)
        there = &record->keys[record->count++];
    *there = *key;
    for (size_t i = 0; i < sizeof bounds / sizeof bounds[0]; i++)
        forget_oldest(record, bounds[i].state, bounds[i].most, &key->name);
    return 0;
}

void record_remove(struct record *record, const struct hsm_key_name *name)
{
    struct record_key *key = record_find(record, name);

    if (key)
        remove_key(record, key);
}

static void retire(struct record_key *key, bool lost, int64_t ran)
{
    if (lost)
        key->state = RECORD_MISSING;
    else
        key->state = key->made ? RECORD_CONDEMNED : RECORD_FOUND;
    key->since = key->state == RECORD_CONDEMNED ? ran : 0;
}

/* SPIRE has gone on with a key in their place: they are displaced for good. */
static void pass_over_missing(struct record *record, const char *key_id)
{
    for (size_t i = 0; i < record->count; i++)
        if (record->keys[i].state == RECORD_MISSING &&
            strcmp(record->keys[i].label.key_id, key_id) == 0)
            record->keys[i].in_use = false;
}

int record_serve(struct record *record, const struct record_key *key, bool lost, int64_t ran)
{
    struct record_key served = *key; /* `key` may point into the record's array, which moves */
    struct record_key *old;

    if (reserve(record) != 0)
        return -1;
    old = record_served(record, served.label.key_id);
    if (old && old->in_use)
        pass_over_missing(record, served.label.key_id);
    if (old)
        retire(old, lost, ran); /* and is overwritten here, if it is the same key again */
    served.state = RECORD_SERVED;
    served.since = 0;
    return record_put(record, &served);
}

/* A copy of nothing is NULL. */
static void *copy_of(const void *from, size_t count, size_t size)
{
    void *made = count > 0 ? reallocarray(NULL, count, size) : NULL;

    if (made)
        memcpy(made, from, count * size);
    return made;
}

int record_copy(const struct record *from, struct record *to)
{
    struct record made = *from;

    made.document = NULL;
    made.room = from->count;
    made.keys = copy_of(from->keys, from->count, sizeof *made.keys);
    made.previous = copy_of(from->previous, from->previous_count, sizeof *made.previous);
    if ((from->count > 0 && !made.keys) || (from->previous_count > 0 && !made.previous)) {
        free(made.keys);
        free(made.previous);
        return -1;
    }
    *to = made;
    return 0;
}

static uint32_t highest(const struct record *record)
{
    uint32_t found = 0;

    for (size_t i = 0; i < record->count; i++)
        if (record->keys[i].label.generation > found)
            found = record->keys[i].label.generation;
    return found;
}

/* The range ends at the highest generation, which may be ahead of the clock. */
static void close_place(const struct record *record, struct record_maker *maker, uint32_t now)
{
    maker->until = highest(record) > 0 ? highest(record) : 1;
    if (maker->until < now)
        maker->until = now;
}

/* The place is later compared with what was read back, so it is kept in the form in which it is
 * written. */
bool record_take_place(struct record *record, const char *place, const uint8_t random[32],
                       uint32_t now)
{
    struct record_maker made = {.maker = {.known = true}};

    utf8_clean(place, false, made.place, sizeof made.place);
    if (record->maker_count > 0 && strcmp(record->makers[0].place, made.place) == 0)
        return false;
    if (record->maker_count > 0)
        close_place(record, &record->makers[0], now);
    memcpy(made.maker.key, random, sizeof made.maker.key);
    if (record->maker_count < RECORD_MAKERS)
        record->maker_count++;
    memmove(record->makers + 1, record->makers, (record->maker_count - 1) * sizeof made);
    record->makers[0] = made;
    record->moved = true;
    return true;
}

void record_settle_makers(struct record *record)
{
    uint32_t most = highest(record) > 0 ? highest(record) : 1; /* 0: the range is open */

    record->moved = false;
    for (size_t i = 1; i < record->maker_count; i++)
        if (record->makers[i].until > most)
            record->makers[i].until = most;
}
