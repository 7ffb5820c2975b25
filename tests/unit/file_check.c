/* Which files are trusted, and in which words others are refused. */
#include "hsm/base/file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { ROOT, US, SOMEBODY };

/* So that we are not root, whoever runs this. */
uid_t geteuid(void)
{
    return 1234;
}

static const struct {
    enum file_rule rule;
    mode_t mode;
    int owner;
    const char *wrong; /* NULL = trusted */
} rows[] = {
    {FILE_PIN, S_IFREG | 0400, US, NULL},
    {FILE_PIN, S_IFREG | 0640, ROOT, NULL},
    {FILE_PIN, S_IFREG | 0400, SOMEBODY,
     "belongs to user 4711, neither to root nor to the server's user"},
    {FILE_PIN, S_IFREG | 0404, US,
     "has mode 0404: other users must have no access, and its group must not write"},
    {FILE_PIN, S_IFREG | 01620, ROOT,
     "has mode 1620: other users must have no access, and its group must not write"},
    {FILE_PIN, S_IFREG | 0601, US,
     "has mode 0601: other users must have no access, and its group must not write"},
    {FILE_PIN, S_IFDIR | 0700, US, "is not a regular file"},
    {FILE_PIN, S_IFIFO | 0600, SOMEBODY, "is not a regular file"},
    {FILE_IDENTITY, S_IFREG | 0644, US, NULL},
    {FILE_IDENTITY, S_IFREG | 0600, ROOT, NULL},
    {FILE_IDENTITY, S_IFREG | 0600, SOMEBODY, "belongs to somebody else (user 4711)"},
    {FILE_IDENTITY, S_IFREG | 0660, US,
     "may be written by others (mode 0660): its content decides which keys are ours"},
    {FILE_IDENTITY, S_IFREG | 01602, US,
     "may be written by others (mode 1602): its content decides which keys are ours"},
    {FILE_IDENTITY, S_IFCHR | 0600, US, "is not a regular file"},
    {FILE_RECORD, S_IFREG | 0666, US, NULL},
    {FILE_RECORD, S_IFREG | 0600, ROOT, NULL},
    {FILE_RECORD, S_IFREG | 0600, SOMEBODY,
     "belongs to user 4711: it must belong to the server's user"},
    {FILE_RECORD, S_IFIFO | 0600, US, "is not a regular file"},
    {FILE_MODULE, S_IFREG | 0755, SOMEBODY, NULL},
    {FILE_MODULE, S_IFREG | 0775, ROOT, "can be written by its group or by everybody (mode 0775)"},
    {FILE_MODULE, S_IFREG | 01646, US, "can be written by its group or by everybody (mode 1646)"},
    {FILE_MODULE, S_IFDIR | 0755, ROOT, "is not a regular file"},
    {FILE_MODULE_FOLDER, S_IFDIR | 0755, SOMEBODY, NULL},
    {FILE_MODULE_FOLDER, S_IFDIR | 01777, ROOT, NULL},
    {FILE_MODULE_FOLDER, S_IFDIR | 0775, ROOT,
     "can be written by its group or by everybody (mode 0775), who could put another library "
     "there"},
    {FILE_MODULE_FOLDER, S_IFDIR | 0702, US,
     "can be written by its group or by everybody (mode 0702), who could put another library "
     "there"},
    {FILE_KEYS, S_IFREG | 0600, US, NULL},
    {FILE_KEYS, S_IFREG | 0400, ROOT, NULL},
    {FILE_KEYS, S_IFREG | 0600, SOMEBODY, "belongs to user 4711, neither to root nor to us"},
    {FILE_KEYS, S_IFREG | 0660, US, NULL},
    {FILE_KEYS, S_IFREG | 0604, US, "has mode 0604, but others must have no access: chmod 0600 it"},
    {FILE_KEYS, S_IFREG | 0602, ROOT,
     "has mode 0602, but others must have no access: chmod 0600 it"},
    {FILE_KEYS, S_IFIFO | 0600, US, "is not a regular file"},
};

static uid_t user_of(int owner)
{
    return owner == ROOT ? 0 : owner == US ? geteuid() : 4711;
}

static void each_rule_refuses_what_it_says(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct stat file = {.st_mode = rows[i].mode, .st_uid = user_of(rows[i].owner)};
        struct fault fault = {.code = FAULT_NONE};
        int result = file_check(rows[i].rule, &file, &fault, "the file \"%s\"", "/x");

        if ((result == 0) != (rows[i].wrong == NULL))
            fail_msg("row %zu was %s", i, result == 0 ? "accepted" : fault.message);
        if (result == 0)
            continue;
        assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
        assert_memory_equal(fault.message, "the file \"/x\" ", 14);
        assert_string_equal(fault.message + 14, rows[i].wrong);
    }
}

static void a_subject_that_is_too_long_is_cut(void **state)
{
    const struct stat file = {.st_mode = S_IFDIR};
    struct fault fault;
    char path[2 * FAULT_MESSAGE_MAX];

    (void)state;
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    assert_int_equal(file_check(FILE_PIN, &file, &fault, "PIN file %s", path), -1);
    assert_int_equal(strlen(fault.message), FAULT_MESSAGE_MAX - 1);
    assert_int_equal(file_check(FILE_PIN, &file, NULL, "PIN file %s", path), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_rule_refuses_what_it_says),
        cmocka_unit_test(a_subject_that_is_too_long_is_cut),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
