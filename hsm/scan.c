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
    if (survey->handle_count + count > survey->handle_room) {
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

/* One object as the token shows it. A length that does not fit counts as no value. */
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

static int add_record(struct survey *survey, const struct glimpse *glimpse, struct fault *fault)
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
    return 0;
}

static int note(struct survey *survey, const struct glimpse *glimpse, const char *prefix,
                struct fault *fault)
{
    if (glimpse->class != CKO_PRIVATE_KEY && glimpse->class != CKO_PUBLIC_KEY)
        return 0;
    if (is_ours(glimpse, prefix))
        return add_record(survey, glimpse, fault);
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
        return note(survey, &glimpse, call->request->prefix, fault);
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

/* Nothing is told before all is known, so that a walk that is done over tells nothing
 * twice. */
static void tell(const struct call *call, const struct survey *survey)
{
    const struct record *records = survey->records;
    size_t next;

    for (size_t i = 0; i < survey->record_count; i = next) {
        struct hsm_item item = {.key = records[i].name};
        uint32_t halves[2] = {0, 0};

        for (next = i; next < survey->record_count; next++) {
            if (compare_names(&records[next].name, &records[i].name) != 0)
                break;
            halves[records[next].private_key]++;
        }
        item.state = state_of(halves[true], halves[false]);
        call->item(call->item_context, &item);
        call->reply->items++;
    }
    call->reply->nameless = survey->nameless;
    call->reply->foreign = survey->foreign;
}

static int scan_step(const struct call *call, const struct session *session, struct fault *fault)
{
    OWNED(release_survey) struct survey survey = {.handles = NULL};

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
    tell(call, &survey);
    return 0;
}

int scan(const struct call *call, struct fault *fault)
{
    const struct hsm_request *request = call->request;

    if (!call->item || strnlen(request->prefix, sizeof request->prefix) == sizeof request->prefix)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "scan without a prefix or a receiver");
    return token_step(call, scan_step, fault);
}
