/* The record reaches the disk, behind everybody's back and in order; a disk that hangs, fails or
 * lies delays nobody; and what is on the disk at a start is believed with care. */
#include "plugin/keys/scribe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "hsm/base/scope.h"
#include "tests/support/clock_ahead.h"

/* ---- the disk ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool blocked;
    int error;     /* of each write */
    int links;     /* error of each link */
    size_t begun;  /* files synced, or being synced */
    size_t passed; /* files synced, well or not */
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

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

/* A good one, that has done nothing yet; `links` is the error of each link. */
static void make_disk(int links)
{
    (void)pthread_mutex_lock(&disk.lock);
    disk.blocked = false;
    disk.error = 0;
    disk.links = links;
    disk.begun = disk.passed = 0;
    (void)pthread_mutex_unlock(&disk.lock);
}

static void set_disk(bool blocked, int error)
{
    (void)pthread_mutex_lock(&disk.lock);
    disk.blocked = blocked;
    disk.error = error;
    (void)pthread_cond_broadcast(&disk.changed);
    (void)pthread_mutex_unlock(&disk.lock);
}

static void await_writes(const size_t *counter, size_t count)
{
    (void)pthread_mutex_lock(&disk.lock);
    while (*counter < count)
        (void)pthread_cond_wait(&disk.changed, &disk.lock);
    (void)pthread_mutex_unlock(&disk.lock);
}

static size_t writes(void)
{
    size_t begun;

    (void)pthread_mutex_lock(&disk.lock);
    begun = disk.begun;
    (void)pthread_mutex_unlock(&disk.lock);
    return begun;
}

/* ---- a folder of the test's own, and its log ---- */

struct room {
    char folder[64];
    char path[96];
    char copy[96];
    int log; /* stands for stderr while the test runs */
    int stderr_before;
    size_t threads;
    size_t descriptors;
};

static struct label_scope scope;
static struct label_scope other_scope;

static size_t entries(const char *folder)
{
    OWNED(scope_closedir) DIR *listing = opendir(folder);
    size_t count = 0;

    assert_non_null(listing);
    while (readdir(listing))
        count++;
    return count - 2; /* . and .. */
}

static int make_room(void **state)
{
    static struct room room;

    (void)strcpy(room.folder, "/tmp/scribe-XXXXXX");
    assert_non_null(mkdtemp(room.folder));
    (void)snprintf(room.path, sizeof room.path, "%s/id.keys", room.folder);
    (void)snprintf(room.copy, sizeof room.copy, "%s/id.keys~", room.folder);
    label_scope("example.org", "server-7", 8, &scope);
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

/* Between two looks at what comes by itself. */
static void look_again(void)
{
    (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* The thread of a scribe that was released ends by itself; not after a test that failed. */
static void await_threads(const struct room *room)
{
    for (int looks = 0; entries("/proc/self/task") > room->threads; looks++) {
        if (looks == 10000)
            fail_msg("a scribe was not released, or does not end");
        look_again();
    }
}

static int remove_room(void **state)
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

static size_t logged(const struct room *room, const char *text)
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

static void await_log(const struct room *room, const char *text)
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

static void write_file(const char *path, const char *text, size_t length)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, length), length);
    (void)close(fd);
}

