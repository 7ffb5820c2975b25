/* Bytes as hexadecimal digits and back, for names of keys, digests and the record. */
#include "hsm/base/hex.h"

#include <stdint.h>

static const char digits[] = "0123456789abcdef";

void hex_encode(const void *bytes, size_t length, char *text)
{
    const uint8_t *from = bytes;

    for (size_t i = 0; i < length; i++) {
        *text++ = digits[from[i] >> 4];
        *text++ = digits[from[i] & 15];
    }
    *text = '\0';
}

/* Returns -1 for a character that is no hexadecimal digit. */
static int value_of(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

bool hex_decode(const char *text, size_t length, void *bytes)
{
    uint8_t *to = bytes;

    for (size_t i = 0; i < length; i++) {
        int high = value_of(text[2 * i]);
        int low = high < 0 ? -1 : value_of(text[2 * i + 1]);

        if (low < 0)
            return false;
        to[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}
