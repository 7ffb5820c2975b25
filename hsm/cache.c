/* Handles of keys by name. Many requests for one key cost one search: the first searches, and the
 * others wait for it. */
#include "hsm/cache.h"

#include <string.h>

void cache_open(struct cache *cache)
{
    memset(cache, 0, sizeof *cache);
    (void)pthread_mutex_init(&cache->lock, NULL);
    (void)pthread_cond_init(&cache->changed, NULL);
}

void cache_close(struct cache *cache)
{
    for (size_t i = 0; i < CACHE_SIZE; i++)
        verifier_release(&cache->entries[i].value.verifier);
    (void)pthread_mutex_destroy(&cache->lock);
    (void)pthread_cond_destroy(&cache->changed);
}

static struct cache_value share(const struct cache_value *value)
{
    return (struct cache_value){value->handle, verifier_share(value->verifier)};
}

static bool is_named(const struct cache_entry *entry, const struct hsm_key_name *name)
{
    return entry->name.id_length == name->id_length &&
           memcmp(entry->name.id, name->id, name->id_length) == 0 &&
           strcmp(entry->name.label, name->label) == 0;
}

static struct cache_entry *find(struct cache *cache, const struct cache_key *key)
{
    for (size_t i = 0; i < CACHE_SIZE; i++) {
        struct cache_entry *entry = &cache->entries[i];

        if (entry->state != CACHE_EMPTY &&
            memcmp(entry->fingerprint, key->fingerprint, HSM_FINGERPRINT) == 0 &&
            is_named(entry, key->name))
            return entry;
    }
    return NULL;
}

/* An empty place, else the one unused for the longest time. NULL if all of them are being looked
 * up. */
static struct cache_entry *make_room(struct cache *cache)
{
    struct cache_entry *oldest = NULL;

    for (size_t i = 0; i < CACHE_SIZE; i++) {
        struct cache_entry *entry = &cache->entries[i];

        if (entry->state == CACHE_EMPTY)
            return entry;
        if (entry->state == CACHE_KNOWN && entry->waiting == 0 &&
            (!oldest || entry->used < oldest->used))
            oldest = entry;
    }
    return oldest;
}

static struct cache_entry *add(struct cache *cache, const struct cache_key *key)
{
    struct cache_entry *entry = make_room(cache);

    if (!entry)
        return NULL;
    entry->state = CACHE_EMPTY;
    entry->waiting = 0;
    entry->used = ++cache->clock;
    entry->name = *key->name;
    memcpy(entry->fingerprint, key->fingerprint, HSM_FINGERPRINT);
    return entry;
}

/* Waits for the thread that looks the key up. If the look-up fails, the last waiter empties the
 * entry, so that the next request looks again. A request that began after a later login must look
 * too: since that login the handle may name another key. */
static enum cache_answer wait_for(struct cache *cache, struct cache_entry *entry,
                                  const struct cache_key *key, struct cache_value *value,
                                  struct fault *fault)
{
    enum cache_answer answer = CACHE_HIT;

    entry->waiting++;
    while (entry->state == CACHE_SEARCHING)
        (void)pthread_cond_wait(&cache->changed, &cache->lock);
    entry->waiting--;
    if (entry->state == CACHE_FAILED) {
        *fault = entry->fault;
        answer = CACHE_FAULT;
    }
    if (entry->state == CACHE_FAILED && entry->waiting == 0)
        entry->state = CACHE_EMPTY;
    if (answer == CACHE_HIT && entry->logins != key->logins) {
        entry->state = CACHE_SEARCHING;
        answer = CACHE_LOOK;
    }
    if (answer == CACHE_HIT)
        *value = share(&entry->value);
    return answer;
}

static enum cache_answer get(struct cache *cache, const struct cache_key *key,
                             struct cache_value *value, struct fault *fault)
{
    struct cache_entry *entry = find(cache, key);

    if (entry && entry->state != CACHE_KNOWN)
        return wait_for(cache, entry, key, value, fault);
    if (entry && entry->logins == key->logins) {
        entry->used = ++cache->clock;
        *value = share(&entry->value);
        return CACHE_HIT;
    }
    if (!entry)
        entry = add(cache, key);
    if (entry)
        entry->state = CACHE_SEARCHING;
    return CACHE_LOOK;
}

enum cache_answer cache_get(struct cache *cache, const struct cache_key *key,
                            struct cache_value *value, struct fault *fault)
{
    enum cache_answer answer;

    (void)pthread_mutex_lock(&cache->lock);
    answer = get(cache, key, value, fault);
    (void)pthread_mutex_unlock(&cache->lock);
    return answer;
}

void cache_found(struct cache *cache, const struct cache_key *key, const struct cache_value *value)
{
    struct cache_entry *entry;

    (void)pthread_mutex_lock(&cache->lock);
    entry = find(cache, key);
    if (!entry)
        entry = add(cache, key);
    if (entry && entry->state != CACHE_FAILED) {
        entry->state = CACHE_KNOWN;
        entry->logins = key->logins;
        verifier_release(&entry->value.verifier);
        entry->value = share(value);
        (void)pthread_cond_broadcast(&cache->changed);
    }
    (void)pthread_mutex_unlock(&cache->lock);
}

void cache_failed(struct cache *cache, const struct cache_key *key, const struct fault *fault)
{
    struct cache_entry *entry;

    (void)pthread_mutex_lock(&cache->lock);
    entry = find(cache, key);
    if (entry && entry->state == CACHE_SEARCHING) {
        entry->state = entry->waiting > 0 ? CACHE_FAILED : CACHE_EMPTY;
        entry->fault = *fault;
        (void)pthread_cond_broadcast(&cache->changed);
    }
    (void)pthread_mutex_unlock(&cache->lock);
}

/* An entry that is being looked up stays: its search has only begun and is not out of date. */
void cache_forget(struct cache *cache, const struct hsm_key_name *name, CK_OBJECT_HANDLE handle)
{
    (void)pthread_mutex_lock(&cache->lock);
    for (size_t i = 0; i < CACHE_SIZE; i++) {
        struct cache_entry *entry = &cache->entries[i];

        if (entry->state == CACHE_KNOWN && entry->waiting == 0 &&
            (handle == HANDLE_NONE || entry->value.handle == handle) && is_named(entry, name))
            entry->state = CACHE_EMPTY;
    }
    (void)pthread_mutex_unlock(&cache->lock);
}
