#include "tests/support/scribe_room.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "hsm/base/scope.h"
#include "tests/support/clock_ahead.h"

/* ---- the disk ---- */

struct disk disk = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static int pass_disk(void)
{
    int error;

    (void)pthread_mutex_lock(&disk.lock);
    disk.begun++;
    (void)pthread_cond_broadcast(&disk.changed);
    while (disk.blocked)
        (void)pthread_cond_wait(&disk.changed, &disk.lock);
    disk.passed++;
    error = disk.error;
    (void)pthread_cond_broadcast(&disk.changed);
    (void)pthread_mutex_unlock(&disk.lock);
    return error;
}

int fsync(int fd)
{
    struct stat status;

    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode)) {
        errno = pass_disk();
        if (errno != 0)
            return -1;
    }
    return (int)syscall(SYS_fsync, fd);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags)
{
    int error;

    (void)pthread_mutex_lock(&disk.lock);
    error = disk.links;
    (void)pthread_mutex_unlock(&disk.lock);
    errno = error;
    return error == 0 ? (int)syscall(SYS_linkat, from_folder, from, to_folder, to, flags) : -1;
}

void make_disk(int links)
{
    (void)pthread_mutex_lock(&disk.lock);
    disk.blocked = false;
    disk.error = 0;
    disk.links = links;
    disk.begun = disk.passed = 0;
    (void)pthread_mutex_unlock(&disk.lock);
}

void set_disk(bool blocked, int error)
{
    (void)pthread_mutex_lock(&disk.lock);
    disk.blocked = blocked;
    disk.error = error;
    (void)pthread_cond_broadcast(&disk.changed);
    (void)pthread_mutex_unlock(&disk.lock);
}

void await_writes(const size_t *counter, size_t count)
{
    (void)pthread_mutex_lock(&disk.lock);
    while (*counter < count)
        (void)pthread_cond_wait(&disk.changed, &disk.lock);
    (void)pthread_mutex_unlock(&disk.lock);
}

size_t writes(void)
{
    size_t begun;

    (void)pthread_mutex_lock(&disk.lock);
    begun = disk.begun;
    (void)pthread_mutex_unlock(&disk.lock);
    return begun;
}

/* ---- a folder of the test's own, and its log ---- */

struct label_scope own_scope;
struct label_scope other_scope;

size_t entries(const char *folder)
{
    OWNED(scope_closedir) DIR *listing = opendir(folder);
    size_t count = 0;

    assert_non_null(listing);
    while (readdir(listing))
        count++;
    return count - 2; /* . and .. */
}

int make_room(void **state)
{
    static struct room room;

    (void)strcpy(room.folder, "/tmp/scribe-XXXXXX");
    assert_non_null(mkdtemp(room.folder));
    (void)snprintf(room.path, sizeof room.path, "%s/id.keys", room.folder);
    (void)snprintf(room.copy, sizeof room.copy, "%s/id.keys~", room.folder);
    label_scope("example.org", "server-7", 8, &own_scope);
    label_scope("other.org", "server-7", 8, &other_scope);
    clock_ahead = 0;
    make_disk(0);
    room.threads = entries("/proc/self/task");
    room.descriptors = entries("/proc/self/fd");
    room.log = memfd_create("log", MFD_CLOEXEC);
    (void)fcntl(room.log, F_SETFL, O_APPEND);
    room.stderr_before = dup(STDERR_FILENO);
    assert_int_equal(dup2(room.log, STDERR_FILENO), STDERR_FILENO);
    *state = &room;
    return 0;
}

