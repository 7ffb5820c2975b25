/* Any bytes: a tree or a fault with a line, and of JSON no text that jansson refuses. What is
 * plugin_data could stand in a host's configuration. (What the values are, peers/hcl compares.) */
#include "plugin/config/hcl.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Reads every byte the tree promises. */
static size_t walk(const struct hcl_item *item)
{
    size_t sum = item->key ? strlen(item->key) : 0;

    sum += item->label ? strlen(item->label) : 0;
    if ((item->kind == HCL_STRING || item->kind == HCL_FLOAT) && strlen(item->text) != item->length)
        abort();
    for (size_t i = 0; i < item->count; i++) {
        if ((item->items[i].key != NULL) != (item->kind == HCL_BLOCK) || item->items[i].line == 0)
            abort();
        sum += walk(&item->items[i]);
    }
    return sum;
}

typedef int parse_fn(const char *text, size_t length, struct hcl **tree, struct fault *fault);

static bool is_taken(parse_fn *parse, const char *text, size_t size)
{
    struct fault fault = {0};
    struct hcl *tree;

    if (parse(text, size, &tree, &fault) != 0) {
        if (strncmp(fault.message, "line ", 5) != 0)
            abort();
        return false;
    }
    if (walk(hcl_root(tree)) > 2 * size)
        abort();
    hcl_free(tree);
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    bool alone = is_taken(hcl_parse, text, size);
    size_t blank = 0;
    json_t *json;

    if (!is_taken(hcl_parse_host, text, size)) {
        if (alone)
            abort();
        return 0;
    }
    while (blank < size && strchr(" \t\r\n", text[blank]))
        blank++;
    if (blank == size || text[blank] != '{')
        return 0;
    json = json_loadb(text, size, 0, NULL);
    if (!json)
        abort();
    json_decref(json);
    return 0;
}
