/* The table of crash points in plugin/keys/keymanager.h: each test it names is there, and runs. */
#include <glob.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/source_text.h"

enum { SOURCES_MAX = 1 << 21, NAME_MAX_BYTES = 128, ROWS_MIN = 20 };

static const char table[] = "plugin/keys/keymanager.h";

static void append_all(const char *pattern, char *text)
{
    glob_t found;

    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++)
        append_file(found.gl_pathv[i], text, SOURCES_MAX);
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
    go_home(table);
    append_file(table, text, SOURCES_MAX);
    append_all("tests/unit/*.c", sources);
    append_all("tests/hsm/*.c", sources);
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
