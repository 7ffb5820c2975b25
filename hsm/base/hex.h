/* Bytes as hexadecimal text and back, in lower case alone: our texts are compared as text. */
#ifndef HSM_BASE_HEX_H
#define HSM_BASE_HEX_H

#include <stdbool.h>
#include <stddef.h>

/* `text` has room for 2 * length digits and a NUL. */
void hex_encode(const void *bytes, size_t length, char *text);

/* Reads 2 * length digits, and ignores the text behind them. Returns false if one is no digit; some
 * of `bytes` may then be written. */
bool hex_decode(const char *text, size_t length, void *bytes);

#endif
