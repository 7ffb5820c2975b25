/* Writes the record to its file in a thread of its own, so that a slow disk delays only the calls
 * that must wait for it. */
#include "plugin/keys/scribe.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"
#include "hsm/base/scope.h"
#include "plugin/keys/scribe_file.h"
#include "plugin/report/log.h"

static const int64_t patience = 2 * CLOCK_SECOND;
static const int64_t retry_pause = 5 * CLOCK_SECOND;
static const int64_t hour = 3600 * CLOCK_SECOND;

struct waiter {
    TAILQ_ENTRY(waiter) link;
    uint64_t commit;
    int64_t until;
    scribe_done *done;
    void *context;
};

TAILQ_HEAD(waiters, waiter);

/* How bad the trouble was when it was last logged. */
enum trouble { TROUBLE_NONE, TROUBLE_SLOW, TROUBLE_FAILED };

/* Commits are numbered from 1. A number stands for all commits up to it. */
struct scribe {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    char path[HSM_PATH_MAX];
    struct record record;
    int64_t ran;    /* running time before this process, in s */
    int64_t opened; /* on clock_now()'s clock */
    unsigned holders;
    uint64_t committed;
    uint64_t asked;   /* the latest commit that somebody waits or waited for */
    uint64_t due;     /* the thread has to write up to this commit */
    uint64_t written; /* up to this commit, all is on the disk */
    int64_t retry_at;
    int64_t hour_at; /* when to write the running time again */
    bool given_up;   /* the last attempt failed when nobody held the scribe any more */
    enum trouble trouble;
    struct waiters waiters;  /* the oldest first */
    struct scribe_file file; /* used by the thread alone */
};

static void lock(struct scribe *scribe)
{
    (void)pthread_mutex_lock(&scribe->lock);
}

static void unlock(struct scribe *scribe)
{
    (void)pthread_mutex_unlock(&scribe->lock);
}

static bool has_file(const struct scribe *scribe)
{
    return scribe->path[0] != '\0';
}

static void scribe_free(struct scribe *scribe)
{
    (void)pthread_cond_destroy(&scribe->changed);
    (void)pthread_mutex_destroy(&scribe->lock);
    record_close(&scribe->record);
    free(scribe);
}

/* ---- who waits ---- */

/* Takes out the waiters for a commit up to `commit`, or whose deadline is past. */
static void take_waiters(struct scribe *scribe, uint64_t commit, int64_t moment,
                         struct waiters *taken)
{
    struct waiter *waiter;
    struct waiter *next;

    TAILQ_INIT(taken);
    for (waiter = TAILQ_FIRST(&scribe->waiters); waiter; waiter = next) {
        next = TAILQ_NEXT(waiter, link);
        if (waiter->commit > commit && waiter->until > moment)
            continue;
        TAILQ_REMOVE(&scribe->waiters, waiter, link);
        TAILQ_INSERT_TAIL(taken, waiter, link);
    }
}

/* Without the lock, as any of the waiters may release the scribe. */
static void answer(struct waiters *taken, bool written)
{
    struct waiter *waiter;

    while ((waiter = TAILQ_FIRST(taken))) {
        TAILQ_REMOVE(taken, waiter, link);
        waiter->done(waiter->context, written);
        free(waiter);
    }
}

/* Returns true if the trouble is worse than the one logged before. */
static bool worsen(struct scribe *scribe, enum trouble trouble)
{
    const bool worse = trouble > scribe->trouble;

    if (worse)
        scribe->trouble = trouble;
    return worse;
}

/* ---- the thread ---- */

static bool is_due(const struct scribe *scribe)
{
    if (scribe->holders == 0)
        return scribe->committed > scribe->written;
    return scribe->due > scribe->written && clock_now() >= scribe->retry_at;
}

static bool is_over(const struct scribe *scribe)
{
    return scribe->holders == 0 && (scribe->committed <= scribe->written || scribe->given_up);
}

/* Enters with the lock held and returns without it. */
static void conclude(struct scribe *scribe, uint64_t commit)
{
    const bool ended = scribe->trouble != TROUBLE_NONE;
    struct waiters taken;

    scribe->written = commit;
    scribe->trouble = TROUBLE_NONE;
    scribe->hour_at = clock_now() + hour;
    take_waiters(scribe, commit, INT64_MIN, &taken);
    unlock(scribe);
    if (ended)
        log_write(LOG_INFO, "record_file is written again", "path", scribe->path, NULL);
    answer(&taken, true);
}