/* A record of that scope with one key. */
static void write_state(const char *path, const struct label_scope *whose, enum record_state state,
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

static void write_record(const char *path, const struct label_scope *whose, uint32_t generation)
{
    write_state(path, whose, RECORD_ATTEMPTED, generation);
}

/* How many keys are in the file, -1: it is no record. */
static int keys_in(const char *path, uint64_t *written)
{
    OWNED(scope_free) char *bytes = calloc(1, RECORD_BYTES_MAX);
    OWNED(scope_close) int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct record record;
    bool known;
    int count;

    if (fd < 0 || record_parse(bytes, (size_t)read(fd, bytes, RECORD_BYTES_MAX), &scope, &record,
                               &known, NULL) != 0)
        return -1;
    count = (int)record.count;
    if (written)
        *written = record.written;
    record_close(&record);
    return count;
}

static struct scribe *opened(const struct room *room, enum scribe_found expected)
{
    struct scribe *scribe;
    enum scribe_found found;
    struct fault fault;

    if (scribe_open(room->path, &scope, &scribe, &found, &fault) != 0)
        fail_msg("%s", fault.message);
    assert_int_equal(found, expected);
    return scribe;
}

static void add_key(struct scribe *scribe, enum record_state state, uint32_t generation)
{
    struct record_key key = key_of(&scope, state, generation);

    assert_int_equal(record_put(scribe_edit(scribe), &key), 0);
}

/* ---- who waits ---- */

struct answer {
    size_t times;
    bool written;
    pthread_t thread;
};

static pthread_mutex_t answers_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t answered = PTHREAD_COND_INITIALIZER;

static void take_answer(void *context, bool written)
{
    struct answer *answer = context;

    (void)pthread_mutex_lock(&answers_lock);
    answer->times++;
    answer->written = written;
    answer->thread = pthread_self();
    (void)pthread_cond_broadcast(&answered);
    (void)pthread_mutex_unlock(&answers_lock);
}

static size_t times(const struct answer *answer)
{
    size_t count;

    (void)pthread_mutex_lock(&answers_lock);
    count = answer->times;
    (void)pthread_mutex_unlock(&answers_lock);
    return count;
}

static void assert_answered(const struct answer *answer, bool written)
{
    (void)pthread_mutex_lock(&answers_lock);
    while (answer->times == 0)
        (void)pthread_cond_wait(&answered, &answers_lock);
    assert_int_equal(answer->times, 1);
    assert_int_equal(answer->written, written);
    (void)pthread_mutex_unlock(&answers_lock);
}

static void must_write(struct scribe *scribe, uint32_t generation)
{
    struct answer answer = {0};

    add_key(scribe, RECORD_ATTEMPTED, generation);
    scribe_commit(scribe, take_answer, &answer);
    assert_answered(&answer, true);
}

/* ---- writing ---- */

static void opening_writes_nothing(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    assert_string_equal(scribe_path(scribe), room->path);
    assert_int_equal(scribe_edit(scribe)->count, 0);
    scribe_leave(scribe);
    assert_true(scribe_is_written(scribe));
    scribe_tick(scribe);
    scribe_release(scribe);
    await_threads(room);
    assert_int_equal(entries(room->folder), 0);
}

/* On the scribe's thread, where cmocka's assertions do not work. */
static void must(bool holds)
{
    if (!holds)
        abort();
}

static void look_at_file(void *context, bool written)
{
    const struct room *room = context;

    must(written && keys_in(room->path, NULL) >= 1);
}

static void who_waits_is_told_when_it_is_on_the_disk(void **state)
{
    struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct stat status;

    add_key(scribe, RECORD_SERVED, 1);
    scribe_commit(scribe, look_at_file, room);
    must_write(scribe, 2);
    assert_true(scribe_is_written(scribe));
    assert_int_equal(stat(room->path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
    scribe_release(scribe);
}

static void the_record_before_stays_beside_it(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    must_write(scribe, 1);
    assert_int_equal(entries(room->folder), 1);
    for (uint32_t i = 2; i < 5; i++) {
        must_write(scribe, i);
        assert_int_equal(keys_in(room->path, NULL), i);
        assert_int_equal(keys_in(room->copy, NULL), i - 1);
        assert_int_equal(entries(room->folder), 2);
    }
    scribe_release(scribe);
}

static void without_links_there_is_no_copy_and_no_word(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    make_disk(EPERM);
    must_write(scribe, 1);
    must_write(scribe, 2);
    assert_int_equal(keys_in(room->path, NULL), 2);
    assert_int_equal(entries(room->folder), 1);
    assert_int_equal(logged(room, "record_file"), 0);
    scribe_release(scribe);
}

/* A write that failed at its very end leaves both names on one file. */
static void a_copy_that_is_the_same_file_leaves_nothing_beside(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    must_write(scribe, 1);
    assert_int_equal(link(room->path, room->copy), 0);
    must_write(scribe, 2);
    assert_int_equal(entries(room->folder), 2);
    assert_int_equal(keys_in(room->copy, NULL), 1);
    scribe_release(scribe);
}

static void what_a_killed_process_left_is_removed(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    char path[160];

    (void)snprintf(path, sizeof path, "%s/.id.keys.tmp-1-0123456789abcdef", room->folder);
    write_file(path, "half", 4);
    must_write(scribe, 1);
    assert_int_equal(entries(room->folder), 1);
    scribe_release(scribe);
}

static void one_write_answers_all_who_wait(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer first = {0};
    struct answer later[20] = {{0}};

    set_disk(true, 0);
    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, take_answer, &first);
    await_writes(&disk.begun, 1);
    for (uint32_t i = 0; i < 20; i++) {
        add_key(scribe, RECORD_ATTEMPTED, 2 + i);
        scribe_commit(scribe, take_answer, &later[i]);
    }
    assert_false(scribe_is_written(scribe));
    assert_int_equal(times(&first), 0);
    set_disk(false, 0);
    assert_answered(&first, true);
    for (size_t i = 0; i < 20; i++)
        assert_answered(&later[i], true);
    assert_int_equal(writes(), 2);
    assert_int_equal(keys_in(room->path, NULL), 21);
    assert_int_equal(keys_in(room->copy, NULL), 1);
    scribe_release(scribe);
}

static void what_nobody_waits_for_goes_with_the_next(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, NULL, NULL);
    assert_true(scribe_is_written(scribe));
    must_write(scribe, 2);
    assert_int_equal(keys_in(room->path, NULL), 2);
    assert_int_equal(writes(), 1);
    scribe_release(scribe);
}

static void what_is_left_is_written_at_the_end(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, NULL, NULL);
    scribe_release(scribe);
    await_threads(room);
    assert_int_equal(keys_in(room->path, NULL), 1);
}

