/* Requests and replies as bytes between front and worker, which are always of one build. The reader
 * still trusts no length and no number. */
#include "hsm/wire/frame.h"

#include <string.h>

/* No field is longer in a frame than in its struct, except for the length of a text. */
_Static_assert(sizeof(struct frame) + FRAME_BUILD_ID + 64 <= FRAME_MAX, "every frame fits");

/* ---- writing; numbers are little-endian ---- */

struct writer {
    uint8_t *at;
};

static void put_number(struct writer *w, size_t width, uint64_t number)
{
    for (size_t i = 0; i < width; i++)
        *w->at++ = (uint8_t)(number >> (8 * i));
}

static void put_raw(struct writer *w, const void *bytes, size_t length)
{
    memcpy(w->at, bytes, length);
    w->at += length;
}

static void put_bytes(struct writer *w, const uint8_t *bytes, size_t length, size_t max)
{
    if (length > max)
        length = max;
    put_number(w, 2, length);
    put_raw(w, bytes, length);
}

static void put_text(struct writer *w, const char *text, size_t size)
{
    size_t length = strnlen(text, size - 1);

    put_number(w, 2, length);
    put_raw(w, text, length);
}

/* ---- reading: the first thing that does not fit is remembered, the rest reads as 0 ---- */

struct reader {
    const uint8_t *at;
    size_t left;
    const char *wrong;
    enum fault_code code;
};

static void mark_wrong(struct reader *r, enum fault_code code, const char *what)
{
    if (!r->wrong) {
        r->wrong = what;
        r->code = code;
    }
    r->left = 0;
}

static const uint8_t *take_bytes(struct reader *r, size_t length, const char *what)
{
    const uint8_t *bytes = r->at;

    if (r->wrong || length > r->left) {
        mark_wrong(r, FAULT_INTERNAL, what);
        return NULL;
    }
    r->at += length;
    r->left -= length;
    return bytes;
}

static uint64_t get_wide(struct reader *r, size_t width, const char *what)
{
    const uint8_t *bytes = take_bytes(r, width, what);
    uint64_t number = 0;

    for (size_t i = 0; bytes && i < width; i++)
        number |= (uint64_t)bytes[i] << (8 * i);
    return number;
}

static uint32_t get_number(struct reader *r, const char *what)
{
    return (uint32_t)get_wide(r, 4, what);
}

/* Reads a byte that must be one of low .. high. */
static uint8_t get_small(struct reader *r, uint8_t low, uint8_t high, const char *what)
{
    const uint8_t *byte = take_bytes(r, 1, what);

    if (byte && *byte >= low && *byte <= high)
        return *byte;
    mark_wrong(r, FAULT_INTERNAL, what);
    return low;
}

static bool get_flag(struct reader *r, const char *what)
{
    return get_small(r, 0, 1, what) == 1;
}

static void get_raw(struct reader *r, uint8_t *bytes, size_t length, const char *what)
{
    const uint8_t *from = take_bytes(r, length, what);

    if (from)
        memcpy(bytes, from, length);
}

static uint32_t get_bytes(struct reader *r, uint8_t *bytes, size_t max, const char *what)
{
    size_t length = (size_t)get_wide(r, 2, what);

    if (length > max) {
        mark_wrong(r, FAULT_INTERNAL, what);
        return 0;
    }
    get_raw(r, bytes, length, what);
    return (uint32_t)length;
}

static void get_text(struct reader *r, char *text, size_t size, const char *what)
{
    size_t length = (size_t)get_wide(r, 2, what);
    const uint8_t *from = length < size ? take_bytes(r, length, what) : NULL;

    if (!from || memchr(from, '\0', length)) {
        mark_wrong(r, FAULT_INTERNAL, what);
        return;
    }
    memcpy(text, from, length);
    text[length] = '\0';
}

/* ---- parts ---- */

static void put_name(struct writer *w, const struct hsm_key_name *name)
{
    put_text(w, name->label, sizeof name->label);
    put_bytes(w, name->id, name->id_length, sizeof name->id);
}

static void get_name(struct reader *r, struct hsm_key_name *name)
{
    get_text(r, name->label, sizeof name->label, "label");
    name->id_length = get_bytes(r, name->id, sizeof name->id, "CKA_ID");
}

