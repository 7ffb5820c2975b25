/* Is a delivered bundle newer than the file? A datastore that was restored goes back, and a late
 * delivery looks the same. */
#include "plugin/bundle/sequence.h"

enum sequence_verdict sequence_judge(struct sequence *sequence, uint64_t file, uint64_t delivered,
                                     int64_t now)
{
    if (delivered >= file) {
        sequence->held = false;
        return SEQUENCE_NEWER;
    }
    if (!sequence->held || sequence->file != file || delivered < sequence->delivered) {
        *sequence = (struct sequence){true, delivered, file, now};
        return SEQUENCE_HELD;
    }
    return now - sequence->since >= SEQUENCE_PAUSE ? SEQUENCE_RESTORED : SEQUENCE_HELD;
}
