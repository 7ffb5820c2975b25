/* Requests that have failed or crashed a worker: how long each waits before it is sent again, and
 * whether alone. */
#include "plugin/worker/patience.h"

#include <stdio.h>

#include "hsm/base/clock.h"

static const int64_t last_chance = 900 * CLOCK_MILLISECOND; /* before a deadline */
static const int64_t well_for = CLOCK_SECOND;
static const int64_t fresh_first = CLOCK_SECOND;
static const int64_t fresh_most = 60 * CLOCK_SECOND;
static const int64_t over_after = 60 * CLOCK_SECOND;

/* Doubles `first` this many times, up to `most`. */
static int64_t doubled(int64_t first, unsigned times, int64_t most)
{
    while (times-- > 0 && first < most)
        first *= 2;
    return first < most ? first : most;
}

static int64_t lesser(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t greater(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- suspects ---- */

struct suspect *patience_find(struct patience *patience, uint64_t subject)
{
    for (size_t i = 0; i < patience->count; i++)
        if (patience->suspects[i].subject == subject)
            return &patience->suspects[i];
    return NULL;
}

static struct suspect *free_place(struct patience *patience)
{
    struct suspect *oldest = &patience->suspects[0];

    if (patience->count < SUSPECTS_MAX)
        return &patience->suspects[patience->count++];
    for (size_t i = 1; i < SUSPECTS_MAX; i++)
        if (patience->suspects[i].struck < oldest->struck)
            oldest = &patience->suspects[i];
    return oldest;
}

static struct suspect *strike(struct patience *patience, uint64_t subject, int64_t now)
{
    struct suspect *suspect = patience_find(patience, subject);

    if (!suspect) {
        suspect = free_place(patience);
        *suspect = (struct suspect){.subject = subject, .since = now, .fresh_after = fresh_first};
    }
    suspect->strikes++;
    suspect->struck = now;
    return suspect;
}

/* ---- what happened ---- */

void patience_born(struct patience *patience, int64_t now)
{
    patience->born = now;
    patience->fresh = false;
    patience->for_one = false;
}

static void wish(struct patience *patience, bool for_one, int64_t now)
{
    if (!patience->fresh)
        patience->wished = now;
    patience->fresh = true;
    patience->for_one = patience->for_one || for_one;
}

void patience_wish(struct patience *patience, int64_t now)
{
    wish(patience, true, now);
}

void patience_well(struct patience *patience, uint64_t subject, int64_t now)
{
    struct suspect *suspect = patience_find(patience, subject);

    patience->well_at = now;
    patience->fresh = patience->fresh && patience->for_one;
    if (suspect)
        *suspect = patience->suspects[--patience->count];
}

void patience_fault(struct patience *patience, uint64_t subject, int64_t sent,
                    const struct fault *fault, int64_t now)
{
    struct suspect *suspect = patience_find(patience, subject);
    int64_t failing;

    if (!suspect || sent > suspect->struck) {
        suspect = strike(patience, subject, now);
        suspect->not_before = now + patience_pause(suspect->strikes);
        suspect->reason = *fault;
    }
    failing = now - suspect->since;
    if (patience->well_at <= patience->born || now - patience->well_at >= well_for) {
        wish(patience, false, now);
    } else if (failing >= suspect->fresh_after) {
        suspect->fresh_after = failing + lesser(greater(failing, fresh_first), fresh_most);
        wish(patience, true, now);
    }
}

static void blame(struct patience *patience, uint64_t subject, int64_t now)
{
    struct suspect *suspect = strike(patience, subject, now);
    unsigned doublings = suspect->strikes > 2 ? suspect->strikes - 2 : 0;

    suspect->deaths++;
    suspect->not_before = now;
    if (suspect->strikes > 1)
        suspect->not_before += doubled(CLOCK_SECOND / 2, doublings, 4 * CLOCK_SECOND);
    if (suspect->deaths == 1)
        (void)fault_set(&suspect->reason, FAULT_UNAVAILABLE,
                        "a PKCS#11 worker ended while executing it");
    else
        (void)fault_set(&suspect->reason, FAULT_UNAVAILABLE,
                        "%u PKCS#11 workers in a row ended while executing it", suspect->deaths);
}

void patience_death(struct patience *patience, const uint64_t *subjects, size_t count, int64_t now)
{
    bool known = false;

    for (size_t i = 0; i < count; i++)
        known = known || patience_find(patience, subjects[i]);
    for (size_t i = 0; i < count; i++) {
        const struct suspect *suspect = patience_find(patience, subjects[i]);

        if (suspect ? suspect->struck != now : !known)
            blame(patience, subjects[i], now);
    }
}

void patience_hang(struct patience *patience, uint64_t subject, int64_t now)
{
    struct suspect *suspect = patience_find(patience, subject);

    if (suspect && suspect->struck == now) /* another thread executed the same key at that moment */
        return;
    suspect = strike(patience, subject, now);
    suspect->hangs++;
    suspect->not_before = now + doubled(CLOCK_SECOND, suspect->hangs - 1, 8 * CLOCK_SECOND);
    (void)fault_set(&suspect->reason, FAULT_UNAVAILABLE,
                    "the PKCS#11 module hangs in it; its worker was ended");
}

/* ---- what follows ---- */

int64_t patience_pause(unsigned faults)
{
    return faults == 0 ? 0 : doubled(50 * CLOCK_MILLISECOND, faults - 1, 2 * CLOCK_SECOND);
}

/* A probe may end the worker or occupy a thread for long, so probes are kept apart. */
static int64_t least_pause(const struct suspect *suspect)
{
    if (suspect && suspect->hangs > 0)
        return 2 * CLOCK_SECOND;
    return suspect && suspect->deaths > 1 ? CLOCK_SECOND : CLOCK_SECOND / 10;
}

int64_t patience_due(const struct patience *patience, const struct suspect *suspect,
                     int64_t not_before, int64_t failed, int64_t deadline)
{
    if (suspect && suspect->deaths > 0)
        not_before = greater(not_before, patience->spare);
    if (suspect) {
        not_before = greater(not_before, suspect->not_before);
        failed = greater(failed, suspect->struck);
    }
    return lesser(not_before, greater(deadline - last_chance, failed + least_pause(suspect)));
}

bool patience_admits(const struct patience *patience, const struct suspect *suspect,
                     unsigned threads)
{
    unsigned half = threads > 1 ? threads / 2 : 1;
    unsigned deadly = 0;
    unsigned hanging = 0;

    for (size_t i = 0; i < patience->count; i++) {
        deadly += patience->suspects[i].deaths > 0 ? patience->suspects[i].out : 0;
        hanging += patience->suspects[i].hangs > 0 ? patience->suspects[i].out : 0;
    }
    return suspect->out == 0 && !(suspect->deaths > 0 && deadly > 0) &&
           !(suspect->hangs > 0 && hanging >= half);
}

bool patience_alone(const struct patience *patience, const struct suspect *suspect)
{
    return patience->well_at > suspect->since;
}

bool patience_is_over(const struct patience *patience, const struct suspect *suspect, int64_t now)
{
    return patience_alone(patience, suspect) && now - suspect->since > over_after;
}

/* ---- when workers are started ---- */

enum { STARTS_AT_ONCE = 3 };

static const int64_t start_interval = CLOCK_SECOND;
static const int64_t waited_for = 5 * CLOCK_SECOND;
static const int64_t usual_opening = 60 * CLOCK_SECOND;

void starts_begun(struct starts *starts, unsigned dice, int64_t now)
{
    starts->fruitless++;
    starts->due = greater(starts->due, now) + start_interval;
    starts->from = now;
    starts->dice = dice;
}

void starts_ended(struct starts *starts, int64_t now)
{
    starts->from = now;
}

static int64_t pause_of(const struct starts *starts, bool definite)
{
    int64_t pause = definite ? CLOCK_SECOND : CLOCK_SECOND / 10;
    int64_t most = definite ? 30 * CLOCK_SECOND : 5 * CLOCK_SECOND;

    if (starts->fruitless <= 1)
        return 0;
    pause = doubled(pause, starts->fruitless - 2, most);
    return pause * 3 / 4 + pause / 2 * starts->dice / UINT16_MAX;
}

int64_t starts_spare(const struct starts *starts)
{
    return starts->due - (STARTS_AT_ONCE - 1) * start_interval;
}

int64_t starts_next(const struct starts *starts, const struct starts_wait *wait)
{
    int64_t at = starts->from + pause_of(starts, wait->definite);

    if (wait->waiting)
        at = lesser(at, starts->from + waited_for);
    if (wait->waiting && wait->deadline != CLOCK_NEVER)
        at = lesser(at, greater(wait->deadline - last_chance, starts->from));
    return greater(at, starts_spare(starts));
}

int64_t starts_limit(const struct starts *starts, const struct starts_opening *opening)
{
    int64_t limit = (starts->fruitless + 1) * opening->operation_limit;

    if (opening->took == 0)
        return greater(usual_opening, opening->startup_left);
    return greater(lesser(limit, usual_opening), 2 * opening->took);
}
