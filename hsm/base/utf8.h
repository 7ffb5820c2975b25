/* Text as protobuf, gRPC statuses and JSON demand it: well-formed UTF-8 (RFC 3629: no overlong
 * forms, no surrogates, nothing above U+10FFFF). Pure. */
#ifndef HSM_BASE_UTF8_H
#define HSM_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the character `text` begins with, 1 to 4; 0 if it begins with none. */
size_t utf8_character(const char *text, size_t length);

/* Is it all characters, and no NUL among them? */
bool utf8_is_text(const char *text, size_t length);

/* The length without half a character at the end, of a text that was cut at a byte. */
size_t utf8_whole(const char *text, size_t length);

/* Copies `text` into `copy`, with '?' for every byte that is no character and, unless
 * `controls`, for control characters; cut at a character when it does not fit. The
 * copy ends with NUL. */
void utf8_clean(const char *text, bool controls, char *copy, size_t size);

#endif