static void put_fault(struct writer *w, const struct fault *fault)
{
    put_number(w, 1, (uint64_t)fault->code);
    put_number(w, 8, fault->ckr);
    put_text(w, fault->message, sizeof fault->message);
}

static enum fault_code get_fault_code(struct reader *r)
{
    static const bool known[FAULT_UNAVAILABLE + 1] = {
        [FAULT_NONE] = true,
        [FAULT_CANCELLED] = true,
        [FAULT_INVALID_ARGUMENT] = true,
        [FAULT_DEADLINE_EXCEEDED] = true,
        [FAULT_NOT_FOUND] = true,
        [FAULT_PERMISSION_DENIED] = true,
        [FAULT_RESOURCE_EXHAUSTED] = true,
        [FAULT_FAILED_PRECONDITION] = true,
        [FAULT_ABORTED] = true,
        [FAULT_UNIMPLEMENTED] = true,
        [FAULT_INTERNAL] = true,
        [FAULT_UNAVAILABLE] = true,
    };
    uint8_t code = get_small(r, 0, FAULT_UNAVAILABLE, "fault code");

    if (!known[code])
        mark_wrong(r, FAULT_INTERNAL, "fault code");
    return (enum fault_code)code;
}

static void get_fault(struct reader *r, struct fault *fault)
{
    fault->code = get_fault_code(r);
    fault->ckr = get_wide(r, 8, "CK_RV");
    get_text(r, fault->message, sizeof fault->message, "fault message");
}

static void put_public_key(struct writer *w, const struct hsm_public_key *key)
{
    put_number(w, 1, (uint64_t)key->type);
    put_bytes(w, key->pkix, key->pkix_length, sizeof key->pkix);
    put_raw(w, key->fingerprint, sizeof key->fingerprint);
}

static void get_public_key(struct reader *r, struct hsm_public_key *key)
{
    key->type = get_small(r, HSM_KEY_NONE, HSM_RSA_4096, "type of public key");
    key->pkix_length = get_bytes(r, key->pkix, sizeof key->pkix, "public key");
    get_raw(r, key->fingerprint, sizeof key->fingerprint, "fingerprint of public key");
}

static enum hsm_hash get_hash(struct reader *r)
{
    enum hsm_hash hash = get_small(r, HSM_HASH_NONE, HSM_SHA512_256, "hash");

    if (hash != HSM_HASH_NONE && hsm_hash_length(hash) == 0)
        mark_wrong(r, FAULT_INTERNAL, "hash");
    return hash;
}

static uint32_t get_sessions(struct reader *r)
{
    uint32_t sessions = get_number(r, "sessions");

    if (sessions < 1 || sessions > HSM_SESSIONS_MAX)
        mark_wrong(r, FAULT_INTERNAL, "sessions");
    return sessions;
}

static void put_build(struct writer *w)
{
    put_raw(w, frame_build_id(), FRAME_BUILD_ID);
}

static void get_build(struct reader *r)
{
    const uint8_t *build = take_bytes(r, FRAME_BUILD_ID, "build id");

    if (build && memcmp(build, frame_build_id(), FRAME_BUILD_ID) != 0)
        mark_wrong(r, FAULT_FAILED_PRECONDITION, "it is of another build");
}

/* ---- kinds ---- */

static void put_open(struct writer *w, const struct frame *frame)
{
    const struct hsm_settings *settings = &frame->settings;

    put_build(w);
    put_text(w, settings->module, sizeof settings->module);
    put_text(w, settings->module_args, sizeof settings->module_args);
    put_text(w, settings->token, sizeof settings->token);
    put_text(w, settings->serial, sizeof settings->serial);
    put_number(w, 1, (uint64_t)settings->pin_kind);
    put_text(w, settings->pin_text, sizeof settings->pin_text);
    put_text(w, settings->latch, sizeof settings->latch);
    put_number(w, 4, settings->sessions);
    put_number(w, 1, settings->lenient);
    put_number(w, 1, settings->least);
    put_number(w, 1, settings->verify_always);
    put_text(w, settings->keys_file, sizeof settings->keys_file);
}

