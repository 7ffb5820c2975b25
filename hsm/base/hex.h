/* Bytes as hexadecimal text and back, in lower case alone: our texts are compared as text. */
#ifndef HSM_BASE_HEX_H
#define HSM_BASE_HEX_H

#include <stdbool.h>
#include <stddef.h>

/* `text` has room for 2 * length digits and a NUL. */
void hex_encode(const void *bytes, size_t length, char *text);

/* Reads 2 * length digits; what stands behind them is not looked at. false: they are not all
 * digits, and then some of `bytes` may have been written. */
bool hex_decode(const char *text, size_t length, void *bytes);

#endif
