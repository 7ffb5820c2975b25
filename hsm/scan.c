/* Lists our keys on the token: one walk over all objects, one call for each, and all sorting here.
 * A search for each single key would walk all objects each time (SoftHSM), which is quadratic. */
#include "hsm/token.h"

#include <string.h>
#include <unistd.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "hsm/object.h"
#include "hsm/wire/rv.h"

enum {
    BATCH = 512,
    HANDLES_MAX = 1 << 20, /* a walk that is longer shows a broken module */
    RECORDS_MAX = 1 << 16,
    ID_ROOM = 64, /* some foreign ids have 20 bytes, and a token calls too little room an error */
};

struct record {
    struct hsm_key_name name;
    bool private_key;
    CK_OBJECT_HANDLE handle;
};

struct handles {
    CK_OBJECT_HANDLE *list; /* owned */
    size_t count;
    size_t room;
};

struct findings {
    struct handles objects;
    CK_OBJECT_HANDLE readable; /* a handle that can be read, or HANDLE_NONE */
    struct fault unreadable;   /* the latest error of a handle that cannot */
    struct record *records;    /* owned */
    size_t record_count;
    size_t record_room;
    uint32_t nameless;
    uint32_t foreign;
    uint32_t unreadable_count; /* among the nameless objects */
    int64_t until;             /* on clock_now()'s clock */
    bool late;                 /* time was over before all objects were read */
};

static void release_handles(struct handles *handles)
{
    free(handles->list);
}

static void release_findings(struct findings *findings)
{
    release_handles(&findings->objects);
    free(findings->records);
}

/* ---- walking ---- */

static int add_handles(struct handles *handles, const CK_OBJECT_HANDLE *batch, size_t count,
                       struct fault *fault)
{
    if (!handles->list || handles->count + count > handles->room) {
        size_t room = 2 * handles->room + BATCH;
        CK_OBJECT_HANDLE *grown =
            room <= HANDLES_MAX ? realloc(handles->list, room * sizeof *grown) : NULL;

        if (!grown)
            return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "too many objects on the token");
        handles->list = grown;
        handles->room = room;
    }
    memcpy(handles->list + handles->count, batch, count * sizeof *batch);
    handles->count += count;
    return 0;
}

static int walk(const struct session *session, struct handles *handles, struct fault *fault)
{
    CK_OBJECT_HANDLE batch[BATCH];
    CK_ULONG count;

    do {
        if (object_next(session, batch, BATCH, &count, fault) != 0)
            return -1;
        if (add_handles(handles, batch, count, fault) != 0)
            return -1;
    } while (count > 0);
    return 0;
}

/* Takes all results of the search that was begun, and ends it. */
static int collect(const struct session *session, struct handles *handles, struct fault *fault)
{
    int done = walk(session, handles, fault);
    CK_RV rv = MODULE_CALL(session->module, C_FindObjectsFinal, session->handle);

    if (done != 0)
        return -1;
    return rv == CKR_OK ? 0 : rv_fault(rv, "C_FindObjectsFinal", fault);
}

/* An empty template would match everything, but CloudHSM refuses it. */
static int enumerate(const struct session *session, struct handles *handles, struct fault *fault)
{
    CK_BBOOL yes = CK_TRUE;
    CK_ATTRIBUTE on_token = {CKA_TOKEN, &yes, sizeof yes};
    CK_RV rv = MODULE_CALL(session->module, C_FindObjectsInit, session->handle, NULL, 0);

    if (rv != CKR_OK && (rv_class(rv) == RV_TEMPLATE || rv_class(rv) == RV_PERMANENT))
        rv = MODULE_CALL(session->module, C_FindObjectsInit, session->handle, &on_token, 1);
    return rv == CKR_OK ? collect(session, handles, fault)
                        : rv_fault(rv, "C_FindObjectsInit", fault);
}

static int enumerate_class(const struct session *session, CK_OBJECT_CLASS class,
                           struct handles *handles, struct fault *fault)
{
    CK_ATTRIBUTE of_class = {CKA_CLASS, &class, sizeof class};
    CK_RV rv = MODULE_CALL(session->module, C_FindObjectsInit, session->handle, &of_class, 1);

