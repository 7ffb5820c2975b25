/* Turns one option's text into its value, and says what is wrong with it. Pure. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/config/config_private.h"

static bool is_digit(char byte)
{
    return byte >= '0' && byte <= '9';
}

static bool is_lower(char byte)
{
    return byte >= 'a' && byte <= 'z';
}

static bool is_letter(char byte)
{
    return is_lower(byte) || (byte >= 'A' && byte <= 'Z');
}

/* ---- numbers ---- */

bool value_integer(const char *text, int64_t *number)
{
    char *end;

    if (!is_digit(text[text[0] == '-']))
        return false;
    errno = 0;
    *number = strtoll(text, &end, 0);
    return *end == '\0' && errno == 0;
}

bool value_mode(const char *text, int64_t *mode)
{
    *mode = 0;
    if (text[0] == '\0' || strlen(text) > 5 || text[strspn(text, "01234567")] != '\0')
        return false;
    for (; *text != '\0'; text++)
        *mode = *mode * 8 + (*text - '0');
    return true;
}

static const struct {
    const char *name;
    int64_t nanoseconds;
} units[] = {
    {"ns", 1},
    {"us", 1000},
    {"\xc2\xb5s", 1000}, /* micro sign */
    {"\xce\xbcs", 1000}, /* mu */
    {"ms", 1000000},
    {"s", 1000000000},
    {"m", INT64_C(60000000000)},
    {"h", INT64_C(3600000000000)},
};

static bool read_unit(const char **text, int64_t *unit)
{
    size_t length = strcspn(*text, ".0123456789");

    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strlen(units[i].name) != length || memcmp(units[i].name, *text, length) != 0)
            continue;
        *text += length;
        *unit = units[i].nanoseconds;
        return true;
    }
    return false;
}

static bool read_whole(const char **text, int64_t *whole)
{
    for (*whole = 0; is_digit(**text); (*text)++)
        if (__builtin_mul_overflow(*whole, 10, whole) ||
            __builtin_add_overflow(*whole, **text - '0', whole))
            return false;
    return true;
}

/* Digits after the twelfth make less than a nanosecond in any unit. */
static double read_fraction(const char **text)
{
    double fraction = 0;
    double scale = 1;

    for (int count = 0; is_digit(**text); (*text)++, count++) {
        if (count >= 15)
            continue;
        fraction = fraction * 10 + (**text - '0');
        scale *= 10;
    }
    return fraction / scale;
}

/* One number with its unit, such as "1.5h". */
static bool read_part(const char **text, int64_t *nanoseconds)
{
    const char *begin = *text;
    double fraction = 0;
    int64_t whole;
    int64_t unit;
    size_t digits;

    if (!read_whole(text, &whole))
        return false;
    digits = (size_t)(*text - begin);
    if (**text == '.') {
        (*text)++;
        digits += is_digit(**text);
        fraction = read_fraction(text);
    }
    return digits > 0 && read_unit(text, &unit) &&
           !__builtin_mul_overflow(whole, unit, nanoseconds) &&
           !__builtin_add_overflow(*nanoseconds, (int64_t)(fraction * (double)unit + 0.5),
                                   nanoseconds);
}

bool config_duration(const char *text, int64_t *nanoseconds)
{
    int64_t part;

    *nanoseconds = 0;
    text += text[0] == '+';
    if (strcmp(text, "0") == 0)
        return true;
    if (*text == '\0')
        return false;
    while (*text != '\0')
        if (!read_part(&text, &part) || __builtin_add_overflow(*nanoseconds, part, nanoseconds))
            return false;
    return true;
}

const char *value_check_mode(int64_t mode)
{
    if ((mode & ~INT64_C(0777)) != 0)
        return "only the nine permission bits may be set (a number needs a leading 0: 0644)";
    if ((mode & 0002) != 0)
        return "nobody can trust a file that everyone may write";
    return (mode & 0600) == 0600 ? NULL : "its owner must be able to read and write the file";
}

/* ---- strings ---- */

/* Control characters are C0, DEL, and C1 in UTF-8. */
const char *value_check_text(const char *text)
{
    if (*text == '\0')
        return "is empty (leave out the option instead)";
    for (; *text != '\0'; text++) {
        unsigned char byte = (unsigned char)*text;

        if (byte < 0x20 || byte == 0x7f || (byte == 0xc2 && (unsigned char)text[1] < 0xa0))
            return "the text contains a control character";
    }
    return NULL;
}

const char *value_check_path(const char *text)
{
    if (text[0] != '/')
        return "expected an absolute path";
    return text[strlen(text) - 1] == '/' ? "expected a file, but this names a folder" : NULL;
}

const char *value_check_place(const char *text)
{
    if (text[0] != '/')
        return "expected an absolute path";
    return text[strlen(text) - 1] == '/' ? "expected no / at the end" : NULL;
}

const char *value_check_module(const char *text)
{
    if (text[0] == '/')
        return value_check_path(text);
    if (strchr(text, '/') || strcmp(text, ".") == 0 || strcmp(text, "..") == 0)
        return "expected an absolute path, or a file name without '/'";
    return NULL;
}

const char *value_check_variable(const char *text)
{
    bool fits = !is_digit(text[0]);

    for (; *text != '\0'; text++)
        fits = fits && (is_letter(*text) || is_digit(*text) || *text == '_');
    return fits ? NULL : "expected the name of an environment variable";
}

const char *value_check_code(const char *text)
{
    size_t digits = strspn(text, "0123456789abcdef");

    return digits == CONFIG_CODE_MAX && text[digits] == '\0'
               ? NULL
               : "expected the code of 8 characters from the refused start";
}

const char *value_check_trust_domain(const char *name)
{
    size_t length = strlen(name);

    if (length == 0 || length > CONFIG_TRUST_DOMAIN_MAX)
        return "must have 1 to 255 characters";
    for (; *name != '\0'; name++)
        if (!is_lower(*name) && !is_digit(*name) && !strchr("-._", *name))
            return "may contain only lower-case letters, digits, '.', '-' and '_'";
    return NULL;
}
