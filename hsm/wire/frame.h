/* Requests and replies as packets of a SOCK_SEQPACKET pair: front (plugin/) on one end, worker on
 * the other. One packet is one frame; both ends are of one build (the first frame compares the
 * layout's id), so no other program depends on the layout, and it may change at will. Decoding
 * still trusts nothing, as the other process may be out of order: a frame is refused unless every
 * length and every enum fits.
 *
 *   front                          worker
 *     OPEN  settings      ------->        the first frame, once
 *           <-------  READY info  |  REPLY with a fault (then it exits)
 *     REQUEST n           ------->        any number in flight, any order back
 *           <-------  ITEM n ...          (SCAN only)
 *           <-------  REPLY n
 *
 * Numbers are the front's own; the worker only repeats them. Encoding never
 * fails: buffers of FRAME_MAX bytes hold every frame. */
#ifndef HSM_WIRE_FRAME_H
#define HSM_WIRE_FRAME_H

#include "hsm/base/file_stamp.h"
#include "hsm/wire/types.h"

enum {
    FRAME_MAX = 8192,
    FRAME_BUILD_ID = 32,
};

/* How a worker is started: the descriptors it is given, and its one argument. The identity
 * lock is there only if the front holds it. */
enum { FRAME_SOCKET_FD = 3, FRAME_PAGE_FD = 4, FRAME_LOCK_FD = 5 };
#define FRAME_WORKER_ARGUMENT "worker"

enum frame_kind {
    FRAME_OPEN = 1,
    FRAME_READY,
    FRAME_REQUEST,
    FRAME_ITEM,
    FRAME_REPLY,
};

/* A decoded frame; kind says which member counts. */
struct frame {
    enum frame_kind kind;
    uint32_t number;
    union {
        struct hsm_settings settings;
        struct hsm_token_info info;
        struct hsm_request request;
        struct hsm_item item;
        struct hsm_reply reply;
    };
};

/* Encodes *frame into `bytes` and returns the length. */
size_t frame_encode(const struct frame *frame, uint8_t bytes[FRAME_MAX]);

/* FAULT_INTERNAL names the part that does not fit; FAULT_FAILED_PRECONDITION: an OPEN or READY of
 * another build. *frame is untouched then. */
int frame_decode(const uint8_t *bytes, size_t length, struct frame *frame, struct fault *fault);

/* The number in bytes that did not decode, for a reply that says so; 0 if too short. */
uint32_t frame_number(const uint8_t *bytes, size_t length);

/* Identifies the layout of frames, the same in both programs of a build; in OPEN and READY
 * frames. Text of FRAME_BUILD_ID bytes, padded with NULs, at least one. */
const char *frame_build_id(void);

/* The request that each thread of the worker is executing. The front may read it at any time: time
 * limits count from the start of execution, and a worker's death is charged to the requests it was
 * executing. The page is a memfd of sizeof(struct frame_page) bytes, mapped by both. A thread
 * writes `started` first, then `number`; it clears `number` when it is done. 0 = idle. */
struct frame_slot {
    _Atomic int64_t started; /* clock_now() */
    _Atomic uint32_t number;
    _Atomic uint32_t op; /* its operation. HSM_GENERATE becomes HSM_PROVE when the pair is made,
                            with a new `started` */
};

struct frame_page {
    struct frame_slot slots[HSM_SESSIONS_MAX];
    uint64_t open_files; /* RLIMIT_NOFILE's soft limit as the front was given it, 0 = leave it;
                            written before the worker starts */
    /* The PIN's file. The front never asks its file system for anything: it may hang. The front
     * writes `refused` and `pin` before OPEN: the file's stamp when the PIN was refused. The worker
     * looks at the file before it opens the token. If the stamp is the same, it goes no further.
     * Otherwise it clears `refused` and writes the new stamp into `pin`. */
    bool refused;
    struct file_stamp pin;
    _Atomic int64_t looking; /* clock_now() when it began to look, or to read the keys_file; 0 = it
                                is doing neither */
};

#endif
