#include "token.h"

#include <string.h>

#include "object.h"
#include "rv.h"
#include "scope.h"

/* Whose keys are on the token: one walk over all objects, one call for each, and all the
 * sorting done here. Looking for each key by itself makes a search that walks all objects
 * (SoftHSM) quadratic. */
enum {
    BATCH = 512,
    HANDLES_MAX = 1 << 20, /* a walk that does not end is a module gone mad */
    RECORDS_MAX = 1 << 16,
    ID_ROOM = 64, /* some foreign ids are 20 bytes; too little room is an error to the token */
};

struct record {
    struct hsm_key_name name;
    bool private_key;
    CK_OBJECT_HANDLE handle;
};

struct survey {
    CK_OBJECT_HANDLE *handles;
    size_t handle_count;
    size_t handle_room;
    struct record *records;
    size_t record_count;
    size_t record_room;
    uint32_t nameless;
    uint32_t foreign;
};

static void release_survey(struct survey *survey)
{
    free(survey->handles);
    free(survey->records);
}

/* ---- walking ---- */

static int add_handles(struct survey *survey, const CK_OBJECT_HANDLE *batch, size_t count,
                       struct fault *fault)
{
    if (!survey->handles || survey->handle_count + count > survey->handle_room) {
        size_t room = 2 * survey->handle_room + BATCH;
        CK_OBJECT_HANDLE *grown =
            room <= HANDLES_MAX ? realloc(survey->handles, room * sizeof *grown) : NULL;

        if (!grown)
            return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "too many objects on the token");
        survey->handles = grown;
        survey->handle_room = room;
    }
    memcpy(survey->handles + survey->handle_count, batch, count * sizeof *batch);
    survey->handle_count += count;
    return 0;
}

static int walk(const struct session *session, struct survey *survey, struct fault *fault)
{
    CK_OBJECT_HANDLE batch[BATCH];
    CK_ULONG count;

    do {
        CK_RV rv;

        count = 0;
        rv = MODULE_CALL(session->module, C_FindObjects, session->handle, batch, BATCH, &count);
        if (rv != CKR_OK)
            return rv_fault(rv, "C_FindObjects", fault);
        if (count > BATCH)
            return fault_set(fault, FAULT_INTERNAL, "token found %lu objects where %d were asked",
                             count, BATCH);
        if (add_handles(survey, batch, count, fault) != 0)
            return -1;
    } while (count > 0);
    return 0;
}

/* An empty template stands for everything, and CloudHSM refuses it. */
static int begin(const struct session *session, struct fault *fault)
{
    CK_BBOOL yes = CK_TRUE;
    CK_ATTRIBUTE on_token = {CKA_TOKEN, &yes, sizeof yes};
    CK_RV rv = MODULE_CALL(session->module, C_FindObjectsInit, session->handle, NULL, 0);

    if (rv != CKR_OK && (rv_class(rv) == RV_TEMPLATE || rv_class(rv) == RV_PERMANENT))
        rv = MODULE_CALL(session->module, C_FindObjectsInit, session->handle, &on_token, 1);
    return rv == CKR_OK ? 0 : rv_fault(rv, "C_FindObjectsInit", fault);
}

static int enumerate(const struct session *session, struct survey *survey, struct fault *fault)
{
    int done;
    CK_RV rv;

    if (begin(session, fault) != 0)
        return -1;
    done = walk(session, survey, fault);
    rv = MODULE_CALL(session->module, C_FindObjectsFinal, session->handle);
    if (done != 0)
        return -1;
    return rv == CKR_OK ? 0 : rv_fault(rv, "C_FindObjectsFinal", fault);
}

/* ---- reading ---- */

/* A key object as the token shows it. A length that does not fit counts as no value. */
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

/* PKCS#11 2.40 5.7.5: attributes that an object lacks do not keep the others from being
 * filled in. */
static int look(const struct session *session, CK_OBJECT_HANDLE handle, struct glimpse *glimpse,
                struct fault *fault)
{
    CK_ATTRIBUTE template[] = {{CKA_CLASS, &glimpse->class, sizeof glimpse->class},
                               {CKA_LABEL, glimpse->label, sizeof glimpse->label},
                               {CKA_ID, glimpse->id, sizeof glimpse->id}};
    CK_RV rv;

    glimpse->class = CK_UNAVAILABLE_INFORMATION;
    rv = MODULE_CALL(session->module, C_GetAttributeValue, session->handle, handle, template, 3);
    if (rv != CKR_OK && !rv_is_about_attribute(rv))
        return rv_fault(rv, "C_GetAttributeValue", fault);
    if (template[0].ulValueLen != sizeof glimpse->class)
        glimpse->class = CK_UNAVAILABLE_INFORMATION;
    glimpse->label_length = usable(&template[1], sizeof glimpse->label);
    glimpse->id_length = usable(&template[2], sizeof glimpse->id);
    return 0;
}

