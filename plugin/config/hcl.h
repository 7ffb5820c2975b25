/* A reader for the part of HCL 1 (and JSON) that plugin_data may be written in. Accepted text means
 * exactly what hashicorp/hcl v1 makes of it. Values that plugin_data does not need are refused with
 * their line: values other than strings, numbers, booleans, blocks and lists of those; blocks with
 * more than one label; interpolation (`${`), which HCL 1 leaves to its callers. Keys may repeat,
 * and dots in them are just characters.
 *
 * JSON is what begins with `{`, as in HCL 1, which reads some of it in ways of its own;
 * there `\/`, null, lists with booleans or objects and objects of nothing but objects are
 * refused.
 *
 * Written by hand because no C library reads HCL; and JSON with it, because a library would keep
 * neither lines nor repeated keys, and leave copies of a PIN in freed memory. Pure: bytes in, tree
 * or fault out, and no message quotes the text. */
#ifndef PLUGIN_CONFIG_HCL_H
#define PLUGIN_CONFIG_HCL_H

#include <stddef.h>
#include <stdint.h>

#include "hsm/base/fault.h"

enum hcl_kind {
    HCL_STRING, /* text, heredocs included, escapes resolved */
    HCL_NUMBER, /* integer that fits in 64 bits */
    HCL_FLOAT,  /* text as written */
    HCL_BOOL,
    HCL_LIST,  /* items without keys, but no lists */
    HCL_BLOCK, /* items with keys; `key "label" {` gives a label */
};

enum {
    HCL_TEXT_MAX = 256 * 1024, /* bytes */
    HCL_ITEMS_MAX = 4096,
    HCL_DEPTH_MAX = 16, /* blocks in blocks */
};

struct hcl_item {
    const char *key;   /* NULL in lists */
    const char *label; /* of a block, or NULL */
    unsigned line;     /* 1-based, of the key (in lists: of the value) */
    enum hcl_kind kind;
    const char *text; /* STRING, FLOAT: NUL-terminated UTF-8 without inner NUL */
    size_t length;
    int64_t number;               /* NUMBER, BOOL */
    const struct hcl_item *items; /* LIST, BLOCK: `count` of them */
    size_t count;
};

struct hcl;

/* Parses `length` bytes. On success *tree is the caller's until hcl_free, and so is
 * everything reached from it. FAULT_INVALID_ARGUMENT begins with "line N: ". */
int hcl_parse(const char *text, size_t length, struct hcl **tree, struct fault *fault);

/* The same of a host's whole configuration, of which plugin_data is a part. In JSON, what HCL 1
 * makes blocks with labels of stands in the tree as it is written: objects of nothing but
 * objects, lists of objects; and lists may hold true and false. */
int hcl_parse_host(const char *text, size_t length, struct hcl **tree, struct fault *fault);

/* The top level, as one HCL_BLOCK without key. */
const struct hcl_item *hcl_root(const struct hcl *tree);

/* Wipes (a PIN may be in it) and frees. NULL is fine. */
void hcl_free(struct hcl *tree);
void hcl_scope_free(struct hcl **tree);

#endif
