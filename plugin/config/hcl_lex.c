/* The smallest parts of HCL: white space, comments, strings, heredocs, numbers, words. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/utf8.h"
#include "plugin/config/hcl_private.h"

/* Written for bytes, as <ctype.h> depends on the locale. */
static bool is_digit(int byte)
{
    return byte >= '0' && byte <= '9';
}

bool hcl_is_letter(int byte)
{
    return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || byte == '_';
}

static int digit_value(int byte)
{
    if (is_digit(byte))
        return byte - '0';
    if (byte >= 'a' && byte <= 'f')
        return byte - 'a' + 10;
    if (byte >= 'A' && byte <= 'F')
        return byte - 'A' + 10;
    return 16;
}

static int peek_ahead(const struct hcl_reader *r, size_t count)
{
    return r->length - r->at > count ? (unsigned char)r->text[r->at + count] : -1;
}

/* ---- between the tokens ---- */

static int skip_block_comment(struct hcl_reader *r)
{
    size_t begin = r->at + 2;
    const char *end = memmem(r->text + begin, r->length - begin, "*/", 2);

    if (!end)
        return hcl_refuse(r, r->line, "the comment that begins here has no end");
    for (; r->text + r->at < end; r->at++)
        r->line += r->text[r->at] == '\n';
    r->at += 2;
    return 0;
}

static int skip_comment(struct hcl_reader *r)
{
    int second = peek_ahead(r, 1);

    if (hcl_peek(r) == '/' && second == '*')
        return skip_block_comment(r);
    if (hcl_peek(r) == '/' && second != '/')
        return hcl_refuse(r, r->line, "expected a comment after '/'");
    while (hcl_peek(r) >= 0 && hcl_peek(r) != '\n')
        r->at++;
    return 0;
}

int hcl_skip(struct hcl_reader *r)
{
    for (;;) {
        int byte = hcl_peek(r);
        bool comment = (byte == '#' || byte == '/') && !r->json;

        if (comment && skip_comment(r) != 0)
            return -1;
        if (comment)
            continue;
        if (byte != ' ' && byte != '\t' && byte != '\r' && byte != '\n')
            return 0;
        r->line += byte == '\n';
        r->at++;
    }
}

/* ---- strings ---- */

static int refuse_interpolation(struct hcl_reader *r)
{
    return hcl_refuse(r, r->line, "\"${\" is not supported: the plugin does not replace variables");
}

static const struct {
    char name;
    char value;
    bool json; /* hcl v1 has no `\/` */
} escapes[] = {
    {'"', '"', true},  {'\\', '\\', true}, {'b', '\b', true},
    {'f', '\f', true}, {'n', '\n', true},  {'r', '\r', true},
    {'t', '\t', true}, {'a', '\a', false}, {'v', '\v', false},
};

static bool is_simple_escape(const struct hcl_reader *r, char *value)
{
    for (size_t i = 0; i < sizeof escapes / sizeof escapes[0]; i++) {
        if (hcl_peek(r) != escapes[i].name || (r->json && !escapes[i].json))
            continue;
        *value = escapes[i].value;
        return true;
    }
    return false;
}

static bool read_digits(struct hcl_reader *r, int base, size_t count, uint32_t *value)
{
    *value = 0;
    for (; count > 0; count--, r->at++) {
        int digit = digit_value(hcl_peek(r));

        if (digit >= base)
            return false;
        *value = *value * (uint32_t)base + (uint32_t)digit;
    }
    return true;
}

static size_t put_character(uint32_t code, char *to)
{
    static const uint32_t tops[] = {0x80, 0x800, 0x10000};
    static const unsigned char leads[] = {0, 0xc0, 0xe0, 0xf0};
    size_t more = 0;

    while (more < 3 && code >= tops[more])
        more++;
    to[0] = (char)(leads[more] | (code >> (6 * more)));
    for (size_t i = 1; i <= more; i++)
        to[i] = (char)(0x80 | ((code >> (6 * (more - i))) & 0x3f));
    return more + 1;
}

/* hcl v1 reads \x and octal numbers as bytes. For us, all bytes of a string together must be UTF-8.
 * Halves of a UTF-16 pair become U+FFFD, as there. */
static int read_numbered_escape(struct hcl_reader *r, char *to, size_t *length)
{
    int kind = hcl_peek(r);
    bool octal = kind >= '0' && kind <= '7';
    size_t digits = kind == 'U' ? 8 : kind == 'u' ? 4 : octal ? 3 : 2;
    uint32_t code;

    r->at += !octal;
    if (!read_digits(r, octal ? 8 : 16, digits, &code))
        return hcl_refuse(r, r->line, "an escape in a string has too few digits");
    if (code > (digits < 4 ? 0xff : 0x10ffff) || (code >= 0xd800 && code <= 0xdfff))
        return hcl_refuse(r, r->line, "an escape in a string names no character");
    if (digits >= 4) {
        *length += put_character(code, to + *length);
        return 0;
    }
    to[(*length)++] = (char)code;
    return 0;
}