static void without_a_path_all_is_done_at_once(void **state)
{
    struct scribe *scribe;
    enum scribe_found found;
    struct answer answer = {0};

    (void)state;
    assert_int_equal(scribe_open("", &scope, &scribe, &found, NULL), 0);
    assert_int_equal(found, SCRIBE_NOTHING);
    add_key(scribe, RECORD_CONDEMNED, 1);
    scribe_commit(scribe, take_answer, &answer);
    assert_int_equal(answer.times, 1);
    assert_true(answer.written);
    assert_true(pthread_equal(answer.thread, pthread_self()));
    add_key(scribe, RECORD_ATTEMPTED, 2);
    scribe_commit(scribe, NULL, NULL);
    assert_true(scribe_is_written(scribe));
    pass(7200);
    scribe_tick(scribe);
    assert_true(scribe_ran(scribe) >= 7200);
    assert_string_equal(scribe_path(scribe), "");
    scribe_release(scribe_hold(scribe));
    scribe_release(scribe);
}

/* ---- a disk that hangs ---- */

static void nobody_waits_for_a_hung_disk_for_more_than_two_seconds(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer first = {0};
    struct answer second = {0};
    struct answer third = {0};

    set_disk(true, 0);
    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, take_answer, &first);
    await_writes(&disk.begun, 1);
    scribe_tick(scribe);
    assert_int_equal(times(&first), 0);
    pass(1);
    add_key(scribe, RECORD_ATTEMPTED, 2); /* does not block */
    scribe_commit(scribe, take_answer, &second);
    pass(1);
    scribe_tick(scribe);
    assert_answered(&first, false);
    assert_int_equal(times(&second), 0);
    pass(1);
    scribe_tick(scribe);
    assert_answered(&second, false);
    add_key(scribe, RECORD_ATTEMPTED, 3);
    scribe_commit(scribe, take_answer, &third);
    scribe_tick(scribe);
    assert_answered(&third, false);
    assert_false(scribe_is_written(scribe));
    assert_int_equal(logged(room, "record_file was not written within 2 s"), 1);
    set_disk(false, 0);
    await_log(room, "record_file is written again");
    while (!scribe_is_written(scribe))
        look_again();
    assert_int_equal(keys_in(room->path, NULL), 3);
    assert_int_equal(times(&first) + times(&second) + times(&third), 3);
    scribe_release(scribe);
}

static void a_hung_disk_holds_up_no_release(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer answer = {0};

    set_disk(true, 0);
    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, take_answer, &answer);
    await_writes(&disk.begun, 1);
    add_key(scribe, RECORD_ATTEMPTED, 2);
    scribe_commit(scribe, NULL, NULL);
    scribe_release(scribe);
    assert_int_equal(times(&answer), 0);
    set_disk(false, 0);
    assert_answered(&answer, true);
    await_threads(room);
    assert_int_equal(keys_in(room->path, NULL), 2);
}

/* ---- a disk that fails ---- */

static void a_failing_disk_is_told_of_once_and_tried_again(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer answers[3] = {{0}};

    pass(1000); /* so that the pause between two attempts never ends by itself */
    set_disk(false, EIO);
    for (uint32_t i = 0; i < 3; i++) { /* each that is waited for is worth an attempt */
        add_key(scribe, RECORD_ATTEMPTED, 1 + i);
        scribe_commit(scribe, take_answer, &answers[i]);
        await_writes(&disk.passed, 1 + i);
    }
    await_log(room, "Input/output error");
    for (size_t i = 0; i < 3; i++) /* the second failure is enough: no time has to pass */
        assert_answered(&answers[i], false);
    assert_false(scribe_is_written(scribe));
    while (entries(room->folder) > 0) /* the last attempt's bytes are on their way out */
        look_again();
    set_disk(false, 0);
    must_write(scribe, 4);
    assert_true(scribe_is_written(scribe));
    assert_int_equal(keys_in(room->path, NULL), 4);
    assert_int_equal(logged(room, "record_file cannot be written"), 1);
    assert_int_equal(logged(room, "record_file was not written within"), 0);
    assert_int_equal(logged(room, "record_file is written again"), 1);
    set_disk(false, EIO);
    add_key(scribe, RECORD_ATTEMPTED, 5);
    scribe_commit(scribe, take_answer, &(struct answer){0});
    while (logged(room, "record_file cannot be written") < 2)
        look_again();
    set_disk(false, 0);
    must_write(scribe, 6);
    scribe_release(scribe);
}

