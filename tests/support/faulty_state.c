/* The state of faulty.so: which script is in force, and which of its faults are due.
 *
 * Every call of the module passes faulty_before() and faulty_after(). They reload a script that
 * has changed, count the call for each rule, and carry out the actions that are due.
 *
 * State that belongs to the token, and not to one process, is in the page: a file that every
 * process maps. There are the shared counts, the age of new objects, and the open sessions of
 * each process. A dead process leaves its sessions there until they have lingered enough. */
#include "tests/support/faulty.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { NEWBORNS = 256, HOLDERS = 64, TEXT_MAX = 16384, TOLD_MAX = 1000 };

/* The file SCRIPT.page, mapped by every process that follows SCRIPT. All after `bell` is
 * written with the file locked, or is atomic. tests/peers/faulty reads it up to `holders`. */
struct page {
    _Atomic uint64_t bell;
    uint64_t script;        /* identity of the one the counts belong to */
    _Atomic int64_t loaded; /* when its first reader read it */
    struct {
        pid_t pid;
        uint64_t sessions;
        int64_t died; /* when that was noticed, 0 = lives */
    } holders[HOLDERS];
    struct {
        _Atomic uint64_t seen;
        _Atomic uint64_t fired;
    } counts[FAULTY_RULES];
    struct {
        uint64_t name;
        int64_t born;
        uint64_t hidden;
        pid_t maker;
    } newborns[NEWBORNS];
    uint64_t newborn_count;
};

struct identity {
    ino_t inode;
    off_t size;
    struct timespec changed;
};

static struct page *page;
static int page_fd = -1;
static char path[512];

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER; /* guards the next two */
static struct identity identity;
static struct faulty_script *scripts;

static struct faulty_script *_Atomic current;
static _Atomic uint64_t heard; /* the bell at the last look */
static _Atomic int64_t looked; /* coarse time of the last look */
static _Atomic uint64_t own_seen[FAULTY_RULES];
static _Atomic uint64_t own_fired[FAULTY_RULES];

static _Thread_local char subject[256]; /* label of the key that this thread signs with */

static pthread_mutex_t page_lock = PTHREAD_MUTEX_INITIALIZER;

_Noreturn static void give_up(const char *what)
{
    (void)fprintf(stderr, "faulty.so: %s: %s\n", path, what);
    abort();
}

int64_t faulty_age(void)
{
    return faulty_now() - page->loaded;
}

int64_t faulty_now(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

void faulty_sleep(uint64_t milliseconds)
{
    struct timespec left = {.tv_sec = (time_t)(milliseconds / 1000),
                            .tv_nsec = (long)(milliseconds % 1000) * 1000000};

    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        continue;
}

const struct faulty_habits *faulty_habits(void)
{
    const struct faulty_script *script = current;

    return script ? &script->habits : NULL;
}

/* A process that is killed lets go of a file lock, but not of a mutex in shared memory. */
static void lock_page(void)
{
    (void)pthread_mutex_lock(&page_lock);
    while (page_fd >= 0 && flock(page_fd, LOCK_EX) != 0 && errno == EINTR)
        continue;
}

static void unlock_page(void)
{
    if (page_fd >= 0)
        (void)flock(page_fd, LOCK_UN);
    (void)pthread_mutex_unlock(&page_lock);
}

/* ---- the script ---- */

void faulty_close(void)
{
    if (page)
        (void)munmap(page, sizeof *page);
    if (page_fd >= 0)
        (void)close(page_fd);
    page = NULL;
    page_fd = -1;
    current = NULL;
    identity = (struct identity){.size = 0};
    while (scripts) {
        struct faulty_script *script = scripts;

        scripts = script->previous;
        free(script);
    }
}

void faulty_open(void)
{
    const char *script = getenv("FAULTY_SCRIPT");
    char name[sizeof path + 8];
    struct stat file;

    if (!script || strcmp(script, path) == 0)
        return;
    faulty_close();
    if ((size_t)snprintf(path, sizeof path, "%s", script) >= sizeof path)
        give_up("path too long");
    (void)snprintf(name, sizeof name, "%s.page", path);
    page_fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (page_fd < 0 || fstat(page_fd, &file) != 0)
        give_up("cannot open the page beside it");
    if (file.st_size < (off_t)sizeof *page && ftruncate(page_fd, sizeof *page) != 0)
        give_up("cannot make the page beside it");
    page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, page_fd, 0);
    if (page == MAP_FAILED)
        give_up("cannot map the page beside it");
    looked = -1;
}

static uint64_t mix(uint64_t hash, const void *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ ((const uint8_t *)bytes)[i]) * UINT64_C(0x100000001b3);
    return hash;
}