/* Every key of ours has an id. One without could not be told from its namesakes. */
static bool is_ours(const struct glimpse *glimpse, const char *prefix)
{
    size_t length = strlen(prefix);

    return glimpse->label_length >= length && memcmp(glimpse->label, prefix, length) == 0 &&
           memchr(glimpse->label, '\0', glimpse->label_length) == NULL && glimpse->id_length > 0 &&
           glimpse->id_length <= HSM_ID_MAX;
}

static int add_record(struct survey *survey, const struct glimpse *glimpse, CK_OBJECT_HANDLE handle,
                      struct fault *fault)
{
    struct record *record;

    if (survey->record_count == survey->record_room) {
        size_t room = 2 * survey->record_room + 64;
        struct record *grown =
            room <= RECORDS_MAX ? realloc(survey->records, room * sizeof *grown) : NULL;

        if (!grown)
            return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "too many keys on the token");
        survey->records = grown;
        survey->record_room = room;
    }
    record = &survey->records[survey->record_count++];
    memset(record, 0, sizeof *record);
    memcpy(record->name.label, glimpse->label, glimpse->label_length);
    memcpy(record->name.id, glimpse->id, glimpse->id_length);
    record->name.id_length = (uint32_t)glimpse->id_length;
    record->private_key = glimpse->class == CKO_PRIVATE_KEY;
    record->handle = handle;
    return 0;
}

static int note(struct survey *survey, const struct glimpse *glimpse, CK_OBJECT_HANDLE handle,
                const char *prefix, struct fault *fault)
{
    if (glimpse->class != CKO_PRIVATE_KEY && glimpse->class != CKO_PUBLIC_KEY)
        return 0;
    if (is_ours(glimpse, prefix))
        return add_record(survey, glimpse, handle, fault);
    if (glimpse->label_length == 0 && glimpse->id_length == 0)
        survey->nameless++;
    else
        survey->foreign++;
    return 0;
}

/* An object may go while we walk. And one that SoftHSM was killed over in the middle of
 * writing answers CKR_GENERAL_ERROR for ever: if the token is well otherwise, it is counted
 * among the nameless. */
static int look_at(const struct call *call, const struct session *session, CK_OBJECT_HANDLE handle,
                   struct survey *survey, struct fault *fault)
{
    struct glimpse glimpse;

    if (look(session, handle, &glimpse, fault) == 0)
        return note(survey, &glimpse, handle, call->request->prefix, fault);
    if (rv_class(fault->ckr) == RV_HANDLE)
        return 0;
    if (fault->ckr != CKR_GENERAL_ERROR && fault->ckr != CKR_FUNCTION_FAILED)
        return -1;
    if (session_check(&call->token->pool, session, fault) != 0)
        return -1;
    survey->nameless++;
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

/* A group: the records of one name, which stand side by side. Returns where it ends. */
static size_t take_group(const struct survey *survey, size_t start, uint32_t halves[2],
                         struct hint *hint)
{
    const struct record *first = &survey->records[start];
    size_t next = start;

    halves[false] = 0;
    halves[true] = 0;
    hint->name = first->name;
    for (; next < survey->record_count; next++) {
        const struct record *record = &survey->records[next];

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

/* Nothing is told before all is known, so that a walk that is done over tells nothing
 * twice. Without memory for hints there are none. */
static void tell(const struct call *call, const struct survey *survey, uint32_t logins)
{
    struct hint *hints = calloc(survey->record_count / 2 + 1, sizeof *hints);
    size_t hint_count = 0;
    size_t next;

    for (size_t i = 0; i < survey->record_count; i = next) {
        struct hsm_item item = {.key = survey->records[i].name};
        struct hint hint;
        uint32_t halves[2];

        next = take_group(survey, i, halves, &hint);
        item.state = state_of(halves[true], halves[false]);
        if (hints && halves[true] == 1 && halves[false] == 1)
            hints[hint_count++] = hint;
        call->item(call->item_context, &item);
        call->reply->items++;
    }
    call->reply->nameless = survey->nameless;
    call->reply->foreign = survey->foreign;
    hints_replace(&call->token->hints, hints, hint_count, logins);
}

static int scan_step(const struct call *call, const struct session *session, struct fault *fault)
{
    OWNED(release_survey) struct survey survey = {.handles = NULL};
    uint32_t logins = call->token->pool.logins;

    if (session_check(&call->token->pool, session, fault) != 0 ||
        enumerate(session, &survey, fault) != 0)
        return -1;
    for (size_t i = 0; i < survey.handle_count; i++)
        if (look_at(call, session, survey.handles[i], &survey, fault) != 0)
            return -1;
    if (session_check(&call->token->pool, session, fault) != 0)
        return -1;
    if (survey.record_count > 0)
        qsort(survey.records, survey.record_count, sizeof *survey.records, compare_records);
    tell(call, &survey, logins);
    return 0;
}

int scan(const struct call *call, struct fault *fault)
{
    const struct hsm_request *request = call->request;

    if (!call->item || strnlen(request->prefix, sizeof request->prefix) == sizeof request->prefix)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "scan without a prefix or a receiver");
    return token_step(call, scan_step, fault);
}
