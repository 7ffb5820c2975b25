/* HCL 1, the language of SPIRE's configurations: blocks, lists and items, read into a tree. */
#include "plugin/config/hcl.h"

#include <string.h>

#include "hsm/base/scope.h"
#include "hsm/base/utf8.h"
#include "plugin/config/hcl_private.h"

/* ---- blocks ---- */

static int read_items(struct hcl_reader *r, struct hcl_item *block);

/* Called behind the '{'. */
static int read_block(struct hcl_reader *r, struct hcl_item *block)
{
    int result;

    block->kind = HCL_BLOCK;
    if (r->depth == HCL_DEPTH_MAX)
        return hcl_refuse(r, r->line, "blocks are nested too deeply");
    r->depth++;
    result = read_items(r, block);
    r->depth--;
    return result;
}

static int read_element(struct hcl_reader *r, struct hcl_item *item)
{
    return hcl_take(r, '{') ? read_block(r, item) : hcl_scalar(r, item);
}

/* Called behind the '['. A comma may follow the last element. */
static int read_list(struct hcl_reader *r, struct hcl_item *list)
{
    size_t first = hcl_open_count(r);
    bool comma = true;

    list->kind = HCL_LIST;
    for (;;) {
        struct hcl_item item = {0};

        if (hcl_skip(r) != 0)
            return -1;
        if (hcl_take(r, ']'))
            break;
        if (!comma)
            return hcl_refuse(r, r->line, "expected ',' or ']' in a list");
        item.line = r->line;
        if (read_element(r, &item) != 0 || hcl_open_item(r, &item) != 0 || hcl_skip(r) != 0)
            return -1;
        comma = hcl_take(r, ',');
    }
    hcl_close_items(r, first, list);
    return 0;
}

static int read_value(struct hcl_reader *r, struct hcl_item *item)
{
    if (hcl_skip(r) != 0)
        return -1;
    if (hcl_take(r, '{'))
        return read_block(r, item);
    if (hcl_take(r, '['))
        return read_list(r, item);
    return hcl_scalar(r, item);
}

/* Reads a key or a label, and the space behind it. */
static int read_name(struct hcl_reader *r, const char **name)
{
    struct hcl_item word = {.line = r->line};
    int byte = hcl_peek(r);
    int result;

    if (byte == '"')
        result = hcl_string(r, &word);
    else if (hcl_is_letter(byte))
        result = hcl_word(r, &word);
    else
        return hcl_refuse(r, r->line, "expected the name of an option");
    if (result != 0)
        return -1;
    if (word.kind == HCL_BOOL)
        return hcl_refuse(r, word.line, "true and false cannot be names");
    *name = word.text;
    return hcl_skip(r);
}

static int read_item(struct hcl_reader *r)
{
    struct hcl_item item = {.line = r->line};
    int byte;
    int result;

    if (read_name(r, &item.key) != 0)
        return -1;
    byte = hcl_peek(r);
    if ((byte == '"' || hcl_is_letter(byte)) && read_name(r, &item.label) != 0)
        return -1;
    if (!item.label && hcl_take(r, '='))
        result = read_value(r, &item);
    else if (hcl_take(r, '{'))
        result = read_block(r, &item);
    else
        return hcl_refuse(r, r->line,
                          item.label ? "expected '{' after two names" : "expected '=' or '{'");
    return result == 0 ? hcl_open_item(r, &item) : -1;
}

/* Reads up to the end of the text or the '}' of a block. As in HCL 1, items may be separated by
 * commas, and need no line ends. */
static int read_items(struct hcl_reader *r, struct hcl_item *block)
{
    size_t first = hcl_open_count(r);
    bool top = r->depth == 0;
    unsigned line = r->line;

    for (;;) {
        if (hcl_skip(r) != 0)
            return -1;
        if (hcl_peek(r) < 0 && !top)
            return hcl_refuse(r, line, "the block that begins here has no closing '}'");
        if (hcl_peek(r) < 0 || (!top && hcl_take(r, '}')))
            break;
        if (read_item(r) != 0 || hcl_skip(r) != 0)
            return -1;
        (void)hcl_take(r, ',');
    }
    hcl_close_items(r, first, block);
    return 0;
}

/* ---- the text ---- */

/* HCL 1 refuses these bytes in comments, too: no UTF-8, NUL, and U+E123, which it uses itself. */
static int check_bytes(struct hcl_reader *r)
{
    unsigned line = 1;
    size_t step;

    for (size_t at = 0; at < r->length; at += step) {
        step = utf8_character(r->text + at, r->length - at);
        if (step == 0 || r->text[at] == '\0')
            return hcl_refuse(r, line, "the text contains a byte that is not UTF-8");
        if (step == 3 && memcmp(r->text + at, "\xee\x84\xa3", 3) == 0)
            return hcl_refuse(r, line, "character U+E123 is not allowed");
        line += r->text[at] == '\n';
    }
    return 0;
}

static bool is_json(const struct hcl_reader *r)
{
    size_t at = 0;

    while (at < r->length && r->text[at] != '\0' && strchr(" \t\r\n", r->text[at]))
        at++;
    return at < r->length && r->text[at] == '{';
}

static int parse(const char *text, size_t length, bool host, struct hcl **tree, struct fault *fault)
{
    OWNED(hcl_scope_free) struct hcl *made = NULL;
    struct hcl_reader r = {.text = text, .length = length, .line = 1, .host = host, .fault = fault};
    struct hcl_item root = {.kind = HCL_BLOCK, .line = 1};

    if (length > HCL_TEXT_MAX)
        return hcl_refuse(&r, 1, "the text is longer than 256 KiB");
    if (check_bytes(&r) != 0)
        return -1;
    r.json = is_json(&r);
    r.tree = made = hcl_new_tree(text, length);
    if (!made)
        return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
    if ((r.json ? hcl_json(&r, &root) : read_items(&r, &root)) != 0)
        return -1;
    hcl_set_root(made, &root);
    *tree = made;
    made = NULL;
    return 0;
}

int hcl_parse(const char *text, size_t length, struct hcl **tree, struct fault *fault)
{
    return parse(text, length, false, tree, fault);
}

int hcl_parse_host(const char *text, size_t length, struct hcl **tree, struct fault *fault)
{
    return parse(text, length, true, tree, fault);
}
