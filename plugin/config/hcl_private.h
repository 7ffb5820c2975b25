/* Shared by the hcl*.c files, from the lowest up: hcl_tree.c (items in memory), hcl_lex.c (strings,
 * numbers, words), hcl_json.c (JSON's objects and lists), hcl.c (HCL's blocks and lists, and the
 * door). Each calls only those before it. Only they include it. */
#ifndef PLUGIN_CONFIG_HCL_PRIVATE_H
#define PLUGIN_CONFIG_HCL_PRIVATE_H

#include <stdbool.h>
#include <stddef.h>

#include "plugin/config/hcl.h"

struct hcl_reader {
    const char *text;
    size_t length;
    size_t at;
    unsigned line;
    unsigned depth;
    bool json; /* no comments, no bare keys, JSON's own escapes and numbers */
    bool host; /* hcl_parse_host */
    struct hcl *tree;
    struct fault *fault;
};

/* The byte at hand, or -1 at the end. */
static inline int hcl_peek(const struct hcl_reader *r)
{
    return r->at < r->length ? (unsigned char)r->text[r->at] : -1;
}

/* Steps over `byte` if it is the one at hand. */
static inline bool hcl_take(struct hcl_reader *r, char byte)
{
    bool here = hcl_peek(r) == byte;

    r->at += here;
    return here;
}

/* Fails with "line N: what"; `what` never quotes the text, it may be a PIN. */
static inline int hcl_refuse(struct hcl_reader *r, unsigned line, const char *what)
{
    return fault_set(r->fault, FAULT_INVALID_ARGUMENT, "line %u: %s", line, what);
}

/* ---- hcl_tree.c ---- */

/* A tree with room for all that a text of `length` bytes can hold; NULL when out of memory. */
struct hcl *hcl_new_tree(const char *text, size_t length);
void hcl_set_root(struct hcl *tree, const struct hcl_item *root);

/* Items of a list or block are opened one by one, then closed into one array. */
int hcl_open_item(struct hcl_reader *r, const struct hcl_item *item);
size_t hcl_open_count(const struct hcl_reader *r);
void hcl_close_items(struct hcl_reader *r, size_t first, struct hcl_item *parent);

/* Room for text: a pointer to where the next byte goes, taken with hcl_keep_text. The kept text is
 * at most twice as long as the text it was read from. */
char *hcl_room(struct hcl_reader *r);
const char *hcl_keep_text(struct hcl_reader *r, size_t length);

/* ---- hcl_lex.c ---- */

/* Steps over white space and comments. */
int hcl_skip(struct hcl_reader *r);

/* The next byte must begin a scalar, a string or a word. */
int hcl_scalar(struct hcl_reader *r, struct hcl_item *item);
int hcl_string(struct hcl_reader *r, struct hcl_item *item);
int hcl_word(struct hcl_reader *r, struct hcl_item *item);
bool hcl_is_letter(int byte);

/* ---- hcl_json.c ---- */

/* Reads a whole text into `root`. */
int hcl_json(struct hcl_reader *r, struct hcl_item *root);

#endif