static void get_open(struct reader *r, struct frame *frame)
{
    struct hsm_settings *settings = &frame->settings;

    get_build(r);
    get_text(r, settings->module, sizeof settings->module, "module");
    get_text(r, settings->module_args, sizeof settings->module_args, "module's arguments");
    get_text(r, settings->token, sizeof settings->token, "token");
    get_text(r, settings->serial, sizeof settings->serial, "serial");
    settings->pin_kind = get_small(r, HSM_PIN_NONE, HSM_PIN_INLINE, "kind of PIN");
    get_text(r, settings->pin_text, sizeof settings->pin_text, "PIN source");
    get_text(r, settings->latch, sizeof settings->latch, "PIN latch");
    settings->sessions = get_sessions(r);
    settings->lenient = get_flag(r, "lenient");
    settings->least = get_flag(r, "least");
    settings->verify_always = get_flag(r, "verify_always");
    get_text(r, settings->keys_file, sizeof settings->keys_file, "keys_file");
}

static void put_ready(struct writer *w, const struct frame *frame)
{
    const struct hsm_token_info *info = &frame->info;

    put_build(w);
    put_text(w, info->label, sizeof info->label);
    put_text(w, info->manufacturer, sizeof info->manufacturer);
    put_text(w, info->model, sizeof info->model);
    put_text(w, info->serial, sizeof info->serial);
    put_text(w, info->library, sizeof info->library);
    put_number(w, 8, info->slot);
    for (size_t i = 0; i < sizeof info->can_generate / sizeof info->can_generate[0]; i++)
        put_number(w, 1, info->can_generate[i]);
    for (size_t i = 0; i < sizeof info->doubtful / sizeof info->doubtful[0]; i++)
        put_number(w, 1, info->doubtful[i]);
    put_number(w, 1, info->write_protected);
    put_text(w, info->remarks, sizeof info->remarks);
    put_number(w, 4, info->sessions);
}

static void get_ready(struct reader *r, struct frame *frame)
{
    struct hsm_token_info *info = &frame->info;

    get_build(r);
    get_text(r, info->label, sizeof info->label, "token label");
    get_text(r, info->manufacturer, sizeof info->manufacturer, "manufacturer");
    get_text(r, info->model, sizeof info->model, "model");
    get_text(r, info->serial, sizeof info->serial, "serial");
    get_text(r, info->library, sizeof info->library, "library");
    info->slot = get_wide(r, 8, "slot");
    for (size_t i = 0; i < sizeof info->can_generate / sizeof info->can_generate[0]; i++)
        info->can_generate[i] = get_flag(r, "key types");
    for (size_t i = 0; i < sizeof info->doubtful / sizeof info->doubtful[0]; i++)
        info->doubtful[i] = get_flag(r, "doubtful key types");
    info->write_protected = get_flag(r, "write protection");
    get_text(r, info->remarks, sizeof info->remarks, "remarks");
    info->sessions = get_sessions(r);
}

static void put_place(struct writer *w, const struct hsm_place *place)
{
    put_number(w, 8, place->epoch);
    put_number(w, 8, place->handle);
}

static void get_place(struct reader *r, struct hsm_place *place)
{
    place->epoch = get_wide(r, 8, "epoch");
    place->handle = get_wide(r, 8, "handle");
}

static void put_request(struct writer *w, const struct frame *frame)
{
    const struct hsm_request *request = &frame->request;

    put_number(w, 1, (uint64_t)request->op);
    put_name(w, &request->key);
    put_number(w, 1, (uint64_t)request->type);
    put_raw(w, request->fingerprint, sizeof request->fingerprint);
    put_number(w, 1, (uint64_t)request->expect);
    put_text(w, request->prefix, sizeof request->prefix);
    put_number(w, 4, request->limit_ms);
    put_number(w, 1, request->sliced);
    put_place(w, &request->from);
    put_number(w, 1, (uint64_t)request->scheme);
    put_number(w, 1, (uint64_t)request->hash);
    put_number(w, 4, (uint32_t)request->salt_length);
    put_bytes(w, request->digest, request->digest_length, sizeof request->digest);
}

static void get_request(struct reader *r, struct frame *frame)
{
    struct hsm_request *request = &frame->request;

    request->op = get_small(r, HSM_SCAN, HSM_PING, "operation");
    get_name(r, &request->key);
    request->type = get_small(r, HSM_KEY_NONE, HSM_RSA_4096, "key type");
    get_raw(r, request->fingerprint, sizeof request->fingerprint, "fingerprint");
    request->expect = get_small(r, HSM_EXPECT_ANY, HSM_EXPECT_HALF, "expectation");
    get_text(r, request->prefix, sizeof request->prefix, "prefix");
    request->limit_ms = get_number(r, "limit");
    request->sliced = get_flag(r, "slice");
    get_place(r, &request->from);
    request->scheme = get_small(r, HSM_PLAIN, HSM_PSS, "scheme");
    request->hash = get_hash(r);
    request->salt_length = (int32_t)get_number(r, "salt length");
    request->digest_length = get_bytes(r, request->digest, sizeof request->digest, "digest");
}

