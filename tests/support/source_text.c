/* Reading the project's own files, as source_text.h promises it. */
#include "tests/support/source_text.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

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
