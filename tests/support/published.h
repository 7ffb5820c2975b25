/* What lies at the path of a published bundle. */
#ifndef TESTS_PUBLISHED_H
#define TESTS_PUBLISHED_H

#include <stddef.h>
#include <stdint.h>

/* Its text, ended with a zero; "" where there is none. The length. */
size_t read_published(const char *path, char *text, size_t size);

/* It is a SPIFFE bundle with this sequence number, or the test fails. */
void assert_published_sequence(const char *path, uint64_t sequence);

#endif
