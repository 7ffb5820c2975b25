/* May a bundle that was delivered replace the one in the file, going by their sequence numbers? The
 * number grows by one with every change in the datastore, so a lower one is either late (the
 * notifier's and the publisher's processes race for one file) or comes from a datastore that was
 * restored, and then it is right.
 *
 * The next delivery tells which: SPIRE reads the datastore just before each call, and calls again
 * only after the answer. After a late delivery the same process gets a current one, at or above the
 * file's number. If the second one is lower as well, and the file unchanged, the datastore went
 * back. Notifiers are only called when something has changed, so the second may well have a higher
 * number than the first. The pause between the two is for replicas that lag. Pure. */
#ifndef PLUGIN_BUNDLE_SEQUENCE_H
#define PLUGIN_BUNDLE_SEQUENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "hsm/base/clock.h"

/* A little less than SPIRE's 30 s between two calls of a publisher. */
#define SEQUENCE_PAUSE (25 * CLOCK_SECOND)

/* A lower delivery that was held back. All zero: none. */
struct sequence {
    bool held;
    uint64_t delivered;
    uint64_t file;
    int64_t since;
};

enum sequence_verdict {
    SEQUENCE_NEWER,    /* or the same: write it, if it differs */
    SEQUENCE_HELD,     /* keep the file */
    SEQUENCE_RESTORED, /* lower, but right, as the datastore was restored: write it, with a warning
                        */
};

/* Judges `delivered` against the `file`'s number, on clock_now()'s clock, and remembers in
 * *sequence a delivery that it holds back. After SEQUENCE_RESTORED it is remembered still, in case
 * writing fails: clear *sequence once it has been written. */
enum sequence_verdict sequence_judge(struct sequence *sequence, uint64_t file, uint64_t delivered,
                                     int64_t now);

#endif
