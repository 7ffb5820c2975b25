/* Which bytes are UTF-8 text. Names from a token or a peer may be anything, and logs and gRPC
 * demand UTF-8. */
#include "hsm/base/utf8.h"

#include <stdint.h>
#include <string.h>

/* The range of the second byte by the first (Unicode Standard, table 3-7). This range alone keeps
 * out overlong forms and surrogates. */
static const struct lead {
    uint8_t first;
    uint8_t last;
    uint8_t second_low;
    uint8_t second_high;
    size_t length;
} leads[] = {
    {0x00, 0x7f, 0x00, 0x00, 1}, {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
    {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
    {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
};

static const struct lead *lead_of(uint8_t byte)
{
    for (size_t i = 0; i < sizeof leads / sizeof leads[0]; i++)
        if (byte >= leads[i].first && byte <= leads[i].last)
            return &leads[i];
    return NULL;
}

size_t utf8_character(const char *text, size_t length)
{
    const struct lead *lead = length > 0 ? lead_of((uint8_t)text[0]) : NULL;

    if (!lead || lead->length > length)
        return 0;
    if (lead->length == 1)
        return 1;
    if ((uint8_t)text[1] < lead->second_low || (uint8_t)text[1] > lead->second_high)
        return 0;
    for (size_t i = 2; i < lead->length; i++)
        if (((uint8_t)text[i] & 0xc0) != 0x80)
            return 0;
    return lead->length;
}

bool utf8_is_text(const char *text, size_t length)
{
    size_t step;

    for (size_t at = 0; at < length; at += step) {
        step = utf8_character(text + at, length - at);
        if (step == 0 || text[at] == '\0')
            return false;
    }
    return true;
}

size_t utf8_whole(const char *text, size_t length)
{
    size_t start = length;

    while (start > 0 && length - start < 3 && ((uint8_t)text[start - 1] & 0xc0) == 0x80)
        start--;
    if (start > 0 && (uint8_t)text[start - 1] >= 0x80)
        start--;
    return start < length && utf8_character(text + start, length - start) == 0 ? start : length;
}

static bool is_control(char byte)
{
    return (unsigned char)byte < 0x20 || byte == 0x7f;
}

void utf8_clean(const char *text, bool controls, char *copy, size_t size)
{
    size_t length = strlen(text);
    size_t used = 0;
    size_t step;

    for (size_t at = 0; at < length; at += step) {
        bool keep;

        step = utf8_character(text + at, length - at);
        keep = step > 0 && (controls || !is_control(text[at]));
        if (step == 0)
            step = 1;
        if (used + step >= size)
            break;
        if (keep)
            memcpy(copy + used, text + at, step);
        else
            copy[used] = '?';
        used += keep ? step : 1;
    }
    copy[used] = '\0';
}
