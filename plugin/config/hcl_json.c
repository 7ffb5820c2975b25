/* JSON's objects and lists. Strings, numbers and words are read by hcl_lex.c. */
#include "plugin/config/hcl_private.h"

static int read_object(struct hcl_reader *r, struct hcl_item *object);

/* HCL 1 turns an object of objects into blocks with labels, and a list of objects into repeated
 * blocks. It does not read lists in lists. plugin_data needs none of these. */
static int check_object(struct hcl_reader *r, const struct hcl_item *object)
{
    if (r->host)
        return 0;
    for (size_t i = 0; i < object->count; i++)
        if (object->items[i].kind != HCL_BLOCK)
            return 0;
    return object->count == 0
               ? 0
               : hcl_refuse(r, object->line, "an object of nothing but objects is not supported");
}

/* An object inside another one. Called behind its '{'. */
static int read_nested(struct hcl_reader *r, struct hcl_item *object)
{
    if (r->depth == HCL_DEPTH_MAX)
        return hcl_refuse(r, r->line, "objects are nested too deeply");
    r->depth++;
    if (read_object(r, object) != 0 || check_object(r, object) != 0)
        return -1;
    r->depth--;
    return 0;
}

/* HCL 1 turns objects in a list into repeated blocks, and refuses true and false there. plugin_data
 * may have neither; other parts of a host's configuration may. */
static int read_element(struct hcl_reader *r)
{
    struct hcl_item item = {0};
    bool object;

    if (hcl_skip(r) != 0)
        return -1;
    item.line = r->line;
    object = r->host && hcl_take(r, '{');
    if ((object ? read_nested(r, &item) : hcl_scalar(r, &item)) != 0 ||
        hcl_open_item(r, &item) != 0 || hcl_skip(r) != 0)
        return -1;
    if (item.kind == HCL_BOOL && !r->host)
        return hcl_refuse(r, item.line, "a list in JSON may not hold true or false");
    return 0;
}

/* Called behind the '['. */
static int read_list(struct hcl_reader *r, struct hcl_item *list)
{
    size_t first = hcl_open_count(r);

    list->kind = HCL_LIST;
    if (hcl_skip(r) != 0)
        return -1;
    if (hcl_peek(r) != ']') {
        do {
            if (read_element(r) != 0)
                return -1;
        } while (hcl_take(r, ','));
    }
    if (!hcl_take(r, ']'))
        return hcl_refuse(r, r->line, "expected ',' or ']' in a list");
    hcl_close_items(r, first, list);
    return 0;
}

static int read_value(struct hcl_reader *r, struct hcl_item *item)
{
    if (hcl_skip(r) != 0)
        return -1;
    if (hcl_take(r, '['))
        return read_list(r, item);
    return hcl_take(r, '{') ? read_nested(r, item) : hcl_scalar(r, item);
}

static int read_member(struct hcl_reader *r)
{
    struct hcl_item item = {0};
    struct hcl_item name = {0};

    if (hcl_skip(r) != 0)
        return -1;
    item.line = r->line;
    if (hcl_peek(r) != '"')
        return hcl_refuse(r, r->line, "expected the name of an option in quotes");
    if (hcl_string(r, &name) != 0 || hcl_skip(r) != 0)
        return -1;
    item.key = name.text;
    if (!hcl_take(r, ':'))
        return hcl_refuse(r, r->line, "expected ':' after a name");
    if (read_value(r, &item) != 0 || hcl_open_item(r, &item) != 0)
        return -1;
    return hcl_skip(r);
}

/* Called behind the '{'. */
static int read_object(struct hcl_reader *r, struct hcl_item *object)
{
    size_t first = hcl_open_count(r);
    unsigned line = r->line;

    object->kind = HCL_BLOCK;
    if (hcl_skip(r) != 0)
        return -1;
    if (hcl_peek(r) != '}') {
        do {
            if (read_member(r) != 0)
                return -1;
        } while (hcl_take(r, ','));
    }
    if (hcl_peek(r) < 0)
        return hcl_refuse(r, line, "the object that begins here has no closing '}'");
    if (!hcl_take(r, '}'))
        return hcl_refuse(r, r->line, "expected ',' or '}'");
    hcl_close_items(r, first, object);
    return 0;
}

int hcl_json(struct hcl_reader *r, struct hcl_item *root)
{
    if (hcl_skip(r) != 0 || !hcl_take(r, '{'))
        return hcl_refuse(r, r->line, "expected '{'");
    if (read_object(r, root) != 0 || hcl_skip(r) != 0)
        return -1;
    return hcl_peek(r) < 0 ? 0 : hcl_refuse(r, r->line, "unexpected text after the last '}'");
}