/* Enters with the lock held and returns without it. The first failure keeps the waiters waiting, as
 * the disk may recover; the second answers them. If nobody is left to tick, all are answered here.
 * A waiter that came meanwhile is owed an attempt. */
static void put_off(struct scribe *scribe, uint64_t commit, bool last, const struct fault *fault)
{
    const bool worse = worsen(scribe, TROUBLE_FAILED);
    const uint64_t in_vain = worse ? 0 : commit;
    struct waiters taken;

    scribe->retry_at = scribe->asked > commit ? 0 : clock_now() + retry_pause;
    scribe->given_up = last;
    take_waiters(scribe, last ? UINT64_MAX : in_vain, INT64_MIN, &taken);
    unlock(scribe);
    if (worse)
        log_fault(LOG_WARN, fault,
                  "record_file cannot be written; the plugin tries again every 5 s", "path",
                  scribe->path, NULL);
    answer(&taken, false);
}

/* Entered and left with the lock held. */
static void write_record(struct scribe *scribe)
{
    const uint64_t commit = scribe->committed;
    const bool last = scribe->holders == 0;
    OWNED(scope_free) char *bytes = NULL;
    struct fault fault;
    size_t length;
    bool written;

    scribe->record.ran = scribe_ran(scribe);
    bytes = record_format(&scribe->record, &length);
    unlock(scribe);
    if (!bytes)
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "out of memory");
    written = bytes && scribe_file_write(&scribe->file, bytes, length, &fault) == 0;
    lock(scribe);
    if (written)
        conclude(scribe, commit);
    else
        put_off(scribe, commit, last, &fault);
    lock(scribe);
}

static void *scribe_thread(void *context)
{
    struct scribe *scribe = context;

    lock(scribe);
    while (!is_over(scribe)) {
        if (is_due(scribe))
            write_record(scribe);
        else if (scribe->due > scribe->written)
            condition_wait(&scribe->changed, &scribe->lock, scribe->retry_at);
        else
            (void)pthread_cond_wait(&scribe->changed, &scribe->lock);
    }
    unlock(scribe);
    scribe_free(scribe);
    return NULL;
}

/* The thread blocks signals: they belong to the main thread. */
static int start_thread(struct scribe *scribe, struct fault *fault)
{
    pthread_t thread;
    sigset_t before;
    sigset_t all;
    int error;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, NULL, scribe_thread, scribe);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return fault_errno(fault, FAULT_RESOURCE_EXHAUSTED, error, "cannot start a thread");
    (void)pthread_detach(thread);
    return 0;
}

/* ---- the door ---- */

int scribe_read(const char *path, const struct label_scope *scope, struct record *record,
                enum scribe_found *found, struct fault *fault)
{
    struct scribe_file file = {.path = path};

    if (*path == '\0') {
        record_open(scope, record);
        *found = SCRIBE_NOTHING;
        return 0;
    }
    return scribe_file_read(&file, false, scope, record, found, fault);
}

int scribe_identity(const char *path, const char *trust_domain,
                    uint8_t identity[CONFIG_IDENTITY_MAX], size_t *length, struct fault *fault)
{
    OWNED(record_close) struct record record = {.keys = NULL};
    struct label_scope scope = {.server = ""};
    enum scribe_found found;

    label_trust_domain_hash(trust_domain, scope.trust_domain);
    if (scribe_read(path, &scope, &record, &found, fault) != 0)
        return -1;
    *length = record_identity(&record, identity);
    if (*length == 0)
        return fault_set(fault, FAULT_NOT_FOUND, "record_file \"%s\" has no identity", path);
    return 0;
}

/* Sets the members of a scribe that has just read its file. */
static void set_out(struct scribe *scribe)
{
    (void)pthread_mutex_init(&scribe->lock, NULL);
    condition_open(&scribe->changed);
    TAILQ_INIT(&scribe->waiters);
    scribe->holders = 1;
    scribe->ran = scribe->record.ran;
    scribe->opened = clock_now();
    scribe->hour_at = scribe->opened + hour;
}

static int name_file(const char *path, const struct label_scope *scope, struct scribe *scribe,
                     struct fault *fault)
{
    const size_t length = strlen(path);

    if (length >= sizeof scribe->path)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "record_file \"%s\" is too long", path);
    memcpy(scribe->path, path, length + 1);
    scribe->file.path = scribe->path;
    record_open(scope, &scribe->record);
    return 0;
}

bool scribe_is_damaged(const char *path, const struct label_scope *scope,
                       char code[RECORD_CODE + 1])
{
    return *path != '\0' && scribe_file_is_damaged(path, scope, code);
}

