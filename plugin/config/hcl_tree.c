/* The tree in memory: made, filled while the text is read, and wiped. All room is taken at once, by
 * the length of the text: so nothing moves, and no copy of a PIN stays behind. */
#include <stdlib.h>
#include <string.h>

#include "hsm/base/scope.h"
#include "plugin/config/hcl_private.h"

struct hcl {
    struct hcl_item root;
    struct hcl_item *items; /* closed ones: arrays of children, one behind the other */
    size_t item_count;
    struct hcl_item *open; /* a stack: those whose list or block is still being read */
    size_t open_count;
    size_t item_room; /* of both */
    char *text;
    size_t text_count;
    size_t text_room;
};

static void wipe_and_free(void *memory, size_t size)
{
    if (memory)
        explicit_bzero(memory, size);
    free(memory);
}

void hcl_free(struct hcl *tree)
{
    if (!tree)
        return;
    wipe_and_free(tree->items, tree->item_room * sizeof *tree->items);
    wipe_and_free(tree->open, tree->item_room * sizeof *tree->open);
    wipe_and_free(tree->text, tree->text_room);
    wipe_and_free(tree, sizeof *tree);
}

void hcl_scope_free(struct hcl **tree)
{
    hcl_free(*tree);
}

void hcl_set_root(struct hcl *tree, const struct hcl_item *root)
{
    tree->root = *root;
}

const struct hcl_item *hcl_root(const struct hcl *tree)
{
    return &tree->root;
}

/* The most items that the text can hold. Every item has one of these bytes before it: `=`, `:` or
 * `{` before the value of a key; `[` or `,` before an element of a list. */
static size_t most_items(const char *text, size_t length)
{
    size_t count = 1;

    for (size_t i = 0; i < length; i++)
        if (text[i] != '\0' && strchr("={[,:", text[i]))
            count++;
    return count < HCL_ITEMS_MAX ? count : HCL_ITEMS_MAX;
}

struct hcl *hcl_new_tree(const char *text, size_t length)
{
    OWNED(hcl_scope_free) struct hcl *tree = calloc(1, sizeof *tree);
    struct hcl *made = tree;

    if (!tree)
        return NULL;
    tree->item_room = most_items(text, length);
    tree->text_room = 2 * length + 1;
    tree->items = calloc(tree->item_room, sizeof *tree->items);
    tree->open = calloc(tree->item_room, sizeof *tree->open);
    tree->text = malloc(tree->text_room);
    if (!tree->items || !tree->open || !tree->text)
        return NULL;
    tree = NULL;
    return made;
}

int hcl_open_item(struct hcl_reader *r, const struct hcl_item *item)
{
    struct hcl *tree = r->tree;

    if (tree->item_count + tree->open_count >= tree->item_room)
        return hcl_refuse(r, item->line, "there are too many values");
    tree->open[tree->open_count++] = *item;
    return 0;
}

size_t hcl_open_count(const struct hcl_reader *r)
{
    return r->tree->open_count;
}

void hcl_close_items(struct hcl_reader *r, size_t first, struct hcl_item *parent)
{
    struct hcl *tree = r->tree;
    struct hcl_item *array = tree->items + tree->item_count;

    parent->items = array;
    parent->count = tree->open_count - first;
    memcpy(array, tree->open + first, parent->count * sizeof *array);
    tree->item_count += parent->count;
    tree->open_count = first;
}

char *hcl_room(struct hcl_reader *r)
{
    return r->tree->text + r->tree->text_count;
}

const char *hcl_keep_text(struct hcl_reader *r, size_t length)
{
    char *text = hcl_room(r);

    text[length] = '\0';
    r->tree->text_count += length + 1;
    return text;
}