/* The first process to see a script starts its counts and its time. */
static void adopt(const struct identity *now, const char *text, size_t length)
{
    uint64_t hash = mix(UINT64_C(0xcbf29ce484222325), text, length);

    hash = mix(hash, &now->inode, sizeof now->inode);
    hash = mix(hash, &now->changed.tv_sec, sizeof now->changed.tv_sec);
    hash = mix(hash, &now->changed.tv_nsec, sizeof now->changed.tv_nsec);
    lock_page();
    if (page->script != hash) {
        for (size_t i = 0; i < FAULTY_RULES; i++)
            page->counts[i].seen = page->counts[i].fired = 0;
        memset(page->newborns, 0, sizeof page->newborns);
        page->newborn_count = 0;
        page->loaded = faulty_now();
        page->script = hash;
    }
    unlock_page();
    for (size_t i = 0; i < FAULTY_RULES; i++)
        own_seen[i] = own_fired[i] = 0;
}

static void load(int fd, const struct identity *now)
{
    static char text[TEXT_MAX];
    char message[FAULTY_ERROR];
    struct faulty_script *script = calloc(1, sizeof *script);
    ssize_t length = read(fd, text, sizeof text - 1);

    if (!script || length < 0 || length == sizeof text - 1)
        give_up("cannot be read, or is too long");
    text[length] = '\0';
    adopt(now, text, (size_t)length);
    if (faulty_parse(text, script, message) != 0)
        give_up(message);
    script->previous = scripts;
    scripts = script;
    habit_begin(&script->habits);
    current = script;
}

static bool same(const struct identity *a, const struct identity *b)
{
    return a->inode == b->inode && a->size == b->size && a->changed.tv_sec == b->changed.tv_sec &&
           a->changed.tv_nsec == b->changed.tv_nsec;
}

static void look_closer(void)
{
    struct stat file = {.st_size = 0};
    struct identity now;
    int fd;

    (void)pthread_mutex_lock(&loading);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &file) != 0)
        give_up("cannot be read");
    now = (struct identity){file.st_ino, file.st_size, file.st_ctim};
    if (file.st_size == 0)
        current = NULL;
    else if (!same(&now, &identity))
        load(fd, &now);
    identity = now;
    if (fd >= 0)
        (void)close(fd);
    (void)pthread_mutex_unlock(&loading);
}

/* A look costs a microsecond, a signature 20: so only when the bell was rung or the coarse
 * clock has ticked (every 4 ms or so), which cost 10 ns. */
static void look(void)
{
    struct timespec tick;
    uint64_t bell = page->bell;
    int64_t now;

    (void)clock_gettime(CLOCK_MONOTONIC_COARSE, &tick);
    now = tick.tv_sec * INT64_C(1000000000) + tick.tv_nsec;
    if (now == looked && bell == heard)
        return;
    look_closer();
    heard = bell;
    looked = now;
}

/* ---- faults ---- */

/* The same calls in every run, if they come in one order. */
static bool is_hit(uint64_t nth, uint64_t percent)
{
    uint64_t dice = (nth + 1) * UINT64_C(0x9e3779b97f4a7c15);

    dice = (dice ^ (dice >> 31)) * UINT64_C(0xbf58476d1ce4e5b9);
    return percent == 0 || (dice >> 32) % 100 < percent;
}

/* Counts the call, and says whether its turn has come. */
static bool due(const struct faulty_rule *rule, size_t i)
{
    _Atomic uint64_t *seen = rule->shared ? &page->counts[i].seen : &own_seen[i];
    _Atomic uint64_t *fired = rule->shared ? &page->counts[i].fired : &own_fired[i];
    uint64_t nth = atomic_fetch_add(seen, 1) + 1;

    if (nth < rule->first || nth > rule->last)
        return false;
    if (!is_hit(nth, rule->percent))
        return false;
    if (rule->lasting != 0 && faulty_now() - page->loaded > rule->lasting)
        return false;
    return atomic_fetch_add(fired, 1) < rule->times || rule->times == 0;
}

/* For whoever reads SCRIPT.fired afterwards, and for the one line a real library leaves. */
static void tell(const struct faulty_rule *rule, size_t i, const char *function)
{
    char text[128];
    char name[sizeof path + 8];
    int length =
        snprintf(text, sizeof text, "%d line %u %s\n", (int)getpid(), rule->line, function);
    int fd;

    if (own_fired[i] > TOLD_MAX)
        return;
    (void)snprintf(name, sizeof name, "%s.fired", path);
    fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, text, (size_t)length) != length)
        give_up("cannot write the record beside it");
    (void)close(fd);
}

/* Sanitizers catch a real bad access and call it a bug of ours. */
static void crash(int signal_number)
{
    (void)signal(signal_number, SIG_DFL);
    (void)raise(signal_number);
}

/* False: *rv is the answer. */
static bool act(const struct faulty_rule *rule, const char *function, CK_RV *rv)
{
    switch (rule->action) {
    case FAULTY_RETURN:
        *rv = (CK_RV)rule->value;
        return false;
    case FAULTY_SLEEP:
        faulty_sleep(rule->value);
        break;
    case FAULTY_HANG:
        for (;;)
            (void)pause();
    case FAULTY_SEGV:
        crash(SIGSEGV);
        break;
    case FAULTY_ABORT:
        (void)fprintf(stderr, "faulty.so: %s: internal error, giving up\n", function);
        crash(SIGABRT);
        break;
    case FAULTY_KILL:
        (void)kill(getpid(), SIGKILL);
        break;
    case FAULTY_EXIT:
        exit(EXIT_FAILURE);
    case FAULTY_SPOIL:
        habit_spoils = true;
        break;
    case FAULTY_BEND:
        habit_bends = true;
        break;
    case FAULTY_SHORTEN:
        habit_shortens = true;
        break;
    case FAULTY_DIE:
        habit_die();
        *rv = CKR_DEVICE_ERROR;
        return false;
    }
    return true;
}

