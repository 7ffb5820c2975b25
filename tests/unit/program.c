/* Finding, checking and opening the worker's program; and what is said when it does not start. */
#include "plugin/worker/program.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char right[] = "#!/bin/true\n";
static const char wrong[] = "#!/bin/false\n";

/* sha256sum of the two above. */
static const char right_sha256[] =
    "1b577383bcfb9f191c785497f4ac34a8fb546807bd1094ef65d0ce9a5a63423e";
static const char wrong_sha256[] =
    "022036a28655c76d3ac5e1584872c898d161687b7578de171ac3447b7447bf68";

static char folder[] = "/tmp/unit-program-XXXXXX";
static char path[sizeof folder + 32];

/* ---- files ---- */

static void write_to(int fd, const char *text)
{
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    assert_int_equal(close(fd), 0);
}

static void write_in_place(const char *text)
{
    write_to(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755), text);
}

/* As installers do: the old file lives on where it is open. */
static void replace(const char *text)
{
    (void)unlink(path);
    write_in_place(text);
}

static bool is_right(int fd)
{
    char text[sizeof right] = "";

    return pread(fd, text, sizeof text, 0) == sizeof right - 1 && strcmp(text, right) == 0;
}

/* ---- expectations ---- */

static int opens(void)
{
    struct fault fault = {.code = FAULT_NONE};
    int fd = -1;

    if (program_open(&fd, &fault) != 0)
        fail_msg("not opened: %s", fault.message);
    assert_int_equal(fault.code, FAULT_NONE);
    assert_true(is_right(fd));
    return fd;
}

/* In one sentence that has the path and these words. */
static void says(const struct fault *fault, enum fault_code code, const char *what)
{
    assert_int_equal(fault->code, code);
    assert_non_null(strstr(fault->message, path));
    if (!strstr(fault->message, what))
        fail_msg("no \"%s\" in: %s", what, fault->message);
    assert_null(strchr(fault->message, '\n'));
}

static void is_kept_out(const char *what)
{
    struct fault fault = {.code = FAULT_NONE};
    int fd = -7;

    assert_int_equal(program_open(&fd, &fault), -1);
    assert_int_equal(fd, -7);
    says(&fault, FAULT_FAILED_PRECONDITION, what);
    assert_int_equal(program_open(&fd, NULL), -1);
}

static void is_refused(int error, const char *what)
{
    struct fault fault = {.code = FAULT_NONE};

    assert_int_equal(program_refused(error, &fault), -1);
    says(&fault, FAULT_FAILED_PRECONDITION, what);
}

/* ---- opening ---- */

static void a_missing_program_is_told_with_where_it_must_lie(void **state)
{
    (void)state;
    (void)unlink(path);
    is_kept_out("No such file or directory; it must be beside spire-hsm and come from the same");
    replace(right);
    (void)opens();
}

static void another_program_is_told_with_both_digests(void **state)
{
    (void)state;
    replace(wrong);
    is_kept_out("is not the worker that this spire-hsm was built with");
    is_kept_out(right_sha256);
    is_kept_out(wrong_sha256);
    is_kept_out("install both programs from one build, unstripped and unchanged");
    replace("");
    is_kept_out("is not the worker");
    replace(right);
    (void)opens();
}

static void what_is_no_file_is_not_waited_for(void **state)
{
    (void)state;
    (void)unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    is_kept_out("is not a file");
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mkfifo(path, 0700), 0);
    is_kept_out("is not a file");
    replace(right);
    (void)opens();
}

static void the_right_program_is_opened_once_and_stays_open(void **state)
{
    int fd = opens();

    (void)state;
    assert_true(fd >= 16); /* clear of a worker's own */
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(opens(), fd);
    replace(wrong); /* an upgrade beside a running server */
    assert_int_equal(opens(), fd);
    (void)unlink(path);
    assert_int_equal(opens(), fd);
}

static void a_program_changed_in_place_is_kept_out_until_the_right_one_is_back(void **state)
{
    (void)state;
    (void)opens();
    write_in_place(wrong);
    is_kept_out("is not the worker");
    write_in_place(right);
    (void)opens();
    write_in_place(wrong);
    replace(right);
    (void)opens();
}

/* ---- refusals of the kernel ---- */

static void a_program_that_is_not_executable_is_told_with_its_mode(void **state)
{
    (void)state;
    assert_int_equal(chmod(path, 0640), 0);
    (void)opens();
    is_refused(EACCES, "is not executable (mode 0640): chmod 755 it");
    assert_int_equal(chmod(path, 0755), 0);
    is_refused(EACCES, "(mode 0755, or a security module of the system)");
    is_refused(EPERM, "may not be executed by user");
}

static void a_missing_loader_is_told(void **state)
{
    (void)state;
    (void)opens();
    is_refused(ENOENT, "its loader is missing, or /proc is not mounted");
    is_refused(ENOEXEC, "does not start: Exec format error");
}

static void what_passes_by_itself_is_no_matter_of_the_file(void **state)
{
    struct fault fault = {.code = FAULT_NONE};

    (void)state;
    (void)opens();
    assert_int_equal(program_refused(EAGAIN, &fault), -1);
    assert_int_equal(fault.code, FAULT_UNAVAILABLE);
    assert_null(strstr(fault.message, path));
}

static void a_refused_program_is_looked_for_anew(void **state)
{
    struct stat before;
    struct stat after;

    (void)state;
    (void)opens();
    (void)program_refused(EACCES, NULL);
    assert_int_equal(fstat(opens(), &before), 0);
    replace(right);
    (void)program_refused(EACCES, NULL);
    assert_int_equal(fstat(opens(), &after), 0);
    assert_true(before.st_ino != after.st_ino);

    replace(wrong); /* which is not taken in its place */
    (void)program_refused(EAGAIN, NULL);
    (void)opens();
}

/* ---- */

/* Each test begins with the right file in its place, and nothing opened yet: what is open is
 * spoilt, wherever its name has gone. */
static int afresh(void **state)
{
    char open_one[64];
    int fd;

    (void)state;
    if (program_open(&fd, NULL) == 0) {
        (void)snprintf(open_one, sizeof open_one, "/proc/self/fd/%d", fd);
        write_to(open(open_one, O_WRONLY | O_TRUNC | O_CLOEXEC), wrong);
    }
    replace(right);
    return 0;
}

static int prepare(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    (void)snprintf(path, sizeof path, "%s/spire-hsm-worker", folder);
    program_is(path, right_sha256);
    return 0;
}

static int clear_up(void **state)
{
    (void)state;
    (void)unlink(path);
    return rmdir(folder);
}

#define TEST(name) cmocka_unit_test_setup(name, afresh)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_missing_program_is_told_with_where_it_must_lie),
        TEST(another_program_is_told_with_both_digests),
        TEST(what_is_no_file_is_not_waited_for),
        TEST(the_right_program_is_opened_once_and_stays_open),
        TEST(a_program_changed_in_place_is_kept_out_until_the_right_one_is_back),
        TEST(a_program_that_is_not_executable_is_told_with_its_mode),
        TEST(a_missing_loader_is_told),
        TEST(what_passes_by_itself_is_no_matter_of_the_file),
        TEST(a_refused_program_is_looked_for_anew),
    };

    return cmocka_run_group_tests(tests, prepare, clear_up);
}
