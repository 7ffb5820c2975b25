/* Signatures without a pause, so many at a time, and how fast they came. */
#ifndef PLUGIN_COMMAND_COMMAND_LOAD_H
#define PLUGIN_COMMAND_COMMAND_LOAD_H

#include "plugin/command/command_private.h"

struct load {
    struct command_token *token; /* stays the caller's, like what `request` has in it */
    struct hsm_request request;  /* HSM_SIGN; the same digest is signed every time */
    unsigned at_a_time;          /* 1 .. HSM_SESSIONS_MAX */
    int64_t length;              /* ns, after which no signature is asked for any more */

    /* Called some five times a second, on the caller's thread, with the part of `length` that
     * is over. False: stop early. */
    bool (*goes_on)(void *context, double part);
    void *context;
};

struct load_result {
    uint64_t signatures;
    uint64_t failures;  /* calls that failed; each ends its lane until the next run */
    struct fault fault; /* of the first failure; no code if there was none */
    double per_second;
    double p50; /* ms from asking to having the signature, gRPC not included */
    double p99;
    bool stopped; /* early */
};

/* Returns when the last answer is there. -1: out of memory. */
int load_run(const struct load *load, struct load_result *result, struct fault *fault);

/* The least `at_a_time` of `count` results, in rising order of it, that comes within a tenth of the
 * best rate: more brings little but waiting. Returns its index. */
size_t load_knee(const double *per_second, size_t count);

#endif
