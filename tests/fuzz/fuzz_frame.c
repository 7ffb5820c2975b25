/* Packets as the other process might send them. There is one way to write a frame, so
 * what is read must be what was written. */
#include "hsm/wire/frame.h"

#include <stdlib.h>
#include <string.h>

enum { HEADER = 5 }; /* kind, number */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *bytes = malloc(size > 0 ? size : 1);
    uint8_t again[FRAME_MAX];
    struct frame frame;
    struct fault fault;

    if (!bytes)
        return 0;
    memcpy(bytes, data, size);
    /* kept inputs are of other builds than this one */
    if (size >= HEADER + FRAME_BUILD_ID && (bytes[0] == FRAME_OPEN || bytes[0] == FRAME_READY))
        memcpy(bytes + HEADER, frame_build_id(), FRAME_BUILD_ID);
    (void)frame_number(bytes, size);
    if (frame_decode(bytes, size, &frame, &fault) == 0 &&
        (frame_encode(&frame, again) != size || memcmp(again, bytes, size) != 0))
        abort();
    free(bytes);
    return 0;
}