void look_again(void)
{
    (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

void await_threads(const struct room *room)
{
    for (int looks = 0; entries("/proc/self/task") > room->threads; looks++) {
        if (looks == 10000)
            fail_msg("a scribe was not released, or does not end");
        look_again();
    }
}

int remove_room(void **state)
{
    struct room *room = *state;
    char command[128];
    char log[16384];
    ssize_t length;

    (void)dup2(room->stderr_before, STDERR_FILENO);
    (void)close(room->stderr_before);
    length = pread(room->log, log, sizeof log, 0);
    (void)!write(STDERR_FILENO, log, length > 0 ? (size_t)length : 0);
    (void)close(room->log);
    await_threads(room);
    assert_int_equal(entries("/proc/self/fd"), room->descriptors);
    (void)umount2(room->folder, MNT_DETACH);
    (void)snprintf(command, sizeof command, "rm -rf %s", room->folder);
    return system(command);
}

size_t logged(const struct room *room, const char *text)
{
    static char log[65536];
    ssize_t length = pread(room->log, log, sizeof log - 1, 0);
    size_t count = 0;

    assert_true(length >= 0);
    log[length] = '\0';
    for (const char *at = log; (at = strstr(at, text)); at++)
        count++;
    return count;
}

void await_log(const struct room *room, const char *text)
{
    while (logged(room, text) == 0)
        look_again();
}

/* ---- records and files ---- */

static struct record_key key_of(const struct label_scope *whose, enum record_state state,
                                uint32_t generation)
{
    struct record_key key = {.state = state, .public_key.type = HSM_EC_P256};

    key.label = (struct label){.scope = *whose, .generation = generation, .key_id = "x509-CA-A"};
    label_format(&key.label, key.name.label);
    key.name.id_length = 16;
    return key;
}

void write_file(const char *path, const char *text, size_t length)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, length), length);
    (void)close(fd);
}

void write_state(const char *path, const struct label_scope *whose, enum record_state state,
                 uint32_t generation)
{
    OWNED(record_close) struct record record;
    OWNED(scope_free) char *text = NULL;
    struct record_key key = key_of(whose, state, generation);
    size_t length;

    record_open(whose, &record);
    record.ran = 100;
    record.identity_length = 3;
    memcpy(record.identity, "abc", 3);
    assert_int_equal(record_put(&record, &key), 0);
    text = record_format(&record, &length);
    assert_non_null(text);
    write_file(path, text, length);
}

void write_record(const char *path, const struct label_scope *whose, uint32_t generation)
{
    write_state(path, whose, RECORD_ATTEMPTED, generation);
}

int keys_in(const char *path, uint64_t *written)
{
    OWNED(scope_free) char *bytes = calloc(1, RECORD_BYTES_MAX);
    OWNED(scope_close) int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct record record;
    bool known;
    int count;

    if (fd < 0 || record_parse(bytes, (size_t)read(fd, bytes, RECORD_BYTES_MAX), &own_scope,
                               &record, &known, NULL) != 0)
        return -1;
    count = (int)record.count;
    if (written)
        *written = record.written;
    record_close(&record);
    return count;
}

struct scribe *opened(const struct room *room, enum scribe_found expected)
{
    struct scribe *scribe;
    enum scribe_found found;
    struct fault fault;

    if (scribe_open(room->path, &own_scope, &scribe, &found, &fault) != 0)
        fail_msg("%s", fault.message);
    assert_int_equal(found, expected);
    return scribe;
}

void add_key(struct scribe *scribe, enum record_state state, uint32_t generation)
{
    struct record_key key = key_of(&own_scope, state, generation);

    assert_int_equal(record_put(scribe_edit(scribe), &key), 0);
}

/* ---- who waits ---- */

static pthread_mutex_t answers_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t answered = PTHREAD_COND_INITIALIZER;

void take_answer(void *context, bool written)
{
    struct answer *answer = context;

    (void)pthread_mutex_lock(&answers_lock);
    answer->times++;
    answer->written = written;
    answer->thread = pthread_self();
    (void)pthread_cond_broadcast(&answered);
    (void)pthread_mutex_unlock(&answers_lock);
}

size_t times(const struct answer *answer)
{
    size_t count;

    (void)pthread_mutex_lock(&answers_lock);
    count = answer->times;
    (void)pthread_mutex_unlock(&answers_lock);
    return count;
}

void assert_answered(const struct answer *answer, bool written)
{
    (void)pthread_mutex_lock(&answers_lock);
    while (answer->times == 0)
        (void)pthread_cond_wait(&answered, &answers_lock);
    assert_int_equal(answer->times, 1);
    assert_int_equal(answer->written, written);
    (void)pthread_mutex_unlock(&answers_lock);
}

void must_write(struct scribe *scribe, uint32_t generation)
{
    struct answer answer = {0};

    add_key(scribe, RECORD_ATTEMPTED, generation);
    scribe_commit(scribe, take_answer, &answer);
    assert_answered(&answer, true);
}

static void *nothing(void *context)
{
    return context;
}

/* The thread sanitizer starts one of its own with the first, which is not to be waited for. */
int start_a_thread(void **state)
{
    pthread_t thread;

    (void)state;
    return pthread_create(&thread, NULL, nothing, NULL) == 0 ? pthread_join(thread, NULL) : -1;
}