static void put_item(struct writer *w, const struct frame *frame)
{
    put_name(w, &frame->item.key);
    put_number(w, 1, (uint64_t)frame->item.state);
    put_public_key(w, &frame->item.public_key);
}

static void get_item(struct reader *r, struct frame *frame)
{
    get_name(r, &frame->item.key);
    frame->item.state = get_small(r, HSM_ABSENT, HSM_DUPLICATE, "state");
    get_public_key(r, &frame->item.public_key);
}

static void put_reply(struct writer *w, const struct frame *frame)
{
    const struct hsm_reply *reply = &frame->reply;

    put_fault(w, &reply->fault);
    put_number(w, 1, (uint64_t)reply->state);
    put_text(w, reply->why, sizeof reply->why);
    put_public_key(w, &reply->public_key);
    put_bytes(w, reply->signature, reply->signature_length, sizeof reply->signature);
    put_place(w, &reply->next);
    put_number(w, 4, reply->items);
    put_number(w, 4, reply->nameless);
    put_number(w, 4, reply->unreadable);
    put_number(w, 4, reply->foreign);
    put_number(w, 4, reply->microseconds);
}

static void get_reply(struct reader *r, struct frame *frame)
{
    struct hsm_reply *reply = &frame->reply;

    get_fault(r, &reply->fault);
    reply->state = get_small(r, HSM_ABSENT, HSM_MISSIGNED, "state");
    get_text(r, reply->why, sizeof reply->why, "reason");
    get_public_key(r, &reply->public_key);
    reply->signature_length = get_bytes(r, reply->signature, sizeof reply->signature, "signature");
    get_place(r, &reply->next);
    reply->items = get_number(r, "items");
    reply->nameless = get_number(r, "nameless objects");
    reply->unreadable = get_number(r, "unreadable objects");
    reply->foreign = get_number(r, "foreign objects");
    reply->microseconds = get_number(r, "time");
}

static const struct codec {
    void (*put)(struct writer *w, const struct frame *frame);
    void (*get)(struct reader *r, struct frame *frame);
} codecs[] = {
    [FRAME_OPEN] = {put_open, get_open},          [FRAME_READY] = {put_ready, get_ready},
    [FRAME_REQUEST] = {put_request, get_request}, [FRAME_ITEM] = {put_item, get_item},
    [FRAME_REPLY] = {put_reply, get_reply},
};

size_t frame_encode(const struct frame *frame, uint8_t bytes[FRAME_MAX])
{
    struct writer w = {bytes};

    put_number(&w, 1, (uint64_t)frame->kind);
    put_number(&w, 4, frame->number);
    codecs[frame->kind].put(&w, frame);
    return (size_t)(w.at - bytes);
}

int frame_decode(const uint8_t *bytes, size_t length, struct frame *frame, struct fault *fault)
{
    struct reader r = {.at = bytes, .left = length, .wrong = NULL, .code = FAULT_NONE};
    struct frame made = {.kind = FRAME_OPEN};

    made.kind = get_small(&r, FRAME_OPEN, FRAME_REPLY, "kind");
    made.number = get_number(&r, "number");
    if (!r.wrong)
        codecs[made.kind].get(&r, &made);
    if (r.left > 0)
        mark_wrong(&r, FAULT_INTERNAL, "bytes behind its end");
    if (!r.wrong)
        *frame = made;
    if (made.kind == FRAME_OPEN)
        explicit_bzero(&made.settings, sizeof made.settings); /* there may be a PIN in it */
    if (r.wrong)
        return fault_set(fault, r.code,
                         "a packet from the other process of this plugin is wrong: %s", r.wrong);
    return 0;
}

uint32_t frame_number(const uint8_t *bytes, size_t length)
{
    struct reader r = {.at = bytes, .left = length, .wrong = NULL, .code = FAULT_NONE};

    (void)take_bytes(&r, 1, "kind");
    return get_number(&r, "number");
}
