/* How hcl_parse reads texts, for the comparison with hashicorp/hcl v1 (peers/hcl). Numbers
 * are 32 bits, big-endian. Standard input: batches, each a count and so many times a length
 * and a text. Standard output: so many times a length and a reply, which is `+` and the tree
 * as JSON, or `-` and why the text was refused.
 *
 * In the JSON, strings are bytes (\u0080 and up), a float is the hexadecimal of its IEEE 754
 * bits, a block is {"block": [[line, key, label, value], ...]}. A text in JSON has no lines. */
#include "plugin/config/hcl.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool lines;

static void print_string(FILE *out, const char *text, size_t length)
{
    (void)fputc('"', out);
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];

        if (byte < 0x20 || byte >= 0x7f || byte == '"' || byte == '\\')
            (void)fprintf(out, "\\u%04x", byte);
        else
            (void)fputc(byte, out);
    }
    (void)fputc('"', out);
}

static void print_float(FILE *out, const char *text)
{
    double value = strtod(text, NULL);
    uint64_t bits;

    memcpy(&bits, &value, sizeof bits);
    (void)fprintf(out, "{\"float\":\"%016" PRIx64 "\"}", bits);
}

static void print_value(FILE *out, const struct hcl_item *item);

static void print_keyed(FILE *out, const struct hcl_item *item)
{
    (void)fprintf(out, "[%u,", lines ? item->line : 0);
    print_string(out, item->key, strlen(item->key));
    (void)fputc(',', out);
    if (item->label)
        print_string(out, item->label, strlen(item->label));
    else
        (void)fputs("null", out);
    (void)fputc(',', out);
    print_value(out, item);
    (void)fputc(']', out);
}

static void print_items(FILE *out, const struct hcl_item *parent)
{
    for (size_t i = 0; i < parent->count; i++) {
        if (i > 0)
            (void)fputc(',', out);
        if (parent->kind == HCL_BLOCK)
            print_keyed(out, &parent->items[i]);
        else
            print_value(out, &parent->items[i]);
    }
}

static void print_value(FILE *out, const struct hcl_item *item)
{
    switch (item->kind) {
    case HCL_STRING:
        print_string(out, item->text, item->length);
        break;
    case HCL_NUMBER:
        (void)fprintf(out, "%" PRId64, item->number);
        break;
    case HCL_FLOAT:
        print_float(out, item->text);
        break;
    case HCL_BOOL:
        (void)fputs(item->number ? "true" : "false", out);
        break;
    case HCL_LIST:
        (void)fputc('[', out);
        print_items(out, item);
        (void)fputc(']', out);
        break;
    case HCL_BLOCK:
        (void)fputs("{\"block\":[", out);
        print_items(out, item);
        (void)fputs("]}", out);
        break;
    }
}

static bool is_json(const char *text, size_t length)
{
    while (length > 0 && strchr(" \t\r\n", *text)) {
        text++;
        length--;
    }
    return length > 0 && *text == '{';
}

static void write_number(uint32_t number)
{
    for (int shift = 24; shift >= 0; shift -= 8)
        (void)putchar((int)(number >> shift & 0xff));
}

static void answer(const char *text, size_t length)
{
    struct hcl *tree;
    struct fault fault;
    char *reply;
    size_t size;
    FILE *out = open_memstream(&reply, &size);

    if (!out)
        exit(2);
    if (hcl_parse(text, length, &tree, &fault) == 0) {
        lines = !is_json(text, length);
        (void)fputc('+', out);
        print_value(out, hcl_root(tree));
        hcl_free(tree);
    } else {
        (void)fprintf(out, "-%s", fault.message);
    }
    if (fclose(out) != 0)
        exit(2);
    write_number((uint32_t)size);
    (void)fwrite(reply, 1, size, stdout);
    free(reply);
}

static bool read_number(uint32_t *number)
{
    unsigned char bytes[4];

    if (fread(bytes, 1, sizeof bytes, stdin) != sizeof bytes)
        return false;
    *number =
        (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
    return true;
}

/* A block of exactly the text's size: with a sanitizer, one byte too far is seen. */
static void read_case(void)
{
    uint32_t length;
    char *text;

    if (!read_number(&length) || !(text = malloc(length > 0 ? length : 1)))
        exit(2);
    if (fread(text, 1, length, stdin) != length)
        exit(2);
    answer(text, length);
    free(text);
}

int main(void)
{
    uint32_t count;

    while (read_number(&count)) {
        for (; count > 0; count--)
            read_case();
        if (fflush(stdout) != 0)
            return 2;
    }
    return 0;
}