static int read_escape(struct hcl_reader *r, char *to, size_t *length)
{
    int byte = peek_ahead(r, 1);

    r->at++;
    if (is_simple_escape(r, &to[*length])) {
        r->at++;
        *length += 1;
        return 0;
    }
    if (byte == 'u' || (!r->json && (byte == 'x' || byte == 'U' || (byte >= '0' && byte <= '7'))))
        return read_numbered_escape(r, to, length);
    return hcl_refuse(r, r->line, "a string contains an unknown escape");
}

static int read_string_byte(struct hcl_reader *r, char *to, size_t *length)
{
    int byte = hcl_peek(r);

    if (byte < 0 || byte == '\n')
        return hcl_refuse(r, r->line, "a string has no closing '\"'");
    if (byte == '$' && peek_ahead(r, 1) == '{')
        return refuse_interpolation(r);
    if (r->json && byte < ' ')
        return hcl_refuse(r, r->line, "a string contains a control character");
    if (byte == '\\')
        return read_escape(r, to, length);
    to[(*length)++] = r->text[r->at++];
    return 0;
}

static void keep_string(struct hcl_reader *r, size_t length, struct hcl_item *item)
{
    item->kind = HCL_STRING;
    item->length = length;
    item->text = hcl_keep_text(r, length);
}

int hcl_string(struct hcl_reader *r, struct hcl_item *item)
{
    char *to = hcl_room(r);
    size_t length = 0;

    r->at++;
    while (!hcl_take(r, '"'))
        if (read_string_byte(r, to, &length) != 0)
            return -1;
    if (!utf8_is_text(to, length))
        return hcl_refuse(r, r->line, "the escapes in a string do not form UTF-8 text");
    keep_string(r, length, item);
    return 0;
}

/* ---- heredocs ---- */

/* plugin_data needs no heredocs. But a server.conf may have one beside our block, and `spire-hsm
 * check` reads the whole file. */

struct heredoc {
    const char *anchor;
    size_t anchor_length;
    bool indented; /* `<<-` */
    char *text;    /* all lines, that of the closing anchor included */
    size_t length;
    size_t last;   /* where the last line begins */
    size_t margin; /* white space in front of the closing anchor */
    unsigned line;
};

/* Called behind `<<`. */
static int read_anchor(struct hcl_reader *r, struct heredoc *doc)
{
    doc->line = r->line;
    doc->indented = hcl_take(r, '-');
    doc->anchor = r->text + r->at;
    while (hcl_is_letter(hcl_peek(r)) || is_digit(hcl_peek(r)))
        r->at++;
    doc->anchor_length = (size_t)(r->text + r->at - doc->anchor);
    if (peek_ahead(r, 1) == '\n')
        (void)hcl_take(r, '\r');
    if (doc->anchor_length == 0 || !hcl_take(r, '\n'))
        return hcl_refuse(r, r->line, "expected a name and the end of the line after \"<<\"");
    r->line++;
    return 0;
}

/* hcl v1 includes the '-' of `<<-` in the least length of the closing line, so that line must be
 * indented. */
static bool is_closed(struct heredoc *doc)
{
    const char *line = doc->text + doc->last;
    size_t length = doc->length - doc->last;

    doc->margin = 0;
    while (doc->margin < length && strchr(" \t\v\f", line[doc->margin]))
        doc->margin++;
    return length >= doc->anchor_length + doc->indented &&
           length - doc->margin == doc->anchor_length &&
           memcmp(line + doc->margin, doc->anchor, doc->anchor_length) == 0;
}

/* Reads a line without its end. The end may be CR LF, which hcl v1 turns into LF everywhere. */
static int read_line(struct hcl_reader *r, struct heredoc *doc)
{
    doc->last = doc->length;
    while (hcl_peek(r) >= 0 && hcl_peek(r) != '\n') {
        if (hcl_peek(r) == '$' && peek_ahead(r, 1) == '{')
            return refuse_interpolation(r);
        if (hcl_peek(r) != '\r')
            doc->text[doc->length++] = r->text[r->at];
        else if (peek_ahead(r, 1) != '\n')
            return hcl_refuse(r, r->line, "a CR stands without its LF");
        r->at++;
    }
    if (!hcl_take(r, '\n'))
        return hcl_refuse(r, doc->line, "the text that \"<<\" begins here has no end");
    r->line++;
    return 0;
}

static bool has_margin(const struct heredoc *doc)
{
    const char *margin = doc->text + doc->last;

    for (size_t at = 0; at < doc->last; at++) {
        const char *line = doc->text + at;
        const char *end = memchr(line, '\n', doc->last - at);
        size_t length = end ? (size_t)(end - line) : 0;

        if (length < doc->margin || memcmp(line, margin, doc->margin) != 0)
            return false;
        at += length;
    }
    return true;
}