    return rv == CKR_OK ? collect(session, handles, fault)
                        : rv_fault(rv, "C_FindObjectsInit", fault);
}

/* ---- reading ---- */

/* A key object as the token shows it. A value whose length does not fit counts as absent. */
struct glimpse {
    CK_OBJECT_CLASS class;
    uint8_t label[HSM_LABEL_MAX + 1];
    uint8_t id[ID_ROOM + 1];
    CK_ULONG label_length;
    CK_ULONG id_length;
};

static CK_ULONG usable(const CK_ATTRIBUTE *attribute, CK_ULONG room)
{
    return attribute->ulValueLen < room ? attribute->ulValueLen : 0;
}

static bool is_told(const CK_ATTRIBUTE *attribute, CK_ULONG room)
{
    return attribute->ulValueLen < room;
}

/* Did the token fill in all that is needed of this object? All valid class numbers are small. If
 * the token writes only four bytes, the other four keep our fill bytes, and the number is too
 * large. */
static bool is_clear(const struct glimpse *glimpse, const CK_ATTRIBUTE attributes[3])
{
    if (glimpse->class > UINT32_MAX)
        return false;
    return (glimpse->class != CKO_PRIVATE_KEY && glimpse->class != CKO_PUBLIC_KEY) ||
           (is_told(&attributes[1], sizeof glimpse->label) &&
            is_told(&attributes[2], sizeof glimpse->id));
}

static CK_ULONG take(const struct object_value *value, uint8_t *bytes, CK_ULONG room)
{
    CK_ULONG length = value->readable && value->length < room ? value->length : 0;

    memcpy(bytes, value->bytes, length);
    return length;
}

static int read_one_by_one(const struct session *session, CK_OBJECT_HANDLE handle,
                           struct glimpse *glimpse, struct fault *fault)
{
    struct object_value value;

    if (object_read(session, handle, CKA_CLASS, &value, fault) != 0)
        return -1;
    glimpse->class = CK_UNAVAILABLE_INFORMATION;
    (void)object_number(&value, &glimpse->class);
    if (object_read(session, handle, CKA_LABEL, &value, fault) != 0)
        return -1;
    glimpse->label_length = take(&value, glimpse->label, sizeof glimpse->label);
    if (object_read(session, handle, CKA_ID, &value, fault) != 0)
        return -1;
    glimpse->id_length = take(&value, glimpse->id, sizeof glimpse->id);
    return 0;
}

/* PKCS#11 2.40 5.7.5: absent attributes must not keep the others from being filled in. Many tokens
 * break this rule, or take one attribute at a time. */
static int read_attributes(const struct session *session, CK_OBJECT_HANDLE handle,
                           struct glimpse *glimpse, struct fault *fault)
{
    CK_ATTRIBUTE attributes[] = {{CKA_CLASS, &glimpse->class, sizeof glimpse->class},
                                 {CKA_LABEL, glimpse->label, sizeof glimpse->label},
                                 {CKA_ID, glimpse->id, sizeof glimpse->id}};
    CK_RV rv;

    glimpse->class = CK_UNAVAILABLE_INFORMATION;
    rv = MODULE_CALL(session->module, C_GetAttributeValue, session->handle, handle, attributes, 3);
    if (rv != CKR_OK && !rv_is_about_attribute(rv) && rv_class(rv) != RV_PERMANENT)
        return rv_fault(rv, "C_GetAttributeValue", fault);
    if (attributes[0].ulValueLen != sizeof glimpse->class)
        glimpse->class = CK_UNAVAILABLE_INFORMATION;
    if (!is_clear(glimpse, attributes))
        return read_one_by_one(session, handle, glimpse, fault);
    glimpse->label_length = usable(&attributes[1], sizeof glimpse->label);
    glimpse->id_length = usable(&attributes[2], sizeof glimpse->id);
    return 0;
}

/* Every key of ours has an id. A key without one could not be told from others of its name. */
static bool has_our_name(const struct glimpse *glimpse, const char *prefix)
{
    size_t length = strlen(prefix);

    return glimpse->label_length >= length && memcmp(glimpse->label, prefix, length) == 0 &&
           memchr(glimpse->label, '\0', glimpse->label_length) == NULL && glimpse->id_length > 0 &&
           glimpse->id_length <= HSM_ID_MAX;
}

