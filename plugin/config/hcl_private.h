/* What hcl.c (tree, blocks), hcl_json.c (objects) and hcl_scalar.c (what stands between
 * the brackets) share. Nobody else includes this. */
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
static inline int hcl_look(const struct hcl_reader *r)
{
    return r->at < r->length ? (unsigned char)r->text[r->at] : -1;
}

/* Steps over `byte` if it is the one at hand. */
static inline bool hcl_take(struct hcl_reader *r, char byte)
{
    bool here = hcl_look(r) == byte;

    r->at += here;
    return here;
}

/* hcl.c. Fails with "line N: what"; `what` never quotes the text, it may be a PIN. */
int hcl_refuse(struct hcl_reader *r, unsigned line, const char *what);

/* hcl.c. Items of a list or block are opened one by one, then closed into one array. */
int hcl_open_item(struct hcl_reader *r, const struct hcl_item *item);
size_t hcl_open_count(const struct hcl_reader *r);
void hcl_close_items(struct hcl_reader *r, size_t first, struct hcl_item *parent);

/* hcl.c. Room for text: a pointer to where the next byte goes, taken with hcl_keep_text.
 * What is kept is never longer than twice the text it was read from. */
char *hcl_room(struct hcl_reader *r);
const char *hcl_keep_text(struct hcl_reader *r, size_t length);

/* hcl.c. Reads up to the ']' what follows '['. */
int hcl_list(struct hcl_reader *r, struct hcl_item *item);

/* hcl_json.c. Reads a whole text into `root`; an object what follows its '{'. */
int hcl_json(struct hcl_reader *r, struct hcl_item *root);
int hcl_json_object(struct hcl_reader *r, struct hcl_item *object);

/* hcl_scalar.c. Steps over white space and comments. */
int hcl_skip(struct hcl_reader *r);

/* hcl_scalar.c. What is at hand must be a scalar, or a '"', or a word's first letter. */
int hcl_scalar(struct hcl_reader *r, struct hcl_item *item);
int hcl_string(struct hcl_reader *r, struct hcl_item *item);
int hcl_word(struct hcl_reader *r, struct hcl_item *item);
bool hcl_is_letter(int byte);

#endif
