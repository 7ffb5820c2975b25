/* The project's own files, for tests that compare one of them with others.
 *
 * Call go_home() first: the tests may be started from anywhere below the top folder. Paths
 * are relative to the top folder from then on. */
#ifndef TESTS_SOURCE_TEXT_H
#define TESTS_SOURCE_TEXT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Goes to the top folder, which is where `file` is. */
void go_home(const char *file);

/* Appends the file to `text`, which ends with a NUL and has `room` bytes in all. Fails the
 * test if the file is absent or too long. */
void append_file(const char *path, char *text, size_t room);

/* All .c files of hsm/ and plugin/, one after the other; strings that the compiler joins are one
 * string. The caller frees it. */
char *read_sources(void);

#endif