static bool is_about(const struct faulty_rule *rule, bool after, const char *function)
{
    return rule->after == after &&
           (rule->function[0] == '*' || strcmp(rule->function, function) == 0) &&
           (rule->part[0] == '\0' || strstr(subject, rule->part) != NULL);
}

/* Every rule counts the call, also behind one that ends it. */
static bool apply(const struct faulty_script *script, const char *function, bool after, CK_RV *rv)
{
    bool fires[FAULTY_RULES] = {false};

    for (size_t i = 0; i < script->count; i++) {
        const struct faulty_rule *rule = &script->rules[i];

        if (is_about(rule, after, function))
            fires[i] = due(rule, i);
    }
    for (size_t i = 0; i < script->count; i++) {
        if (!fires[i])
            continue;
        tell(&script->rules[i], i, function);
        if (!act(&script->rules[i], function, rv))
            return false;
    }
    return true;
}

void faulty_aim(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key)
{
    const struct faulty_script *script;

    subject[0] = '\0';
    if (page)
        look();
    script = current;
    if (script && script->aims)
        habit_label(session, key, subject, sizeof subject);
}

bool faulty_before(const char *function, CK_RV *rv)
{
    const struct faulty_script *script;

    if (!page)
        return true;
    look();
    if (habit_dead() && strcmp(function, "C_Finalize") != 0) {
        *rv = CKR_DEVICE_ERROR;
        return false;
    }
    script = current;
    return !script || apply(script, function, false, rv);
}

CK_RV faulty_after(const char *function, CK_RV rv)
{
    const struct faulty_script *script = current;

    if (script)
        (void)apply(script, function, true, &rv);
    return rv;
}

/* ---- what the token remembers ---- */

static size_t newborn_find(uint64_t name)
{
    for (size_t i = 0; i < NEWBORNS; i++)
        if (page->newborns[i].name == name)
            return i;
    return NEWBORNS;
}

void faulty_newborn(uint64_t name, uint64_t hidden)
{
    size_t i;

    lock_page();
    i = page->newborn_count++ % NEWBORNS;
    page->newborns[i].name = name;
    page->newborns[i].born = faulty_now();
    page->newborns[i].hidden = hidden;
    page->newborns[i].maker = getpid();
    unlock_page();
}

int64_t faulty_newborn_age(uint64_t name)
{
    int64_t age = -1;
    size_t i;

    lock_page();
    i = newborn_find(name);
    if (i < NEWBORNS)
        age = faulty_now() - page->newborns[i].born;
    unlock_page();
    return age;
}

bool faulty_newborn_hidden(uint64_t name)
{
    bool hidden = false;
    size_t i;

    lock_page();
    i = newborn_find(name);
    if (i < NEWBORNS && page->newborns[i].hidden > 0) {
        page->newborns[i].hidden--;
        hidden = true;
    }
    unlock_page();
    return hidden;
}

bool faulty_newborn_apart(uint64_t name, uint64_t limit)
{
    bool apart;
    size_t i;

    lock_page();
    i = newborn_find(name);
    apart = i < NEWBORNS && page->newborns[i].maker != getpid() &&
            faulty_now() - page->newborns[i].born < (int64_t)limit * 1000000;
    unlock_page();
    return apart;
}

void faulty_sessions_lock(void)
{
    lock_page();
}

void faulty_sessions_unlock(void)
{
    unlock_page();
}

uint64_t faulty_sessions_held(uint64_t linger)
{
    uint64_t held = 0;

    for (size_t i = 0; page && i < HOLDERS; i++) {
        if (page->holders[i].pid == 0)
            continue;
        if (page->holders[i].died == 0 && kill(page->holders[i].pid, 0) != 0 && errno == ESRCH)
            page->holders[i].died = faulty_now();
        if (page->holders[i].died != 0 &&
            faulty_now() - page->holders[i].died >= (int64_t)linger * 1000000)
            page->holders[i].pid = 0;
        else
            held += page->holders[i].sessions;
    }
    return held;
}

void faulty_sessions_hold(uint64_t count)
{
    pid_t self = getpid();
    size_t own = HOLDERS;

    if (!page)
        return;
    for (size_t i = 0; i < HOLDERS; i++) {
        if (page->holders[i].pid == self && page->holders[i].died == 0)
            own = i;
        else if (page->holders[i].pid == 0 && own == HOLDERS)
            own = i;
    }
    if (own == HOLDERS)
        give_up("too many processes");
    page->holders[own].pid = count > 0 ? self : 0;
    page->holders[own].sessions = count;
    page->holders[own].died = 0;
}