static int add_record(struct findings *findings, const struct glimpse *glimpse,
                      CK_OBJECT_HANDLE handle, struct fault *fault)
{
    struct record *record;

    if (findings->record_count == findings->record_room) {
        size_t room = 2 * findings->record_room + 64;
        struct record *grown =
            room <= RECORDS_MAX ? realloc(findings->records, room * sizeof *grown) : NULL;

        if (!grown)
            return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "too many keys on the token");
        findings->records = grown;
        findings->record_room = room;
    }
    record = &findings->records[findings->record_count++];
    memset(record, 0, sizeof *record);
    memcpy(record->name.label, glimpse->label, glimpse->label_length);
    memcpy(record->name.id, glimpse->id, glimpse->id_length);
    record->name.id_length = (uint32_t)glimpse->id_length;
    record->private_key = glimpse->class == CKO_PRIVATE_KEY;
    record->handle = handle;
    return 0;
}

static int note_object(struct findings *findings, const struct glimpse *glimpse,
                       CK_OBJECT_HANDLE handle, const char *prefix, struct fault *fault)
{
    if (glimpse->class != CKO_PRIVATE_KEY && glimpse->class != CKO_PUBLIC_KEY)
        return 0;
    if (has_our_name(glimpse, prefix))
        return add_record(findings, glimpse, handle, fault);
    if (glimpse->label_length == 0 && glimpse->id_length == 0)
        findings->nameless++;
    else
        findings->foreign++;
    return 0;
}

/* An unreadable object goes back into the list, at its front, which is dealt with by then. "No such
 * handle" counts as any other error: in a failover a cluster says so of objects that exist. */
static int read_object(const struct call *call, const struct session *session,
                       CK_OBJECT_HANDLE handle, struct findings *findings, struct fault *fault)
{
    struct glimpse glimpse;

    if (read_attributes(session, handle, &glimpse, fault) == 0) {
        findings->readable = handle;
        return note_object(findings, &glimpse, handle, call->request->prefix, fault);
    }
    if (rv_class(fault->ckr) != RV_HANDLE && fault->ckr != CKR_GENERAL_ERROR &&
        fault->ckr != CKR_FUNCTION_FAILED)
        return -1;
    findings->objects.list[findings->objects.count++] = handle;
    findings->unreadable = *fault;
    return 0;
}

static int read_objects(const struct call *call, const struct session *session,
                        struct findings *findings, struct fault *fault)
{
    size_t count = findings->objects.count;

    findings->objects.count = 0;
    for (size_t i = 0; i < count && !(findings->late = clock_now() > findings->until); i++)
        if (read_object(call, session, findings->objects.list[i], findings, fault) != 0)
            return -1;
    return 0;
}

static bool is_in(const struct handles *handles, CK_OBJECT_HANDLE handle)
{
    for (size_t i = 0; i < handles->count; i++)
        if (handles->list[i] == handle)
            return true;
    return false;
}

/* Drops handles that a second walk does not show: these objects went during the first walk. */
static int drop_gone(const struct session *session, struct findings *findings, struct fault *fault)
{
    OWNED(release_handles) struct handles there = {.list = NULL};
    struct handles *left = &findings->objects;
    size_t kept = 0;

    if (left->count == 0)
        return 0;
    if (enumerate(session, &there, fault) != 0)
        return -1;
    for (size_t i = 0; i < left->count; i++)
        if (is_in(&there, left->list[i]))
            left->list[kept++] = left->list[i];
    left->count = kept;
    return 0;
}

/* Two reads have failed for each object that is left after drop_gone. An object that SoftHSM was
 * writing when it was killed stays unreadable for ever, and counts as nameless. But the token may
 * be away just now, and an unreadable object may be a key of ours. So the caller learns their
 * number. Moreover, another object must be readable now, or the token itself must say that this is
 * no key. */
