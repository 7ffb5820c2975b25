/* Whoever reads the file sees the old bytes or the new ones, whatever happens while it is
 * being replaced. */
#include "plugin/bundle/publish.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hsm/base/clock.h"
#include "tests/support/publish_scene.h"
#include "tests/support/traced.h"

enum { SIZE = 20000, KILLS = 60, STEPS_MAX = 400 };

static void leftovers_of_crashes_go_and_nothing_else(void **state)
{
    static const char *const ours[] = {".bundle.json.tmp-1-0123456789abcdef",
                                       ".bundle.json.tmp-99999999-ffffffffffffffff"};
    static const char *const others[] = {
        ".bundle.json.tmp-1-0123456789abcde",      ".bundle.json.tmp-1-0123456789abcdeff",
        ".bundle.json.tmp-x-0123456789abcdef",     ".bundle.json.tmp--0123456789abcdef",
        ".bundle.json.tmp-1-0123456789ABCDEF",     ".other.json.tmp-1-0123456789abcdef",
        "bundle.json.tmp-1-0123456789abcdef",      ".bundle.json.tmp-1",
        ".bundle.json.tmp-1-0123456789abcdef.bak",
    };
    const struct scene *scene = *state;
    char path[160];

    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", scene->directory, ours[i]);
        write_text(path, "half");
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", scene->directory, others[i]);
        write_text(path, "not ours");
    }
    assert_published(scene, "one", PUBLISH_WRITTEN);
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", scene->directory, ours[i]);
        assert_int_equal(access(path, F_OK), -1);
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", scene->directory, others[i]);
        assert_int_equal(access(path, F_OK), 0);
    }
}

/* Contents that show at once whether they are whole: SIZE times one letter. */
static int publish_letter(const struct scene *scene, char letter)
{
    static char bytes[SIZE];
    const struct publish job = {
        .path = scene->path, .bytes = bytes, .length = sizeof bytes, .mode = 0644};
    enum publish_outcome outcome;

    memset(bytes, letter, sizeof bytes);
    return publish_file(&job, &outcome, NULL);
}

static char read_letter(const struct scene *scene)
{
    static char bytes[SIZE + 1];
    int fd = open(scene->path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd >= 0 ? read(fd, bytes, sizeof bytes) : -1;

    if (fd >= 0)
        (void)close(fd);
    if (length != SIZE)
        fail_msg("a reader saw %zd bytes", length);
    for (size_t i = 1; i < SIZE; i++)
        if (bytes[i] != bytes[0])
            fail_msg("a reader saw a mixture at byte %zu", i);
    return bytes[0];
}

static bool publish_new(void *scene)
{
    return publish_letter(scene, 'n') == 0;
}

static void killed_between_any_two_steps_the_file_is_old_or_new(void **state)
{
    const struct scene *scene = *state;
    int result = 1;
    int old = 0;
    int new = 0;

    for (int step = 1; step < STEPS_MAX && result > 0; step++) {
        assert_int_equal(publish_letter(scene, 'o'), 0);
        assert_int_equal(count(scene, ".tmp-"), 0);
        result = traced_kill(publish_new, *state, step);
        if (result < 0) {
            print_message("skipped: tracing is not allowed here\n");
            skip();
        }
        if (read_letter(scene) == 'o')
            old++;
        else
            new ++;
    }
    assert_int_equal(result, 0);
    assert_int_equal(publish_letter(scene, 'x'), 0);
    assert_int_equal(count(scene, ".tmp-"), 0);
    assert_true(old > 20);
    assert_true(new > 1);
}

/* What is to outlive a power cut: first the bytes, then the name, then the directory's word
 * of it. */
static void a_file_gets_its_name_when_it_is_on_the_disk(void **state)
{
    pid_t child = traced_start(publish_new, *state);
    char steps[16] = "";

    if (child < 0) {
        print_message("skipped: tracing is not allowed here\n");
        skip();
    }
    while (traced_step(child)) {
        struct __ptrace_syscall_info info = {0};
        const char *known = "";

        assert_true(ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info) > 0);
        if (info.op != PTRACE_SYSCALL_INFO_ENTRY)
            continue;
        if (info.entry.nr == SYS_fsync)
            known = "s";
        if (info.entry.nr == SYS_renameat || info.entry.nr == SYS_renameat2)
            known = "r";
        assert_true(strlen(steps) + 1 < sizeof steps);
        (void)strcat(steps, known);
    }
    assert_string_equal(steps, "srs");
}

