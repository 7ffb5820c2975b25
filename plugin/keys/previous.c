/* Which keys of `previous` are served from there, by the record: pure rules, used by the start and
 * by the commands. */
#include "plugin/keys/previous.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/sha.h>

#include "hsm/base/hex.h"

struct record_previous *previous_find(const struct record *record, const char *key_id)
{
    for (size_t i = 0; i < record->previous_count; i++)
        if (strcmp(record->previous[i].key_id, key_id) == 0)
            return &record->previous[i];
    return NULL;
}

bool previous_serves(const struct record *record, const char *key_id)
{
    const struct record_previous *key = previous_find(record, key_id);

    return key && !key->moved;
}

size_t previous_left(const struct record *record)
{
    size_t left = 0;

    for (size_t i = 0; i < record->previous_count; i++)
        left += !record->previous[i].moved;
    return left;
}

bool previous_move(struct record *record, const char *key_id)
{
    struct record_previous *key = previous_find(record, key_id);
    bool moves = key && !key->moved;

    if (moves)
        key->moved = true;
    return moves;
}

/* ---- what is needed ---- */

static bool token_has_in_use(const struct record *record, const char *family)
{
    for (size_t i = 0; i < record->count; i++) {
        const struct record_key *key = &record->keys[i];

        if (key->state == RECORD_SERVED && key->in_use &&
            record_family(key->label.key_id) == family)
            return true;
    }
    return false;
}

static bool previous_has_in_use(const struct record *record, const char *family)
{
    for (size_t i = 0; i < record->previous_count; i++) {
        const struct record_previous *key = &record->previous[i];

        if (!key->moved && key->in_use && record_family(key->key_id) == family)
            return true;
    }
    return false;
}

bool previous_is_needed(const struct record *record, const struct record_previous *key)
{
    const char *family = record_family(key->key_id);

    return !key->moved && family && (key->in_use || !previous_has_in_use(record, family)) &&
           !token_has_in_use(record, family);
}

/* ---- what a start finds ---- */

static bool is_known(const struct record *record, const struct record_previous *shown)
{
    const struct record_previous *key = previous_find(record, shown->key_id);

    return key && memcmp(key->public_key.fingerprint, shown->public_key.fingerprint,
                         sizeof key->public_key.fingerprint) == 0;
}

static const struct record_key *served_in_use(const struct record *record, const char *key_id)
{
    for (size_t i = 0; i < record->count; i++) {
        const struct record_key *key = &record->keys[i];

        if (key->state == RECORD_SERVED && key->in_use && record_is_vital(key) &&
            strcmp(key->label.key_id, key_id) == 0)
            return key;
    }
    return NULL;
}

enum previous_verdict previous_verdict(const struct record *record,
                                       const struct record_previous *shown, size_t count,
                                       const struct record_key **taken)
{
    size_t known = 0;

    *taken = NULL;
    for (size_t i = 0; i < count; i++) {
        known += is_known(record, &shown[i]);
        if (!*taken && record->previous_count > 0)
            *taken = served_in_use(record, shown[i].key_id);
    }
    if (known == count)
        return PREVIOUS_KNOWN;
    return *taken ? PREVIOUS_REFUSE : PREVIOUS_ADOPT;
}

void previous_code(const struct record_previous *shown, size_t count, char code[RECORD_CODE + 1])
{
    uint8_t text[2 * SHA256_DIGEST_LENGTH] = {0};

    _Static_assert(HSM_FINGERPRINT == SHA256_DIGEST_LENGTH, "both halves of the text");
    for (size_t i = 0; i < count; i++) {
        memcpy(text + SHA256_DIGEST_LENGTH, shown[i].public_key.fingerprint, HSM_FINGERPRINT);
        (void)SHA256(text, sizeof text, text);
    }
    hex_encode(text, RECORD_CODE / 2, code);
}

/* ---- changing ---- */

int previous_add(struct record *record, const struct record_previous *key)
{
    struct record_previous *keys =
        reallocarray(record->previous, record->previous_count + 1, sizeof *keys);

    if (!keys)
        return -1;
    record->previous = keys;
    keys[record->previous_count++] = *key;
    return 0;
}

void previous_forget(struct record *record)
{
    free(record->previous);
    record->previous = NULL;
    record->previous_count = 0;
}

int previous_adopt(struct record *record, const struct record_previous *shown, size_t count)
{
    struct record_previous *keys = reallocarray(NULL, count + 1, sizeof *keys);

    if (!keys)
        return -1;
    memcpy(keys, shown, count * sizeof *keys);
    previous_forget(record);
    record->previous = keys;
    record->previous_count = count;
    for (size_t i = 0; i < record->count; i++) {
        struct record_key *key = &record->keys[i];

        if (key->state != RECORD_CONDEMNED && previous_find(record, key->label.key_id))
            key->state = RECORD_FOUND;
    }
    return 0;
}
