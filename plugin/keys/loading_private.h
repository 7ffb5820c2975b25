/* One start, shared by loading.c, which looks, and settling.c, which decides. Only they include it.
 */
#ifndef PLUGIN_KEYS_LOADING_PRIVATE_H
#define PLUGIN_KEYS_LOADING_PRIVATE_H

#include "plugin/keys/keymanager_private.h"
#include "plugin/keys/moving.h"
#include "plugin/keys/stock.h"

struct start {
    struct keymanager *keymanager;
    struct keymanager *before; /* or NULL */
    int64_t begun;
    int64_t deadline;
    unsigned looks;
    int64_t patience; /* the longest wait in ns that one of them deserved */
    size_t shown;     /* how many items of ours the latest look showed, and since when */
    int64_t shown_since;
    struct record record; /* a copy of the record; what is settled goes in here first */
    struct moving moving;
    bool by_token;  /* a loss was accepted: the token decides for ids without a key */
    unsigned older; /* whole keys of ours that are not in service */
    struct stock stock;
};

/* Once the looks have told: decides on each key of ours that the token shows, serves one of each
 * id, and then those of `previous`. FAULT_FAILED_PRECONDITION: see moving_refuse_unrecorded.
 * FAULT_UNAVAILABLE: out of memory. */
int loading_settle(struct start *start, struct fault *fault);

/* Brings the result into the scribe's record, waits until it is written, and has what is condemned
 * destroyed in its time. FAULT_UNAVAILABLE: keys of `previous` are adopted, and the record cannot
 * be written. Any other start goes on, and the scribe tries again. */
int loading_write_down(struct start *start, struct fault *fault);

#endif
