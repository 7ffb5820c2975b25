/* OpenSSL does the work. Here is its alphabet for URLs, and a check that each text has one spelling
 * only. */
#include "hsm/base/base64.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>

#include "hsm/base/scope.h"
#include "hsm/base/wipe.h"

static void replace(char *text, char from, char to)
{
    for (char *at = strchr(text, from); at; at = strchr(at, from))
        *at = to;
}

char *base64_encode(enum base64 alphabet, const uint8_t *bytes, size_t length)
{
    char *text;

    if (length > INT_MAX / 2)
        return NULL;
    text = malloc((length + 2) / 3 * 4 + 1);
    if (!text)
        return NULL;
    (void)EVP_EncodeBlock((unsigned char *)text, bytes, (int)length);
    if (alphabet == BASE64_STANDARD)
        return text;
    replace(text, '+', '-');
    replace(text, '/', '_');
    text[strcspn(text, "=")] = '\0';
    return text;
}

/* As OpenSSL reads it: standard alphabet, a multiple of four. */
static char *spell_out(enum base64 alphabet, const char *text, size_t length)
{
    size_t padded = (length + 3) / 4 * 4;
    char *copy = malloc(padded + 1);

    if (!copy)
        return NULL;
    memcpy(copy, text, length);
    memset(copy + length, '=', padded - length);
    copy[padded] = '\0';
    if (alphabet == BASE64_URL) {
        replace(copy, '-', '+');
        replace(copy, '_', '/');
    }
    return copy;
}

/* OpenSSL skips blanks and stray bits in silence. Encoding the result again shows them. */
static int is_spelling(enum base64 alphabet, const char *text, const uint8_t *bytes, size_t length)
{
    OWNED(scope_wipe) char *again = base64_encode(alphabet, bytes, length);

    return again && strcmp(again, text) == 0;
}

uint8_t *base64_decode(enum base64 alphabet, const char *text, size_t *length)
{
    size_t given = strnlen(text, INT_MAX / 2);
    OWNED(scope_wipe) char *plain = given < INT_MAX / 2 ? spell_out(alphabet, text, given) : NULL;
    OWNED(scope_wipe) uint8_t *bytes = malloc(given + 4);
    uint8_t *result;
    size_t decoded;
    int got;

    if (!plain || !bytes)
        return NULL;
    got = EVP_DecodeBlock(bytes, (const unsigned char *)plain, (int)strlen(plain));
    if (got < 0)
        return NULL;
    decoded = (size_t)got;
    for (const char *end = plain + strlen(plain); end > plain && end[-1] == '=' && decoded > 0;
         end--)
        decoded--;
    if (!is_spelling(alphabet, text, bytes, decoded))
        return NULL;
    *length = decoded;
    result = bytes;
    bytes = NULL;
    return result;
}
