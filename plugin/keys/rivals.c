/* Keys made under our identity by another process: found by walking over the token in slices,
 * beside the signatures. */
#include "plugin/keys/rivals.h"

#include "hsm/base/clock.h"
#include "plugin/report/log.h"
#include "plugin/report/metrics.h"

enum { SLICE_MS = 200 };

static const int64_t census_interval = 3600 * CLOCK_SECOND;
static const int64_t slice_limit = 300 * CLOCK_SECOND; /* for slow tokens */
static const int64_t slice_pause = 200 * CLOCK_MILLISECOND;
static const int64_t retry_pause = 60 * CLOCK_SECOND;

void rivals_open(struct rivals *rivals, const struct label_scope *scope)
{
    *rivals = (struct rivals){.scope = scope, .next = CLOCK_NEVER};
    (void)pthread_mutex_init(&rivals->mutex, NULL);
}

void rivals_close(struct rivals *rivals)
{
    inventory_clear(&rivals->found);
    (void)pthread_mutex_destroy(&rivals->mutex);
}

void rivals_begin(struct rivals *rivals, struct supervisor *supervisor)
{
    (void)pthread_mutex_lock(&rivals->mutex);
    rivals->supervisor = supervisor;
    rivals->next = clock_now();
    (void)pthread_mutex_unlock(&rivals->mutex);
}

/* ---- strangers ---- */

static const struct inventory_item *newest_stranger(struct record *record,
                                                    const struct inventory *inventory)
{
    const struct inventory_item *newest = NULL;

    for (size_t i = 0; i < inventory->count; i++) {
        const struct inventory_item *item = &inventory->items[i];

        if (!record_find(record, &item->name) && !record_knows(record, &item->name) &&
            (!newest || item->label.generation > newest->label.generation))
            newest = item;
    }
    return newest;
}

static void tell(const struct inventory_item *stranger)
{
    log_write(LOG_ERROR,
              "two servers share one identity: another process makes keys in this server's name; "
              "no key older than its newest is destroyed. Give each server a key identifier of its "
              "own",
              "key_id", stranger->label.key_id, "label", stranger->name.label, NULL);
}

void rivals_saw(struct rivals *rivals, const struct rivals_walk *walk)
{
    const struct inventory_item *stranger =
        newest_stranger(scribe_edit(rivals->scribe), walk->inventory);
    bool is_new;

    scribe_leave(rivals->scribe);
    metrics_set(METRIC_OBJECTS, "ours", NULL, walk->ours);
    metrics_set(METRIC_OBJECTS, "others", NULL, walk->others);
    (void)pthread_mutex_lock(&rivals->mutex);
    rivals->taken = walk->begun;
    rivals->newest = stranger ? stranger->label.generation : 0;
    is_new = rivals->newest > rivals->told;
    if (is_new)
        rivals->told = rivals->newest;
    (void)pthread_mutex_unlock(&rivals->mutex);
    if (is_new)
        tell(stranger);
}

/* With the mutex held. */
static bool is_fresh(const struct rivals *rivals, int64_t now)
{
    return rivals->taken != 0 && now - rivals->taken < census_interval;
}

bool rivals_allow(struct rivals *rivals, uint32_t generation)
{
    bool allowed;

    (void)pthread_mutex_lock(&rivals->mutex);
    allowed = is_fresh(rivals, clock_now());
    rivals->wanted = rivals->wanted || !allowed;
    allowed = allowed && rivals->newest <= generation;
    (void)pthread_mutex_unlock(&rivals->mutex);
    return allowed;
}

/* ---- the census ---- */

/* Only one slice runs at a time, so its counters need no lock. */
static void counted_item(void *context, const struct hsm_item *item)
{
    struct rivals *rivals = context;

    if (item)
        inventory_add(&rivals->found, rivals->scope, item);
    else
        rivals->spoilt = true;
}

static void begin_anew(struct rivals *rivals)
{
    inventory_clear(&rivals->found);
    rivals->from = (struct hsm_place){0};
    rivals->ours = 0;
    rivals->others = 0;
}

/* With the mutex held. Another worker, or a new login, has changed the meaning of handles: then the
 * walk begins again. */
static void go_on(struct rivals *rivals, const struct hsm_place *next)
{
    if (rivals->spoilt || (rivals->from.epoch != 0 && rivals->from.epoch != next->epoch))
        begin_anew(rivals);
    else
        rivals->from = *next;
    rivals->next = clock_now() + slice_pause;
}

static void conclude(struct rivals *rivals, bool whole)
{
    begin_anew(rivals);
    rivals->wanted = rivals->wanted && !whole;
    rivals->next = clock_now() + (whole ? census_interval : retry_pause);
}

static void counted(void *context, const struct hsm_reply *reply)
{
    struct rivals *rivals = context;
    bool sound = reply->fault.code == FAULT_NONE && !rivals->found.out_of_memory;
    bool more = sound && (rivals->spoilt || reply->next.epoch != 0);

    rivals->ours += reply->items;
    rivals->others += reply->foreign + reply->nameless;
    if (sound && !more)
        rivals_saw(rivals, &(struct rivals_walk){.inventory = &rivals->found,
                                                 .ours = rivals->ours,
                                                 .others = rivals->others,
                                                 .begun = rivals->begun});
    (void)pthread_mutex_lock(&rivals->mutex);
    rivals->out = false;
    if (more)
        go_on(rivals, &reply->next);
    else
        conclude(rivals, sound);
    (void)pthread_mutex_unlock(&rivals->mutex);
}

static bool is_under_way(const struct rivals *rivals)
{
    return rivals->from.epoch != 0;
}

static bool begins(struct rivals *rivals, int64_t now)
{
    bool begins;

    (void)pthread_mutex_lock(&rivals->mutex);
    begins = !rivals->out && now >= rivals->next &&
             (is_under_way(rivals) || rivals->wanted || !is_fresh(rivals, now));
    rivals->out = rivals->out || begins;
    if (begins && !is_under_way(rivals))
        rivals->begun = now;
    if (begins)
        rivals->spoilt = false;
    (void)pthread_mutex_unlock(&rivals->mutex);
    return begins;
}

void rivals_tick(struct rivals *rivals)
{
    struct hsm_request request = {.op = HSM_SCAN, .sliced = true, .limit_ms = SLICE_MS};
    int64_t now = clock_now();

    if (!begins(rivals, now))
        return;
    request.from = rivals->from;
    label_prefix(rivals->scope, request.prefix);
    supervisor_submit(rivals->supervisor,
                      &(struct supervisor_request){.request = &request,
                                                   .deadline = now + slice_limit,
                                                   .done = counted,
                                                   .item = counted_item,
                                                   .context = rivals});
}