static void it_is_tried_again_unasked(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer answer = {0};

    set_disk(false, EROFS);
    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, take_answer, &answer);
    await_log(room, "Read-only file system");
    set_disk(false, 0);
    await_log(room, "record_file is written again"); /* some 5 s */
    assert_answered(&answer, true);
    assert_int_equal(keys_in(room->path, NULL), 1);
    scribe_release(scribe);
}

static void a_failing_disk_ends_with_the_last_holder(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer answer = {0};

    set_disk(false, EIO);
    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, take_answer, &answer);
    await_log(room, "Input/output error");
    scribe_release(scribe);
    assert_answered(&answer, false);
    await_threads(room);
    assert_int_equal(entries(room->folder), 0);
}

static bool mount_small(const struct room *room)
{
    if (mount("scribe", room->folder, "tmpfs", 0, "size=64k,mode=0755") == 0)
        return true;
    print_message("skipped: no tmpfs can be mounted here: %s\n", strerror(errno));
    return false;
}

static void a_full_disk_leaves_the_record_and_the_one_before(void **state)
{
    static char much[60000];
    const struct room *room = *state;
    struct scribe *scribe;
    struct answer answer = {0};
    char filler[96];
    int fd;

    if (!mount_small(room))
        skip();
    scribe = opened(room, SCRIBE_NOTHING);
    must_write(scribe, 1);
    must_write(scribe, 2);
    (void)snprintf(filler, sizeof filler, "%s/filler", room->folder);
    fd = open(filler, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    while (write(fd, much, sizeof much) > 0)
        ;
    (void)close(fd);
    add_key(scribe, RECORD_ATTEMPTED, 3);
    scribe_commit(scribe, take_answer, &answer);
    await_log(room, "No space left on device");
    pass(2);
    scribe_tick(scribe);
    assert_answered(&answer, false);
    assert_int_equal(keys_in(room->path, NULL), 2);
    assert_int_equal(keys_in(room->copy, NULL), 1);
    assert_int_equal(entries(room->folder), 3);
    assert_int_equal(unlink(filler), 0);
    must_write(scribe, 4);
    assert_int_equal(keys_in(room->path, NULL), 4);
    assert_int_equal(keys_in(room->copy, NULL), 2);
    scribe_release(scribe);
    await_threads(room);
}

/* ---- from within an answer ---- */

struct chain {
    struct scribe *scribe;
    uint32_t next;
    struct answer answer;
};

static void go_on(void *context, bool written)
{
    struct chain *chain = context;

    must(written);
    if (chain->next == 5) {
        scribe_release(chain->scribe); /* the last */
        take_answer(&chain->answer, written);
        return;
    }
    add_key(chain->scribe, RECORD_ATTEMPTED, chain->next++);
    scribe_commit(chain->scribe, go_on, chain);
}

static void an_answer_may_commit_and_release(void **state)
{
    const struct room *room = *state;
    struct chain chain = {opened(room, SCRIBE_NOTHING), 1, {0}};

    (void)scribe_edit(chain.scribe);
    scribe_commit(chain.scribe, go_on, &chain);
    assert_answered(&chain.answer, true);
    await_threads(room);
    assert_int_equal(keys_in(room->path, NULL), 4);
    assert_int_equal(writes(), 5);
}

static void release(void *context, bool written)
{
    assert_false(written);
    scribe_release(context);
}

static void the_last_release_may_come_from_a_tick(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    set_disk(true, 0);
    (void)scribe_edit(scribe);
    scribe_commit(scribe, release, scribe);
    await_writes(&disk.begun, 1);
    pass(2);
    scribe_tick(scribe);
    set_disk(false, 0);
    await_threads(room);
    assert_int_equal(keys_in(room->path, NULL), 0);
}

static void look_at_signals(void *context, bool written)
{
    struct answer *answer = context;
    sigset_t blocked;

    (void)pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    take_answer(answer, written && sigismember(&blocked, SIGTERM) && sigismember(&blocked, SIGINT));
}

static void signals_are_not_for_the_scribe(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer answer = {0};
    sigset_t blocked;

    (void)scribe_edit(scribe);
    scribe_commit(scribe, look_at_signals, &answer);
    assert_answered(&answer, true);
    assert_false(pthread_equal(answer.thread, pthread_self()));
    (void)pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    assert_false(sigismember(&blocked, SIGTERM));
    scribe_release(scribe);
}

/* ---- many at once ---- */

enum { CALLERS = 4, CALLS = 50 };

struct caller {
    struct scribe *scribe;
    uint32_t first;
    pthread_t thread;
};

static void *call(void *context)
{
    struct caller *caller = context;

    for (uint32_t i = 0; i < CALLS; i++) {
        struct record_key key = key_of(&scope, RECORD_CONDEMNED, caller->first + i);
        struct answer answer = {0};

        if (record_put(scribe_edit(caller->scribe), &key) != 0)
            abort();
        scribe_commit(caller->scribe, take_answer, &answer);
        (void)scribe_ran(caller->scribe);
        scribe_tick(caller->scribe);
        assert_answered(&answer, true);
    }
    scribe_release(caller->scribe);
    return NULL;
}

static void many_may_call_at_once(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct caller callers[CALLERS];

    for (uint32_t i = 0; i < CALLERS; i++) {
        callers[i] = (struct caller){scribe_hold(scribe), 1 + i * CALLS, 0};
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call, &callers[i]), 0);
    }
    scribe_release(scribe);
    for (size_t i = 0; i < CALLERS; i++)
        (void)pthread_join(callers[i].thread, NULL);
    await_threads(room);
    assert_int_equal(keys_in(room->path, NULL), CALLERS * CALLS);
    print_message("%d commits, %zu writes\n", CALLERS * CALLS, writes());
}

