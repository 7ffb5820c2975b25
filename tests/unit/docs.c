/* What docs/operating.md says the log says must be what the log says. (The option tables are
 * unit/config.c's.) */
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/scope.h"
#include "tests/support/source_text.h"

enum { PAGE_MAX = 1 << 16, SOURCES_MAX = 1 << 20 };

static const char heading[] = "\n## What to do when\n";
static const char of_another[] = "(SPIRE's own)"; /* behind a text that is not ours */

/* Strings as the compiler joins them: "a long "   "sentence" is one. */
static void join_strings(char *text)
{
    char *to = text;

    for (const char *at = text; *at != '\0'; at++) {
        const char *next = *at == '"' ? at + 1 + strspn(at + 1, " \n") : at;

        if (next > at + 1 && *next == '"')
            at = next;
        else
            *to++ = *at;
    }
    *to = '\0';
}

static char *sources(void)
{
    char *text = calloc(1, SOURCES_MAX);
    glob_t files;

    assert_non_null(text);
    assert_int_equal(glob("hsm/*.c", 0, NULL, &files), 0);
    assert_int_equal(glob("hsm/*/*.c", GLOB_APPEND, NULL, &files), 0);
    assert_int_equal(glob("plugin/*.c", GLOB_APPEND, NULL, &files), 0);
    assert_int_equal(glob("plugin/*/*.c", GLOB_APPEND, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++)
        append_file(files.gl_pathv[i], text, SOURCES_MAX);
    globfree(&files);
    join_strings(text);
    return text;
}

/* Without the blanks around it: they may stand in another string than the words. */
static const char *trim(char *part)
{
    size_t length;

    part += strspn(part, " ");
    length = strlen(part);
    while (length > 0 && part[length - 1] == ' ')
        part[--length] = '\0';
    return part;
}

/* Three dots in a quotation stand for what differs from case to case. */
static void must_be_said(const char *source, const char *quote)
{
    char text[256];
    char *rest = text;
    char *part;

    assert_in_range(snprintf(text, sizeof text, "%s", quote), 1, sizeof text - 1);
    while ((part = rest) != NULL) {
        rest = strstr(part, "...");
        if (rest) {
            *rest = '\0';
            rest += 3;
        }
        if (!strstr(source, trim(part)))
            fail_msg("docs/operating.md has the log say '%s', but no source has '%s'", quote, part);
    }
}

/* What is between backticks in a row's first column. Returns how many. */
static size_t check_row(const char *source, char *row)
{
    char *end = strchr(row + 1, '|');
    char *mark = row;
    size_t count = 0;

    assert_non_null(end);
    *end = '\0';
    if (strstr(row, of_another))
        return 0;
    while ((mark = strchr(mark, '`')) != NULL) {
        char *close = strchr(mark + 1, '`');

        assert_non_null(close);
        *close = '\0';
        must_be_said(source, mark + 1);
        mark = close + 1;
        count++;
    }
    return count;
}

static void every_text_that_the_page_quotes_is_in_the_sources(void **state)
{
    OWNED(scope_free) char *page = calloc(1, PAGE_MAX);
    OWNED(scope_free) char *source = NULL;
    size_t count = 0;
    char *rest;
    char *line;

    (void)state;
    go_home("README.md");
    assert_non_null(page);
    append_file("docs/operating.md", page, PAGE_MAX);
    source = sources();
    rest = strstr(page, heading);
    assert_non_null(rest);
    rest += strlen(heading);
    while ((line = strsep(&rest, "\n")) != NULL && strncmp(line, "## ", 3) != 0)
        if (line[0] == '|')
            count += check_row(source, line);
    assert_in_range(count, 15, 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_text_that_the_page_quotes_is_in_the_sources),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