/* If `found` is NULL, the file may be in any state. */
static int open_scribe(const char *path, const struct label_scope *scope, struct scribe **scribe,
                       enum scribe_found *found, struct fault *fault)
{
    struct scribe *made = calloc(1, sizeof *made);
    enum scribe_found what = SCRIBE_NOTHING;

    if (!made)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    if (name_file(path, scope, made, fault) != 0 ||
        (has_file(made) && found &&
         scribe_file_read(&made->file, true, scope, &made->record, &what, fault) != 0)) {
        free(made);
        return -1;
    }
    set_out(made);
    if (has_file(made) && start_thread(made, fault) != 0) {
        scribe_free(made);
        return -1;
    }
    *scribe = made;
    if (found)
        *found = what;
    return 0;
}

int scribe_open(const char *path, const struct label_scope *scope, struct scribe **scribe,
                enum scribe_found *found, struct fault *fault)
{
    return open_scribe(path, scope, scribe, found, fault);
}

int scribe_open_anew(const char *path, const struct label_scope *scope, struct scribe **scribe,
                     struct fault *fault)
{
    return open_scribe(path, scope, scribe, NULL, fault);
}

struct scribe *scribe_hold(struct scribe *scribe)
{
    lock(scribe);
    scribe->holders++;
    unlock(scribe);
    return scribe;
}

void scribe_release(struct scribe *scribe)
{
    const bool threaded = has_file(scribe);
    bool last;

    lock(scribe);
    last = --scribe->holders == 0;
    if (last)
        (void)pthread_cond_signal(&scribe->changed);
    unlock(scribe); /* from here on the thread may free it */
    if (last && !threaded)
        scribe_free(scribe);
}

const char *scribe_path(const struct scribe *scribe)
{
    return scribe->path;
}

struct record *scribe_edit(struct scribe *scribe)
{
    lock(scribe);
    return &scribe->record;
}

void scribe_leave(struct scribe *scribe)
{
    unlock(scribe);
}

/* Somebody waits, so an attempt is due now, whatever became of the last one. While an attempt
 * hangs, the tick answers those who come. */
static bool wait_for(struct scribe *scribe, scribe_done *done, void *context)
{
    struct waiter *waiter = malloc(sizeof *waiter);

    scribe->asked = scribe->due = scribe->committed;
    scribe->retry_at = 0;
    (void)pthread_cond_signal(&scribe->changed);
    if (!waiter)
        return false;
    waiter->commit = scribe->committed;
    waiter->until = clock_now() + (scribe->trouble == TROUBLE_SLOW ? 0 : patience);
    waiter->done = done;
    waiter->context = context;
    TAILQ_INSERT_TAIL(&scribe->waiters, waiter, link);
    return true;
}

void scribe_commit(struct scribe *scribe, scribe_done *done, void *context)
{
    const bool filed = has_file(scribe);
    bool waits = false;

    if (filed) {
        scribe->committed++;
        waits = done && wait_for(scribe, done, context);
    }
    unlock(scribe);
    if (done && !waits)
        done(context, !filed);
}

bool scribe_is_written(struct scribe *scribe)
{
    bool written;

    lock(scribe);
    written = scribe->asked <= scribe->written;
    unlock(scribe);
    return written;
}

/* Without the lock, as the caller may hold it. Neither number ever changes. */
int64_t scribe_ran(struct scribe *scribe)
{
    return scribe->ran + (clock_now() - scribe->opened) / CLOCK_SECOND;
}

static bool has_condemned(const struct record *record)
{
    for (size_t i = 0; i < record->count; i++)
        if (record->keys[i].state == RECORD_CONDEMNED)
            return true;
    return false;
}

static void write_hourly(struct scribe *scribe, int64_t now)
{
    if (now < scribe->hour_at || scribe->due > scribe->written || !has_condemned(&scribe->record))
        return;
    scribe->due = ++scribe->committed;
    (void)pthread_cond_signal(&scribe->changed);
}

void scribe_tick(struct scribe *scribe)
{
    const int64_t now = clock_now();
    struct waiters taken;
    bool worse;

    if (!has_file(scribe))
        return;
    lock(scribe);
    write_hourly(scribe, now);
    take_waiters(scribe, 0, now, &taken);
    worse = !TAILQ_EMPTY(&taken) && worsen(scribe, TROUBLE_SLOW);
    unlock(scribe);
    if (worse)
        log_write(LOG_WARN,
                  "record_file was not written within 2 s: calls that waited for it go on", "path",
                  scribe->path, NULL);
    answer(&taken, false);
}