/* ---- running time ---- */

static void the_running_time_goes_on_from_the_record(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe;
    OWNED(record_close) struct record record;
    enum scribe_found found;

    write_record(room->path, &scope, 1);
    scribe = opened(room, SCRIBE_RECORD);
    pass(50);
    assert_true(scribe_ran(scribe) >= 150 && scribe_ran(scribe) < 3600);
    must_write(scribe, 2);
    assert_int_equal(scribe_read(room->path, &scope, &record, &found, NULL), 0);
    assert_true(record.ran >= 150 && record.ran < 3600);
    scribe_release(scribe);
}

static void it_is_written_hourly_while_something_is_condemned(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    must_write(scribe, 1);
    pass(3600);
    scribe_tick(scribe);
    scribe_release(scribe);
    await_threads(room);
    assert_int_equal(writes(), 1);
    write_state(room->path, &scope, RECORD_CONDEMNED, 2);
    scribe = opened(room, SCRIBE_RECORD);
    for (size_t hour = 1; hour < 4; hour++) {
        pass(3600);
        scribe_tick(scribe);
        await_writes(&disk.passed, 2 * hour);
        must_write(scribe, 1); /* the hour begins anew with each write */
        scribe_tick(scribe);
    }
    pass(3000);
    scribe_tick(scribe);
    scribe_release(scribe);
    await_threads(room);
    assert_int_equal(writes(), 1 + 2 * 3);
}

/* ---- what is found ---- */

enum thing { ABSENT, GOOD, OTHER, CUT, EMPTY, NEWER, FOREIGN, LINK, FIFO, FOLDER };

static void cut(const char *path)
{
    struct stat status;

    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(truncate(path, status.st_size / 2), 0);
}

/* A digest that is right, of a document for other readers. */
static void write_newer(const char *path)
{
    static const char text[] =
        "{\"min_reader\":9,\"spire_hsm_record\":9,\"sha256\":"
        "\"5281bade614f6b0fb46d7d796589fee5d9affcfd8ade2ab493bd853b66e3f11c\"}";

    write_file(path, text, sizeof text - 1);
}

static void make(const char *path, enum thing thing, uint32_t generation)
{
    if (thing == GOOD || thing == CUT || thing == FOREIGN)
        write_record(path, &scope, generation);
    if (thing == OTHER)
        write_record(path, &other_scope, generation);
    if (thing == CUT)
        cut(path);
    if (thing == EMPTY)
        write_file(path, "", 0);
    if (thing == NEWER)
        write_newer(path);
    if (thing == FOREIGN)
        assert_int_equal(chown(path, 4711, 4711), 0);
    if (thing == LINK)
        assert_int_equal(symlink("/dev/null", path), 0);
    if (thing == FIFO)
        assert_int_equal(mkfifo(path, 0600), 0);
    if (thing == FOLDER)
        assert_int_equal(mkdir(path, 0700), 0);
}

static void clear(const char *path)
{
    if (unlink(path) != 0)
        (void)rmdir(path);
}