static int explain_unreadable(const struct session *session, struct findings *findings,
                              struct fault *fault)
{
    OWNED(release_handles) struct handles keys = {.list = NULL};
    const struct handles *left = &findings->objects;
    struct glimpse glimpse;

    if (drop_gone(session, findings, fault) != 0)
        return -1;
    findings->nameless += (uint32_t)left->count;
    findings->unreadable_count = (uint32_t)left->count;
    if (left->count == 0 || (findings->readable != HANDLE_NONE &&
                             read_attributes(session, findings->readable, &glimpse, fault) == 0))
        return 0;
    if (enumerate_class(session, CKO_PRIVATE_KEY, &keys, fault) != 0 ||
        enumerate_class(session, CKO_PUBLIC_KEY, &keys, fault) != 0)
        return -1;
    *fault = findings->unreadable;
    for (size_t i = 0; i < left->count; i++)
        if (is_in(&keys, left->list[i]))
            return -1;
    return 0;
}

/* ---- pairing ---- */

static int compare_names(const struct hsm_key_name *a, const struct hsm_key_name *b)
{
    int order = strcmp(a->label, b->label);

    if (order == 0)
        order = memcmp(a->id, b->id, sizeof a->id);
    return order != 0 ? order : (int)a->id_length - (int)b->id_length;
}

static int compare_records(const void *a, const void *b)
{
    return compare_names(&((const struct record *)a)->name, &((const struct record *)b)->name);
}

static enum hsm_state state_of(uint32_t private_keys, uint32_t public_keys)
{
    if (private_keys > 1)
        return HSM_DUPLICATE;
    return private_keys == 1 && public_keys > 0 ? HSM_COMPLETE : HSM_HALF;
}

/* A group is all records of one name, which stand side by side. Returns its end. */
static size_t take_group(const struct findings *findings, size_t start, uint32_t halves[2],
                         struct hint *hint)
{
    const struct record *first = &findings->records[start];
    size_t next = start;

    halves[false] = 0;
    halves[true] = 0;
    hint->name = first->name;
    for (; next < findings->record_count; next++) {
        const struct record *record = &findings->records[next];

        if (compare_names(&record->name, &first->name) != 0)
            break;
        halves[record->private_key]++;
        if (record->private_key)
            hint->pair.private_key = record->handle;
        else
            hint->pair.public_key = record->handle;
    }
    return next;
}

/* Items are emitted only when all are known, so that a repeated walk emits none twice. Without
 * memory for hints there are none. */
static void emit_items(const struct call *call, const struct findings *findings, uint32_t logins)
{
    struct hint *hints = calloc(findings->record_count / 2 + 1, sizeof *hints);
    size_t hint_count = 0;
    size_t next;

    for (size_t i = 0; i < findings->record_count; i = next) {
        struct hsm_item item = {.key = findings->records[i].name};
        struct hint hint;
        uint32_t halves[2];

        next = take_group(findings, i, halves, &hint);
        item.state = state_of(halves[true], halves[false]);
        if (hints && halves[true] == 1 && halves[false] == 1)
            hints[hint_count++] = hint;
        call->item(call->item_context, &item);
        call->reply->items++;
    }
    call->reply->nameless = findings->nameless;
    call->reply->unreadable = findings->unreadable_count;
    call->reply->foreign = findings->foreign;
    hints_replace(&call->token->hints, hints, hint_count, logins);
}

static int64_t limit_of(const struct hsm_request *request)
{
    return request->limit_ms > 0 ? request->limit_ms * CLOCK_MILLISECOND : CLOCK_NEVER / 2;
}

/* Handles are valid for one login of one process. */
static struct hsm_place place_of(uint32_t logins, CK_OBJECT_HANDLE handle)
{
    return (struct hsm_place){(uint64_t)getpid() << 32 | logins, handle};
}