static size_t cut_margin(struct heredoc *doc)
{
    size_t length = 0;
    size_t column = 0;

    for (size_t at = 0; at < doc->last; at++) {
        if (column++ >= doc->margin)
            doc->text[length++] = doc->text[at];
        if (doc->text[at] == '\n')
            column = 0;
    }
    return length;
}

/* The white space before the closing anchor belongs to the text. `<<-` removes it from every line,
 * unless some line, even an empty one, does not begin with it. */
static size_t unindent(struct heredoc *doc)
{
    size_t length = doc->last + doc->margin;

    if (!doc->indented)
        return length;
    if (has_margin(doc))
        return cut_margin(doc);
    for (length--; length > 0 && strchr(" \t", doc->text[length - 1]); length--)
        ;
    return length;
}

static int read_heredoc(struct hcl_reader *r, struct hcl_item *item)
{
    struct heredoc doc = {.text = hcl_room(r)};

    r->at++;
    if (!hcl_take(r, '<'))
        return hcl_refuse(r, r->line, "expected \"<<\"");
    if (read_anchor(r, &doc) != 0)
        return -1;
    for (;;) {
        if (read_line(r, &doc) != 0)
            return -1;
        if (is_closed(&doc))
            break;
        doc.text[doc.length++] = '\n';
    }
    keep_string(r, unindent(&doc), item);
    return 0;
}

/* ---- numbers and words ---- */

static size_t skip_digits(struct hcl_reader *r, int base)
{
    size_t begin = r->at;

    while (digit_value(hcl_peek(r)) < base)
        r->at++;
    return r->at - begin;
}

/* Steps over a number in its usual form. Returns false for any other form. */
static bool skip_number(struct hcl_reader *r, bool *is_float)
{
    int second;

    (void)hcl_take(r, '-');
    second = peek_ahead(r, 1);
    *is_float = false;
    if (hcl_peek(r) == '0' && (second == 'x' || second == 'X') && !r->json) {
        r->at += 2;
        return skip_digits(r, 16) > 0;
    }
    if ((r->json && hcl_peek(r) == '0' && is_digit(second)) || skip_digits(r, 10) == 0)
        return false;
    if (hcl_take(r, '.')) {
        *is_float = true;
        if (skip_digits(r, 10) == 0)
            return false;
    }
    if (hcl_peek(r) != 'e' && hcl_peek(r) != 'E')
        return true;
    *is_float = true;
    r->at++;
    if (!hcl_take(r, '-'))
        (void)hcl_take(r, '+');
    return skip_digits(r, 10) > 0;
}

static int read_number(struct hcl_reader *r, struct hcl_item *item)
{
    size_t begin = r->at;
    char *text = hcl_room(r);
    char *end;
    bool is_float;
    size_t length;

    if (!skip_number(r, &is_float) || hcl_is_letter(hcl_peek(r)) || hcl_peek(r) == '.')
        return hcl_refuse(r, r->line, "this is not a number (put text in quotes)");
    length = r->at - begin;
    memcpy(text, r->text + begin, length);
    text[length] = '\0';
    errno = 0;
    if (is_float) {
        item->kind = HCL_FLOAT;
        item->length = length;
        item->text = hcl_keep_text(r, length);
        return isfinite(strtod(text, NULL)) ? 0 : hcl_refuse(r, r->line, "the number is too large");
    }
    item->kind = HCL_NUMBER;
    item->number = strtoll(text, &end, 0);
    if (*end != '\0')
        return hcl_refuse(r, r->line, "an octal number (it begins with 0) has a digit 8 or 9");
    return errno == 0 ? 0 : hcl_refuse(r, r->line, "the number is too large");
}

int hcl_word(struct hcl_reader *r, struct hcl_item *item)
{
    size_t begin = r->at;
    size_t length;

    while (hcl_is_letter(hcl_peek(r)) || is_digit(hcl_peek(r)) || hcl_peek(r) == '-' ||
           hcl_peek(r) == '.')
        r->at++;
    length = r->at - begin;
    memcpy(hcl_room(r), r->text + begin, length);
    keep_string(r, length, item);
    if (strcmp(item->text, "true") != 0 && strcmp(item->text, "false") != 0)
        return 0;
    item->kind = HCL_BOOL;
    item->number = item->text[0] == 't';
    return 0;
}

int hcl_scalar(struct hcl_reader *r, struct hcl_item *item)
{
    int byte = hcl_peek(r);

    if (byte == '"')
        return hcl_string(r, item);
    if (byte == '<' && !r->json)
        return read_heredoc(r, item);
    if (byte == '-' || is_digit(byte))
        return read_number(r, item);
    if (!hcl_is_letter(byte))
        return hcl_refuse(r, r->line, "expected a string, a number, true or false");
    if (hcl_word(r, item) != 0)
        return -1;
    return item->kind == HCL_BOOL ? 0 : hcl_refuse(r, r->line, "text must stand in quotes");
}