static const struct {
    enum thing file;
    enum thing copy;
    enum scribe_found found;
    uint32_t generation; /* of the record that is used: 1 is the file, 2 the copy */
    const char *says[4]; /* in the refusal, or, if something is used, in the log */
    bool refused;
} finds[] = {
    {ABSENT, ABSENT, SCRIBE_NOTHING, 0, {NULL}, false},
    {GOOD, ABSENT, SCRIBE_RECORD, 1, {NULL}, false},
    {GOOD, GOOD, SCRIBE_RECORD, 1, {NULL}, false},
    {GOOD, CUT, SCRIBE_RECORD, 1, {NULL}, false},
    {GOOD, NEWER, SCRIBE_RECORD, 1, {NULL}, false},
    {OTHER, ABSENT, SCRIBE_NOTHING, 0, {NULL}, false},
    {OTHER, GOOD, SCRIBE_NOTHING, 0, {NULL}, false},
    {ABSENT, GOOD, SCRIBE_RECORD, 2, {"record_file is missing", "id.keys~"}, false},
    {ABSENT, OTHER, SCRIBE_NOTHING, 0, {"record_file is missing", "id.keys~"}, false},
    {CUT,
     GOOD,
     SCRIBE_RECORD,
     2,
     {"is damaged: its end is missing", "id.keys\\\"", "id.keys~", "the copy beside it is used"},
     false},
    {EMPTY, GOOD, SCRIBE_RECORD, 2, {"is empty", "id.keys~"}, false},
    {CUT,
     ABSENT,
     SCRIBE_NOTHING,
     0,
     {"record_file \"", "is damaged: its end is missing", "its copy \"", "\" is missing: restore"},
     true},
    {CUT,
     OTHER,
     SCRIBE_NOTHING,
     0,
     {"its end is missing", "knows nothing of this server", "remove both"},
     true},
    {CUT, CUT, SCRIBE_NOTHING, 0, {"record_file \"", "; its copy \"", "remove both"}, true},
    {EMPTY, EMPTY, SCRIBE_NOTHING, 0, {"\" is empty; its copy", "\" is empty: restore"}, true},
    {ABSENT, CUT, SCRIBE_NOTHING, 0, {"\" is missing; its copy", "is damaged"}, true},
    {CUT, FOREIGN, SCRIBE_NOTHING, 0, {"its copy \"", "belongs to user 4711"}, true},
    {NEWER,
     GOOD,
     SCRIBE_NOTHING,
     0,
     {"record_file \"", "its min_reader is 9", "install the newer version again"},
     true},
    {CUT, NEWER, SCRIBE_NOTHING, 0, {"its end is missing", "its min_reader is 9"}, true},
    {ABSENT, NEWER, SCRIBE_NOTHING, 0, {"its min_reader is 9"}, true},
    {FOREIGN,
     GOOD,
     SCRIBE_NOTHING,
     0,
     {"record_file \"", "belongs to user 4711: it must be of the user who runs us"},
     true},
    {LINK, GOOD, SCRIBE_NOTHING, 0, {"record_file \"", "is a symbolic link"}, true},
    {FIFO, GOOD, SCRIBE_NOTHING, 0, {"record_file \"", "is not a regular file"}, true},
    {FOLDER, GOOD, SCRIBE_NOTHING, 0, {"record_file \"", "is not a regular file"}, true},
};

static void assert_says(size_t row, const char *text)
{
    for (size_t i = 0; i < 4 && finds[row].says[i]; i++)
        if (!strstr(text, finds[row].says[i]))
            fail_msg("row %zu: \"%s\" does not say \"%s\"", row, text, finds[row].says[i]);
}

/* Only what cannot be read by anybody may be given up for lost. */
static bool is_damage(size_t row)
{
    return finds[row].refused && finds[row].file <= EMPTY && finds[row].copy <= EMPTY;
}

static void check_find(const struct room *room, size_t row)
{
    OWNED(record_close) struct record record;
    char code[RECORD_CODE + 1];
    enum scribe_found found = SCRIBE_NOTHING;
    struct fault fault = {0};
    char log[4096] = "";

    record_open(&scope, &record);
    if (scribe_is_damaged(room->path, &scope, code) != is_damage(row))
        fail_msg("row %zu: damaged or not", row);
    assert_int_equal(ftruncate(room->log, 0), 0);
    if (scribe_read(room->path, &scope, &record, &found, &fault) != 0) {
        if (!finds[row].refused)
            fail_msg("row %zu: %s", row, fault.message);
        assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
        assert_says(row, fault.message);
        return;
    }
    if (finds[row].refused || found != finds[row].found)
        fail_msg("row %zu: found %d", row, found);
    assert_int_equal(record.count, finds[row].generation > 0);
    if (record.count > 0)
        assert_int_equal(record.keys[0].label.generation, finds[row].generation);
    assert_true(pread(room->log, log, sizeof log - 1, 0) >= 0);
    assert_says(row, log);
    if (!finds[row].says[0])
        assert_string_equal(log, "");
}