static int scan_all(const struct call *call, const struct session *session, struct fault *fault)
{
    OWNED(release_findings)
    struct findings findings = {.readable = HANDLE_NONE,
                                .until = clock_now() + limit_of(call->request)};
    uint32_t logins = call->token->pool.logins;

    if (session_check(&call->token->pool, session, fault) != 0 ||
        enumerate(session, &findings.objects, fault) != 0 ||
        read_objects(call, session, &findings, fault) != 0)
        return -1;
    if (!findings.late && /* those left over once more */
        (read_objects(call, session, &findings, fault) != 0 ||
         explain_unreadable(session, &findings, fault) != 0 ||
         session_check_since(&call->token->pool, session, logins, fault) != 0))
        return -1;
    if (findings.late) {
        call->reply->next = place_of(logins, 0);
        return 0;
    }
    if (findings.record_count > 0)
        qsort(findings.records, findings.record_count, sizeof *findings.records, compare_records);
    emit_items(call, &findings, logins);
    return 0;
}

/* ---- in slices ---- */

static int compare_handles(const void *a, const void *b)
{
    const CK_OBJECT_HANDLE first = *(const CK_OBJECT_HANDLE *)a;
    const CK_OBJECT_HANDLE second = *(const CK_OBJECT_HANDLE *)b;

    return (first > second) - (first < second);
}

static int list_private(const struct session *session, struct findings *findings,
                        struct fault *fault)
{
    struct handles *handles = &findings->objects;

    if (enumerate_class(session, CKO_PRIVATE_KEY, handles, fault) != 0)
        return -1;
    if (handles->count > 0)
        qsort(handles->list, handles->count, sizeof *handles->list, compare_handles);
    return 0;
}

/* Reads from the first handle that is not below `from`, and at least one. An unreadable object is
 * left out: as a key it is of no use either. */
static int read_slice(const struct call *call, const struct session *session,
                      struct findings *findings, uint32_t logins, struct fault *fault)
{
    const struct handles handles = findings->objects;
    struct hsm_place *next = &call->reply->next;
    size_t i = 0;

    findings->objects.count = 0; /* what cannot be read is put back in front */
    while (i < handles.count && handles.list[i] < call->request->from.handle)
        i++;
    for (*next = (struct hsm_place){0}; i < handles.count && next->epoch == 0; i++) {
        CK_OBJECT_HANDLE handle = handles.list[i];

        if (read_object(call, session, handle, findings, fault) != 0)
            return -1;
        if (clock_now() >= findings->until && i + 1 < handles.count)
            *next = place_of(logins, handle + 1);
    }
    return 0;
}

static void emit_private(const struct call *call, const struct findings *findings)
{
    for (size_t i = 0; i < findings->record_count; i++) {
        const struct hsm_item item = {.key = findings->records[i].name, .state = HSM_HALF};

        call->item(call->item_context, &item);
    }
    call->reply->items = (uint32_t)findings->record_count;
    call->reply->nameless = findings->nameless;
    call->reply->foreign = findings->foreign;
}

/* Listing costs one call for hundreds of objects, reading one call for each. Where listing takes
 * long all the same, reading may take as long. */
static int scan_slice(const struct call *call, const struct session *session, struct fault *fault)
{
    OWNED(release_findings) struct findings findings = {.readable = HANDLE_NONE};
    uint32_t logins = call->token->pool.logins;
    const struct hsm_place *from = &call->request->from;
    const struct hsm_place begin = place_of(logins, 0);
    int64_t begun = clock_now();
    int64_t listed;

    if (session_check(&call->token->pool, session, fault) != 0)
        return -1;
    if (from->epoch != 0 && from->epoch != begin.epoch) {
        call->reply->next = begin;
        return 0;
    }
    if (list_private(session, &findings, fault) != 0)
        return -1;
    listed = clock_now();
    findings.until = listed + clock_later(limit_of(call->request), listed - begun);
    if (read_slice(call, session, &findings, logins, fault) != 0 ||
        session_check_since(&call->token->pool, session, logins, fault) != 0)
        return -1;
    emit_private(call, &findings);
    return 0;
}

static int scan_step(const struct call *call, const struct session *session, struct fault *fault)
{
    return call->request->sliced ? scan_slice(call, session, fault)
                                 : scan_all(call, session, fault);
}

int scan(const struct call *call, struct fault *fault)
{
    const struct hsm_request *request = call->request;

    if (!call->item || strnlen(request->prefix, sizeof request->prefix) == sizeof request->prefix)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "scan without a prefix or a receiver");
    return token_step(call, scan_step, fault);
}
