/* Base 64 (RFC 4648), with one spelling for each sequence of bytes: blanks, odd padding and stray
 * bits are refused. The bytes may be a secret: decoding leaves no copy behind. */
#ifndef HSM_BASE_BASE64_H
#define HSM_BASE_BASE64_H

#include <stddef.h>
#include <stdint.h>

enum base64 {
    BASE64_STANDARD, /* section 4, with padding: x5c */
    BASE64_URL,      /* section 5, without: all other members of a JWK */
};

/* A string, or NULL when memory is short. The caller's to free. */
char *base64_encode(enum base64 alphabet, const uint8_t *bytes, size_t length);

/* *length bytes, or NULL when `text` is not base 64. The caller's to free. */
uint8_t *base64_decode(enum base64 alphabet, const char *text, size_t *length);

#endif
