/* What a start does with each key on the token, by the record or without one. Pure. */
#include "plugin/keys/verdict.h"

#include <string.h>

bool verdict_is_public_half(const struct inventory_item *item)
{
    return item->proven && item->state == HSM_HALF;
}

bool verdict_is_half(const struct inventory_item *item)
{
    return item->proven && inventory_is_half(item->state);
}

static bool is_whole(const struct inventory_item *item)
{
    return item->proven && item->state == HSM_COMPLETE;
}

/* ---- by the record ---- */

static bool is_the_same(const struct inventory_item *item, const struct record_key *key)
{
    return is_whole(item) && memcmp(item->public_key.fingerprint, key->public_key.fingerprint,
                                    sizeof key->public_key.fingerprint) == 0;
}

/* May this key replace the one that the record serves, by the record or by its mark? A restored
 * record does not know the keys made after it was saved, in the place before. But once it has
 * served a key in this place, a newer key of the earlier place comes from another process, which
 * goes on there. */
static bool is_successor(struct record *record, const struct record_key *served,
                         const struct inventory_item *item)
{
    const struct record_key *key = record_find(record, &item->name);

    if (!is_whole(item) || (served && item->label.generation <= served->label.generation))
        return false;
    if (key)
        return key->state == RECORD_ATTEMPTED;
    return record_made_here(record, &item->name) ||
           (record->moved && record_knows(record, &item->name));
}

static bool is_back(struct record *record, const struct record_key *served,
                    const struct inventory_item *item)
{
    const struct record_key *key = record_find(record, &item->name);

    return key && key->state == RECORD_MISSING && is_the_same(item, key) &&
           (!served || (record_is_vital(key) && key->in_use && !served->in_use));
}

bool verdict_is_gone(const struct record_key *key, const struct inventory_item *item)
{
    return (item->proven && item->state == HSM_ABSENT) ||
           (is_whole(item) && !is_the_same(item, key));
}

static bool is_served(struct record *record, const struct record_key *served,
                      const struct inventory_item *item)
{
    return served && record_find(record, &item->name) == served && !verdict_is_gone(served, item);
}

typedef bool choice(struct record *record, const struct record_key *served,
                    const struct inventory_item *item);

static struct inventory_item *recorded(struct record *record, struct inventory *inventory,
                                       struct inventory_item *first)
{
    static choice *const choices[] = {is_successor, is_back, is_served};
    const struct record_key *served = record_served(record, first->label.key_id);
    struct inventory_item *item;

    for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++)
        for (item = first; item; item = inventory_next_generation(inventory, item))
            if (choices[i](record, served, item))
                return item;
    return NULL;
}

/* An attempt of an earlier place may still go on there: a record can be copied in the middle of
 * it. */
static bool is_overtaken(const struct record *record, const struct inventory_item *served,
                         const struct inventory_item *item)
{
    return served && is_whole(served) && item->label.generation < served->label.generation &&
           record_made_here(record, &item->name);
}

static enum verdict of_recorded(const struct record *record, const struct record_key *key,
                                const struct inventory_item *served,
                                const struct inventory_item *item)
{
    switch (key->state) {
    case RECORD_CONDEMNED:
        return VERDICT_CONDEMNED;
    case RECORD_SERVED:
        return served && key->made ? VERDICT_CONDEMNED : VERDICT_WAITS;
    case RECORD_ATTEMPTED:
        if (!is_overtaken(record, served, item))
            return VERDICT_WAITS;
        return is_whole(item) ? VERDICT_CONDEMNED : VERDICT_STRAY;
    case RECORD_MISSING: /* it was displaced, and its successor is in use */
    case RECORD_FOUND:
    default:
        return VERDICT_WAITS;
    }
}

/* Older than the key served. A half with the mark of an earlier place may be in the making there,
 * by the process whose record this is a copy of. */
static enum verdict of_unrecorded(struct record *record, const struct inventory_item *item)
{
    if (is_whole(item) && record_knows(record, &item->name))
        return VERDICT_CONDEMNED;
    if (item->proven && !is_whole(item) && record_made_here(record, &item->name))
        return VERDICT_STRAY;
    return VERDICT_WAITS;
}

static enum verdict by_record(struct record *record, const struct inventory_item *served,
                              const struct inventory_item *item)
{
    const struct record_key *key = record_find(record, &item->name);

    if (item == served)
        return is_whole(item) ? VERDICT_SERVE : VERDICT_LIST;
    if (key)
        return of_recorded(record, key, served, item);
    if (served && is_whole(served) && item->label.generation < served->label.generation)
        return of_unrecorded(record, item);
    if (item->state == HSM_COMPLETE && !record_knows(record, &item->name) &&
        (!served || item->label.generation >= served->label.generation))
        return VERDICT_STRANGER;
    return VERDICT_WAITS;
}

/* ---- by the token ---- */

static enum verdict by_token(const struct inventory_item *served, const struct inventory_item *item)
{
    if (!served)
        return VERDICT_WAITS;
    if (item == served)
        return VERDICT_SERVE;
    if (item->label.generation >= served->label.generation)
        return VERDICT_WAITS;
    return verdict_is_public_half(item) ? VERDICT_HALF : VERDICT_OLDER;
}

/* ---- the door ---- */

struct inventory_item *verdict_served(struct record *record, struct inventory *inventory,
                                      struct inventory_item *first)
{
    struct inventory_item *candidate;

    if (record)
        return recorded(record, inventory, first);
    candidate = inventory_candidate(inventory, first);
    return candidate && candidate->proven ? candidate : NULL;
}

enum verdict verdict_of(struct record *record, struct inventory *inventory,
                        struct inventory_item *first, const struct inventory_item *item)
{
    const struct inventory_item *served = verdict_served(record, inventory, first);

    return record ? by_record(record, served, item) : by_token(served, item);
}
