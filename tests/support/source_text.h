/* The project's own files, read by tests that hold one of them against others. */
#ifndef TESTS_SOURCE_TEXT_H
#define TESTS_SOURCE_TEXT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* To the top folder, from wherever the test is started; `file` is one that is there. */
static inline void go_home(const char *file)
{
    for (int up = 0; access(file, R_OK) != 0; up++) {
        assert_int_not_equal(up, 3);
        assert_int_equal(chdir(".."), 0);
    }
}

/* The file behind the text, for which there are `room` bytes in all. */
static inline void append_file(const char *path, char *text, size_t room)
{
    size_t used = strlen(text);
    FILE *file = fopen(path, "r");

    assert_non_null(file);
    used += fread(text + used, 1, room - used - 1, file);
    assert_true(used < room - 1);
    text[used] = '\0';
    (void)fclose(file);
}

#endif