static void the_file_or_the_one_before_it_or_neither(void **state)
{
    const struct room *room = *state;

    for (size_t i = 0; i < sizeof finds / sizeof finds[0]; i++) {
        if ((finds[i].file == FOREIGN || finds[i].copy == FOREIGN) && geteuid() != 0) {
            print_message("row %zu left out: not root\n", i);
            continue;
        }
        make(room->path, finds[i].file, 1);
        make(room->copy, finds[i].copy, 2);
        check_find(room, i);
        clear(room->path);
        clear(room->copy);
    }
}

static void an_open_that_is_refused_changes_nothing(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = NULL;
    enum scribe_found found;
    struct fault fault;

    make(room->path, CUT, 1);
    assert_int_equal(scribe_open(room->path, &scope, &scribe, &found, &fault), -1);
    assert_null(scribe);
    assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
    assert_int_equal(entries(room->folder), 1);
    assert_int_equal(keys_in(room->path, NULL), -1);
}

static void a_code_stands_for_what_is_left_of_both_files(void **state)
{
    const struct room *room = *state;
    char codes[4][RECORD_CODE + 1];

    for (size_t i = 0; i < 4; i++) {
        make(room->path, i == 0 ? EMPTY : CUT, i == 1 ? 1 : 2);
        make(room->copy, i == 3 ? EMPTY : CUT, 1);
        assert_true(scribe_is_damaged(room->path, &scope, codes[i]));
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(codes[i], codes[k]);
    }
    assert_false(scribe_is_damaged("", &scope, codes[0]));
}

static void a_damaged_record_can_begin_anew(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = NULL;
    char code[RECORD_CODE + 1];
    struct fault fault;

    make(room->path, CUT, 1);
    make(room->copy, CUT, 2);
    assert_int_equal(scribe_open_anew(room->path, &scope, &scribe, &fault), 0);
    assert_true(scribe_is_damaged(room->path, &scope, code));
    must_write(scribe, 3);
    assert_int_equal(keys_in(room->path, NULL), 1);
    assert_false(scribe_is_damaged(room->path, &scope, code));
    must_write(scribe, 4);
    assert_int_equal(keys_in(room->copy, NULL), 1);
    scribe_release(scribe);
}

/* Else a second crash finds two bad files. */
static void a_damaged_record_never_replaces_the_good_copy(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe;

    make(room->path, CUT, 1);
    make(room->copy, GOOD, 2);
    scribe = opened(room, SCRIBE_RECORD);
    must_write(scribe, 3);
    assert_int_equal(keys_in(room->path, NULL), 2);
    assert_int_equal(keys_in(room->copy, NULL), 1);
    must_write(scribe, 4);
    assert_int_equal(keys_in(room->copy, NULL), 2);
    scribe_release(scribe);
}

static mode_t mode_of(const char *path)
{
    struct stat status;

    assert_int_equal(stat(path, &status), 0);
    return status.st_mode & 07777;
}

static void a_mode_that_is_too_wide_is_mended(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe;
    struct record record;
    enum scribe_found found;

    make(room->path, GOOD, 1);
    assert_int_equal(chmod(room->path, 0664), 0);
    assert_int_equal(scribe_read(room->path, &scope, &record, &found, NULL), 0);
    record_close(&record);
    assert_int_equal(mode_of(room->path), 0664);
    assert_int_equal(logged(room, "WARN"), 0);
    scribe = opened(room, SCRIBE_RECORD);
    assert_int_equal(mode_of(room->path), 0600);
    assert_int_equal(logged(room, "others had access to record_file"), 1);
    assert_int_equal(logged(room, "0664"), 1);
    scribe_release(scribe);
    assert_int_equal(chmod(room->path, 0400), 0);
    scribe_release(opened(room, SCRIBE_RECORD));
    assert_int_equal(mode_of(room->path), 0400);
}

static void other_scopes_stay_in_the_file(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe;
    OWNED(record_close) struct record record;
    enum scribe_found found;

    make(room->path, OTHER, 5);
    scribe = opened(room, SCRIBE_NOTHING);
    must_write(scribe, 1);
    assert_int_equal(scribe_read(room->path, &other_scope, &record, &found, NULL), 0);
    assert_int_equal(found, SCRIBE_RECORD);
    assert_int_equal(record.count, 1);
    assert_int_equal(record.keys[0].label.generation, 5);
    scribe_release(scribe);
}

