/* The table of crash points in plugin/keymanager.h names tests: they must be there, and run. */
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { SOURCES_MAX = 1 << 21, NAME_MAX_BYTES = 128, ROWS_MIN = 20 };

static const char table[] = "plugin/keymanager.h";

/* From wherever the test is started. */
static void go_home(void)
{
    for (int up = 0; access(table, R_OK) != 0; up++) {
        assert_int_not_equal(up, 3);
        assert_int_equal(chdir(".."), 0);
    }
}

static void append(const char *path, char *text)
{
    size_t used = strlen(text);
    FILE *file = fopen(path, "r");

    assert_non_null(file);
    used += fread(text + used, 1, SOURCES_MAX - used - 1, file);
    assert_true(used < SOURCES_MAX - 1);
    text[used] = '\0';
    (void)fclose(file);
}

static void append_all(const char *pattern, char *text)
{
    glob_t found;

    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++)
        append(found.gl_pathv[i], text);
    globfree(&found);
}

static bool says(const char *text, const char *before, const char *name, const char *behind)
{
    char sought[2 * NAME_MAX_BYTES];

    (void)snprintf(sought, sizeof sought, "%s%s%s", before, name, behind);
    return strstr(text, sought) != NULL;
}

/* In C a test runs if it is in a list of tests, which is a macro's argument. */
static bool is_a_test(const char *sources, const char *name)
{
    if (strncmp(name, "Test", 4) == 0)
        return says(sources, "\nfunc ", name, "(t *testing.T) {\n");
    return says(sources, "\nstatic void ", name, "(void **state)\n") &&
           says(sources, "(", name, "),\n");
}

static void every_crash_point_has_a_test_that_runs(void **state)
{
    static char sources[SOURCES_MAX];
    static char text[SOURCES_MAX];
    unsigned rows = 0;

    (void)state;
    go_home();
    append(table, text);
    append_all("tests/*.c", sources);
    append_all("tests/peers/*/*_test.go", sources);
    for (const char *at = text; (at = strstr(at, " *     -> ")) != NULL; rows++) {
        char name[NAME_MAX_BYTES];

        at += strlen(" *     -> ");
        assert_int_equal(sscanf(at, "%127[A-Za-z0-9_]", name), 1);
        if (!is_a_test(sources, name))
            fail_msg("%s names the test %s, which is not there or does not run", table, name);
    }
    assert_true(rows >= ROWS_MIN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_crash_point_has_a_test_that_runs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
