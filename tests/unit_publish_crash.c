/* Whoever reads the file sees the old bytes or the new ones, whatever happens while it is
 * being replaced. */
#include "../plugin/publish.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "../hsm/clock.h"
#include "publish_scene.h"

enum { SIZE = 20000, KILLS = 60, STEPS_MAX = 400 };

static void leftovers_of_crashes_go_and_nothing_else(void **state)
{
    static const char *const ours[] = {".bundle.json.tmp-1-0123456789abcdef",
                                       ".bundle.json.tmp-99999999-ffffffffffffffff"};
    static const char *const others[] = {
        ".bundle.json.tmp-1-0123456789abcde",  ".bundle.json.tmp-1-0123456789abcdeff",
        ".bundle.json.tmp-x-0123456789abcdef", ".bundle.json.tmp--0123456789abcdef",
        ".bundle.json.tmp-1-0123456789ABCDEF", ".other.json.tmp-1-0123456789abcdef",
        "bundle.json.tmp-1-0123456789abcdef",  ".bundle.json.tmp-1",
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

/* Runs one publication up to its nth step in or out of the kernel and kills it there.
 * 1 = killed, 0 = it had ended before, -1 = this machine does not let us. */
static int kill_at_step(const struct scene *scene, int step)
{
    pid_t child = fork();
    int status = 0;

    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(2);
        (void)raise(SIGSTOP);
        _exit(publish_letter(scene, 'n') == 0 ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    for (int i = 0; WIFSTOPPED(status) && i < step; i++) {
        assert_int_equal(ptrace(PTRACE_SYSCALL, child, NULL, NULL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
    }
    if (!WIFSTOPPED(status))
        return WIFEXITED(status) && WEXITSTATUS(status) == 2 ? -1 : 0;
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    return 1;
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
        result = kill_at_step(scene, step);
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
        SCENE(a_reader_never_sees_half_a_file_while_publishers_are_killed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