static void the_identity_can_be_read_from_it(void **state)
{
    const struct room *room = *state;
    uint8_t identity[CONFIG_IDENTITY_MAX];
    struct fault fault = {0};
    size_t length = 0;

    assert_int_equal(scribe_identity(room->path, "example.org", identity, &length, &fault), -1);
    assert_int_equal(fault.code, FAULT_NOT_FOUND);
    make(room->path, OTHER, 1);
    assert_int_equal(scribe_identity(room->path, "example.org", identity, &length, &fault), 0);
    assert_int_equal(length, 3);
    assert_memory_equal(identity, "abc", 3);
    cut(room->path);
    assert_int_equal(scribe_identity(room->path, "example.org", identity, &length, &fault), -1);
    assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
}

/* ---- kill -9 ---- */

enum { KILLS = 40 };

static int reports;

static void report(void *context, bool written)
{
    (void)context;
    if (!written || write(reports, "", 1) != 1)
        _exit(1);
}

static void write_until_killed(const struct room *room)
{
    struct scribe *scribe;
    enum scribe_found found;

    if (scribe_open(room->path, &scope, &scribe, &found, NULL) != 0)
        _exit(1);
    for (;;) {
        (void)scribe_edit(scribe);
        scribe_commit(scribe, report, NULL);
        (void)sched_yield();
    }
}

static void a_kill_leaves_what_was_acknowledged(void **state)
{
    const struct room *room = *state;
    uint64_t before = 0;

    for (int i = 0; i < KILLS; i++) {
        uint64_t written = 0;
        int ends[2];
        pid_t child;
        char byte;

        assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
        reports = ends[1];
        child = fork();
        if (child == 0)
            write_until_killed(room);
        (void)close(ends[1]);
        for (int k = 0; k <= i % 4; k++)
            assert_int_equal(read(ends[0], &byte, 1), 1);
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        (void)close(ends[0]);
        assert_int_equal(keys_in(room->path, &written), 0);
        assert_true(written >= before + 1);
        assert_true(keys_in(room->copy, NULL) == 0 || access(room->copy, F_OK) != 0);
        before = written;
    }
    print_message("%d kills, %llu writes\n", KILLS, (unsigned long long)before);
}

static void *nothing(void *context)
{
    return context;
}

/* The thread sanitizer starts one of its own with the first, which is not to be waited for. */
static int start_a_thread(void **state)
{
    pthread_t thread;

    (void)state;
    return pthread_create(&thread, NULL, nothing, NULL) == 0 ? pthread_join(thread, NULL) : -1;
}

#define IN_ROOM(test) cmocka_unit_test_setup_teardown(test, make_room, remove_room)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_ROOM(opening_writes_nothing),
        IN_ROOM(who_waits_is_told_when_it_is_on_the_disk),
        IN_ROOM(the_record_before_stays_beside_it),
        IN_ROOM(without_links_there_is_no_copy_and_no_word),
        IN_ROOM(a_copy_that_is_the_same_file_leaves_nothing_beside),
        IN_ROOM(what_a_killed_process_left_is_removed),
        IN_ROOM(one_write_answers_all_who_wait),
        IN_ROOM(what_nobody_waits_for_goes_with_the_next),
        IN_ROOM(what_is_left_is_written_at_the_end),
        IN_ROOM(without_a_path_all_is_done_at_once),
        IN_ROOM(nobody_waits_for_a_hung_disk_for_more_than_two_seconds),
        IN_ROOM(a_hung_disk_holds_up_no_release),
        IN_ROOM(a_failing_disk_is_told_of_once_and_tried_again),
        IN_ROOM(it_is_tried_again_unasked),
        IN_ROOM(a_failing_disk_ends_with_the_last_holder),
        IN_ROOM(a_full_disk_leaves_the_record_and_the_one_before),
        IN_ROOM(an_answer_may_commit_and_release),
        IN_ROOM(the_last_release_may_come_from_a_tick),
        IN_ROOM(signals_are_not_for_the_scribe),
        IN_ROOM(many_may_call_at_once),
        IN_ROOM(the_running_time_goes_on_from_the_record),
        IN_ROOM(it_is_written_hourly_while_something_is_condemned),
        IN_ROOM(the_file_or_the_one_before_it_or_neither),
        IN_ROOM(an_open_that_is_refused_changes_nothing),
        IN_ROOM(a_code_stands_for_what_is_left_of_both_files),
        IN_ROOM(a_damaged_record_can_begin_anew),
        IN_ROOM(a_damaged_record_never_replaces_the_good_copy),
        IN_ROOM(a_mode_that_is_too_wide_is_mended),
        IN_ROOM(other_scopes_stay_in_the_file),
        IN_ROOM(the_identity_can_be_read_from_it),
        IN_ROOM(a_kill_leaves_what_was_acknowledged),
    };

    return cmocka_run_group_tests(tests, start_a_thread, NULL);
}