/* ---- the lock ---- */

/* How many descriptors of this process are the file. */
static int times_open(const char *path)
{
    struct stat wanted;
    struct stat found;
    int times = 0;

    assert_int_equal(stat(path, &wanted), 0);
    for (int fd = 0; fd < 64; fd++)
        if (fstat(fd, &found) == 0 && found.st_ino == wanted.st_ino &&
            found.st_dev == wanted.st_dev)
            times++;
    return times;
}

static int hold_lock(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    return fd;
}

static void wait_for_another(const char *lock)
{
    const int64_t end = clock_now() + 4 * CLOCK_SECOND;

    while (times_open(lock) < 2)
        if (clock_now() > end || sched_yield() != 0)
            fail_msg("the publisher does not wait for the lock");
}

static void *publish_aside(void *scene)
{
    assert_published(scene, "two", PUBLISH_WRITTEN);
    return NULL;
}

/* A lock file that was tidied away is locked by who waited for it, and by nobody else. */
static void a_lock_file_that_is_gone_locks_nothing(void **state)
{
    struct scene *scene = *state;
    char path[160];
    pthread_t thread;
    int first;
    int second;

    (void)snprintf(path, sizeof path, "%s/.bundle.json.lock", scene->directory);
    first = hold_lock(path);
    assert_int_equal(pthread_create(&thread, NULL, publish_aside, scene), 0);
    wait_for_another(path);
    assert_int_equal(unlink(path), 0);
    second = hold_lock(path);
    (void)close(first);
    wait_for_another(path);
    (void)close(second);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* Two processes publish as fast as they can and are killed at random, while we read. */
static pid_t start_publisher(const struct scene *scene, char first)
{
    pid_t child = fork();

    if (child != 0)
        return child;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0;; i++)
        if (publish_letter(scene, (char)(first + i % 10)) != 0)
            _exit(1);
}

/* Reads until the file has changed that often. */
static void watch_changes(const struct scene *scene, int changes, char *last)
{
    const int64_t end = clock_now() + 60 * CLOCK_SECOND;

    while (changes > 0) {
        char now = read_letter(scene);

        changes -= now != *last;
        *last = now;
        if (clock_now() > end)
            fail_msg("the publishers stand still");
    }
}

static void a_reader_never_sees_half_a_file_while_publishers_are_killed(void **state)
{
    const struct scene *scene = *state;
    unsigned seed = 1;
    pid_t publishers[2];
    char last = 'z';

    assert_int_equal(publish_letter(scene, last), 0);
    publishers[0] = start_publisher(scene, 'a');
    publishers[1] = start_publisher(scene, 'A');
    for (int kills = 0; kills < KILLS; kills++) {
        const struct timespec moment = {.tv_nsec = rand_r(&seed) % 2000000};
        size_t who = (size_t)kills % 2;
        int status;

        watch_changes(scene, 1 + rand_r(&seed) % 5, &last);
        (void)nanosleep(&moment, NULL);
        assert_int_equal(kill(publishers[who], SIGKILL), 0);
        assert_int_equal(waitpid(publishers[who], &status, 0), publishers[who]);
        assert_true(WIFSIGNALED(status));
        publishers[who] = start_publisher(scene, who == 0 ? 'a' : 'A');
    }
    for (size_t who = 0; who < 2; who++) {
        (void)kill(publishers[who], SIGKILL);
        (void)waitpid(publishers[who], NULL, 0);
    }
    assert_int_equal(publish_letter(scene, '!'), 0);
    assert_int_equal(read_letter(scene), '!');
    assert_int_equal(count(scene, ".tmp-"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCENE(leftovers_of_crashes_go_and_nothing_else),
        SCENE(killed_between_any_two_steps_the_file_is_old_or_new),
        SCENE(a_file_gets_its_name_when_it_is_on_the_disk),
        SCENE(a_lock_file_that_is_gone_locks_nothing),
        SCENE(a_reader_never_sees_half_a_file_while_publishers_are_killed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
