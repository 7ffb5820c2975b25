/* Reading the project's own files, as source_text.h promises it. */
#include "tests/support/source_text.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SOURCES_MAX = 1 << 20 };

void go_home(const char *file)
{
    for (int up = 0; access(file, R_OK) != 0; up++) {
        assert_int_not_equal(up, 3);
        assert_int_equal(chdir(".."), 0);
    }
}

void append_file(const char *path, char *text, size_t room)
{
    size_t used = strlen(text);
    FILE *file = fopen(path, "r");

    assert_non_null(file);
    used += fread(text + used, 1, room - used - 1, file);
    assert_true(used < room - 1);
    text[used] = '\0';
    (void)fclose(file);
}

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

char *read_sources(void)
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
