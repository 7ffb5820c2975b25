/* A look at the token: which keys of ours are on it, each proven. One look is only the token's
 * answer at that moment. The caller decides whether to believe it (loading.c).
 *
 * With a record, its keys are looked for by their exact names, and proven first. A walk over the
 * token then finds all other keys. A proof that fails leaves its item unproven, with the reason in
 * `why`. Without a record there is only the walk, and a failed proof fails the whole look. Blocks:
 * for the slow lane. A look that takes long is logged. */
#ifndef PLUGIN_KEYS_STOCK_H
#define PLUGIN_KEYS_STOCK_H

#include <pthread.h>
#include <stdatomic.h>

#include "plugin/keys/inventory.h"
#include "plugin/keys/record.h"
#include "plugin/worker/supervisor.h"

struct stock {
    /* the caller's, before stock_open */
    struct supervisor *supervisor;
    const struct label_scope *scope; /* of a token */
    struct record *record;           /* NULL: none */
    const atomic_bool *cancel;
    int64_t step_limit; /* ns that one proof may take, with a record */

    /* the result of the latest look */
    struct inventory inventory; /* sorted */
    struct hsm_reply scan;      /* its counts, if walked */
    bool walked;
    unsigned told; /* proofs with an answer */
    int64_t walk;  /* ns that the walk took */

    /* stock.c's */
    hsm_item_fn *item; /* called for each item that a walk finds, with `context` */
    void *context;
    int64_t begun;   /* the look */
    int64_t tell_at; /* the log has one line in 10 s at most */
    bool cancelled;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned out;
    struct fault fault; /* the first that was not FAULT_NONE */
};

void stock_open(struct stock *stock);
void stock_close(struct stock *stock);

/* One look, which ends by `deadline`. With a record the walk has `walk_limit` ns, and one that
 * does not end in them is no failure: `walked` is false then. */
int stock_look(struct stock *stock, int64_t deadline, int64_t walk_limit, struct fault *fault);

/* All that a worker without a token has, by its file of keys: told to `item`, on the supervisor's
 * thread. NULL as an item: what was told is told anew. */
int stock_list(struct stock *stock, int64_t deadline, hsm_item_fn *item, void *context,
               struct fault *fault);

/* Proves the newest of every id as long as that one is not fit, as without a record. */
int stock_prove_candidates(struct stock *stock, int64_t deadline, struct fault *fault);

/* One line in the log, unless there was one within 10 s: the start waits, and why. */
void stock_tell(struct stock *stock, const struct fault *why);

/* Waits; shorter if *cancel is set. */
void stock_pause(struct stock *stock, int64_t pause);

#endif
