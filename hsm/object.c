/* Objects on the token: searching by name, reading attributes, the templates of new keys, and the
 * attributes that a key of ours must have. */
#include "hsm/object.h"

#include <stdio.h>
#include <string.h>

#include "hsm/wire/keytype.h"
#include "hsm/wire/pubkey.h"
#include "hsm/wire/rv.h"

enum { BATCH = 16 };

/* ---- reading ---- */

/* NSS gives a number only to a buffer of exactly its size. */
static CK_ULONG room_for(CK_ATTRIBUTE_TYPE type)
{
    return type == CKA_CLASS || type == CKA_KEY_TYPE ? sizeof(CK_ULONG)
                                                     : sizeof(((struct object_value *)NULL)->bytes);
}

static CK_RV call_read(const struct session *session, CK_OBJECT_HANDLE handle,
                       CK_ATTRIBUTE *attribute)
{
    return MODULE_CALL(session->module, C_GetAttributeValue, session->handle, handle, attribute, 1);
}

/* Reads again, with a buffer of exactly the size that the token names. */
static CK_RV read_exactly(const struct session *session, CK_OBJECT_HANDLE handle,
                          CK_ATTRIBUTE *attribute, void *bytes)
{
    CK_RV rv;
    CK_ULONG length;

    attribute->pValue = NULL;
    attribute->ulValueLen = 0;
    rv = call_read(session, handle, attribute);
    length = attribute->ulValueLen;
    if (rv != CKR_OK || length == 0)
        return rv;
    if (length > sizeof((struct object_value *)NULL)->bytes)
        return CKR_BUFFER_TOO_SMALL;
    attribute->pValue = bytes;
    rv = call_read(session, handle, attribute);
    if (rv == CKR_OK)
        attribute->ulValueLen = length;
    return rv;
}

/* Many tokens give a value only to a buffer of exactly its size. Others leave the length unchanged
 * until a call asks for it. */
static bool wants_exact_room(CK_RV rv, const CK_ATTRIBUTE *attribute)
{
    if (rv == CKR_OK)
        return attribute->ulValueLen == sizeof((struct object_value *)NULL)->bytes;
    return rv == CKR_BUFFER_TOO_SMALL || rv == CKR_ARGUMENTS_BAD;
}

int object_read(const struct session *session, CK_OBJECT_HANDLE handle, CK_ATTRIBUTE_TYPE type,
                struct object_value *value, struct fault *fault)
{
    CK_ATTRIBUTE attribute = {type, value->bytes, room_for(type)};
    CK_RV rv;

    memset(value, 0, sizeof *value); /* some tokens fill nothing in and answer CKR_OK */
    rv = call_read(session, handle, &attribute);
    if (wants_exact_room(rv, &attribute))
        rv = read_exactly(session, handle, &attribute, value->bytes);
    if (rv != CKR_OK && !rv_is_about_attribute(rv))
        return rv_fault(rv, "C_GetAttributeValue", fault);
    value->readable = rv == CKR_OK && attribute.ulValueLen <= sizeof value->bytes;
    value->length = value->readable ? attribute.ulValueLen : 0;
    return 0;
}

/* Some libraries return numbers of 32 bits on a machine of 64. */
bool object_number(const struct object_value *value, CK_ULONG *number)
{
    uint32_t narrow;

    if (!value->readable || (value->length != sizeof *number && value->length != sizeof narrow))
        return false;
    memcpy(&narrow, value->bytes, sizeof narrow);
    *number = narrow;
    if (value->length == sizeof *number)
        memcpy(number, value->bytes, sizeof *number);
    return true;
}

/* Some libraries return a truth value as wide as a number. */
static bool holds_truth(const struct object_value *value, CK_BBOOL truth)
{
    static const uint8_t nothing[sizeof(CK_ULONG)];

    return value->readable && value->length > 0 && value->length <= sizeof nothing &&
           (memcmp(value->bytes, nothing, value->length) != 0) == (truth != CK_FALSE);
}

static bool holds(const struct object_value *value, const void *bytes, size_t length)
{
    return value->readable && value->length == length &&
           (length == 0 || memcmp(value->bytes, bytes, length) == 0);
}

static enum object_naming compare_value(const struct object_value *value, const void *bytes,
                                        size_t length)
{
    if (!value->readable)
        return OBJECT_UNREADABLE;
    if (holds(value, bytes, length))
        return OBJECT_NAMED;
    return value->length < length && memcmp(value->bytes, bytes, value->length) == 0
               ? OBJECT_CUT
               : OBJECT_OTHERWISE;
}

int object_naming(const struct session *session, CK_OBJECT_HANDLE handle,
                  const struct hsm_key_name *name, enum object_naming *naming, struct fault *fault)
{
    struct object_value value;
    enum object_naming by_id;
    bool nameless;

    if (object_read(session, handle, CKA_LABEL, &value, fault) != 0)
        return -1;
    *naming = compare_value(&value, name->label, strlen(name->label));
    nameless = value.length == 0;
    if (*naming == OBJECT_OTHERWISE || *naming == OBJECT_UNREADABLE || name->id_length == 0)
        return 0;
    if (object_read(session, handle, CKA_ID, &value, fault) != 0)
        return -1;
    by_id = compare_value(&value, name->id, name->id_length);
    if (nameless && value.length == 0)
        by_id = OBJECT_OTHERWISE;
    if (by_id != OBJECT_NAMED)
        *naming = by_id;
    return 0;
}

/* ---- finding ---- */

int object_next(const struct session *session, CK_OBJECT_HANDLE *batch, CK_ULONG room,
                CK_ULONG *count, struct fault *fault)
{
    CK_RV rv;

    *count = 0;
    rv = MODULE_CALL(session->module, C_FindObjects, session->handle, batch, room, count);
    if (rv == CKR_ARGUMENTS_BAD && room > 1) /* some tokens find only one object at a time */
        rv = MODULE_CALL(session->module, C_FindObjects, session->handle, batch, 1, count);
    if (rv != CKR_OK)
        return rv_fault(rv, "C_FindObjects", fault);
    if (*count > room)
        return fault_set(fault, FAULT_INTERNAL, "token found %lu objects where %lu were asked",
                         *count, room);
    return 0;
}

/* The search is ended on every path: a session with an open search cannot be used again. */
static int search(const struct session *session, CK_ATTRIBUTE *wanted, CK_ULONG wanted_count,
                  struct object_list *list, struct fault *fault)
{
    CK_OBJECT_HANDLE batch[BATCH];
    CK_ULONG count;
    int result;
    CK_RV rv =
        MODULE_CALL(session->module, C_FindObjectsInit, session->handle, wanted, wanted_count);

    list->count = 0;
    if (rv != CKR_OK)
        return rv_fault(rv, "C_FindObjectsInit", fault);
    do {
        result = object_next(session, batch, BATCH, &count, fault);
        for (CK_ULONG i = 0; result == 0 && i < count; i++)
            if (list->count < OBJECT_FOUND_MAX)
                list->handles[list->count++] = batch[i];
    } while (result == 0 && count > 0 && list->count < OBJECT_FOUND_MAX);
    rv = MODULE_CALL(session->module, C_FindObjectsFinal, session->handle);
    if (result != 0)
        return -1;
    return rv == CKR_OK ? 0 : rv_fault(rv, "C_FindObjectsFinal", fault);
}

static int too_many(const struct hsm_key_name *name, struct fault *fault)
{
    return fault_set(fault, FAULT_INTERNAL, "token finds %d objects named %s or more",
                     OBJECT_FOUND_MAX, name->label);
}

static int sort_in(const struct session *session, CK_OBJECT_HANDLE handle,
                   const struct hsm_key_name *name, struct object_halves *found,
                   struct fault *fault)
{
    struct object_value value;
    CK_OBJECT_CLASS class = CKO_DATA;
    struct object_list *list;
    enum object_naming naming = OBJECT_UNREADABLE;

    if (object_naming(session, handle, name, &naming, fault) != 0 ||
        object_read(session, handle, CKA_CLASS, &value, fault) != 0)
        return -1;
    (void)object_number(&value, &class);
    if (naming != OBJECT_NAMED || (class != CKO_PRIVATE_KEY && class != CKO_PUBLIC_KEY))
        return 0;
    list = class == CKO_PRIVATE_KEY ? &found->private_keys : &found->public_keys;
    if (list->count == OBJECT_FOUND_MAX)
        return too_many(name, fault);
    list->handles[list->count++] = handle;
    return 0;
}

/* Sorts the objects one by one, as far as they can be read. *unread holds the latest error of one
 * that cannot. An object that was not found may be that one. */
static int sort_all(const struct session *session, const struct hsm_key_name *name,
                    struct object_halves *found, struct fault *unread, struct fault *fault)
{
    CK_OBJECT_HANDLE batch[BATCH];
    CK_ULONG count;

    do {
        if (object_next(session, batch, BATCH, &count, fault) != 0)
            return -1;
        for (CK_ULONG i = 0; i < count; i++)
            if (sort_in(session, batch[i], name, found, fault) != 0) {
                if (fault->ckr != CKR_GENERAL_ERROR)
                    return -1;
                *unread = *fault;
            }
    } while (count > 0);
    return 0;
}

/* SoftHSM, killed in the middle of a write, leaves an object whose name cannot be decrypted. Then
 * each search by name fails, and this walk over all objects finds the key. A token that is away
 * fails here too. */
static int find_among_all(const struct session *session, const struct hsm_key_name *name,
                          struct object_halves *found, struct fault *fault)
{
    struct object_halves halves = {.private_keys.count = 0, .public_keys.count = 0};
    struct fault unread = {.code = FAULT_NONE};
    int result;
    CK_RV rv;

    (void)MODULE_CALL(session->module, C_FindObjectsFinal, session->handle); /* SoftHSM wants it */
    rv = MODULE_CALL(session->module, C_FindObjectsInit, session->handle, NULL, 0);
    if (rv != CKR_OK)
        return rv_fault(rv, "C_FindObjectsInit", fault);
    result = sort_all(session, name, &halves, &unread, fault);
    rv = MODULE_CALL(session->module, C_FindObjectsFinal, session->handle);
    if (result != 0)
        return -1;
    if (rv != CKR_OK)
        return rv_fault(rv, "C_FindObjectsFinal", fault);
    if (unread.code != FAULT_NONE &&
        (halves.private_keys.count == 0 || halves.public_keys.count == 0)) {
        *fault = unread;
        return -1;
    }
    *found = halves;
    return 0;
}

/* The label of one of the objects that are listed first. */
static bool find_any_label(const struct session *session, struct object_value *label)
{
    struct object_list list;
    bool found = false;

    if (search(session, NULL, 0, &list, NULL) != 0)
        return false;
    for (uint32_t i = 0; !found && i < list.count; i++)
        found = object_read(session, list.handles[i], CKA_LABEL, label, NULL) == 0 &&
                label->readable && label->length > 0;
    return found;
}

/* Some tokens list their objects and find none of them by its name. Until a search has found
 * something, a search for a label that was just listed shows it, and costs less than a walk. */
static bool finds_names(const struct session *session)
{
    struct object_value label;
    struct object_list list;
    CK_ATTRIBUTE wanted = {CKA_LABEL, label.bytes, 0};

    if (session->module->finds_names || !find_any_label(session, &label))
        return true;
    wanted.ulValueLen = label.length;
    if (search(session, &wanted, 1, &list, NULL) != 0)
        return true;
    session->module->finds_names = list.count > 0;
    return list.count > 0;
}

/* CloudHSM refuses to search for empty values, so these are left out. A full list may lack the
 * object, and the answer "not there" must be true. */
int object_find(const struct session *session, const struct hsm_key_name *name,
                struct object_halves *found, struct fault *fault)
{
    struct hsm_key_name copy = *name; /* PKCS#11 wants values that it could write to */
    CK_ATTRIBUTE wanted[] = {{CKA_LABEL, copy.label, strlen(copy.label)},
                             {CKA_ID, copy.id, copy.id_length}};
    struct object_list list;
    struct object_halves halves;

    if (search(session, wanted, copy.id_length > 0 ? 2 : 1, &list, fault) != 0)
        return fault->ckr == CKR_GENERAL_ERROR ? find_among_all(session, name, found, fault) : -1;
    if (list.count == 0 && !finds_names(session))
        return find_among_all(session, name, found, fault);
    if (list.count == OBJECT_FOUND_MAX)
        return too_many(name, fault);
    if (list.count > 0)
        session->module->finds_names = true;
    halves.private_keys.count = 0;
    halves.public_keys.count = 0;
    for (uint32_t i = 0; i < list.count; i++)
        if (sort_in(session, list.handles[i], name, &halves, fault) != 0)
            return -1;
    *found = halves;
    return 0;
}

/* ---- making ---- */

/* An attribute of a new key. `tiers`: how many of the three templates have it. SENSITIVE and
 * EXTRACTABLE are in all three. */
struct trait {
    CK_ATTRIBUTE_TYPE type;
    CK_BBOOL value;
    unsigned tiers;
};

static const struct trait private_traits[] = {
    {CKA_TOKEN, CK_TRUE, 3},        {CKA_PRIVATE, CK_TRUE, 3},   {CKA_SENSITIVE, CK_TRUE, 3},
    {CKA_EXTRACTABLE, CK_FALSE, 3}, {CKA_SIGN, CK_TRUE, 3},      {CKA_DECRYPT, CK_FALSE, 2},
    {CKA_UNWRAP, CK_FALSE, 2},      {CKA_DERIVE, CK_FALSE, 1},   {CKA_SIGN_RECOVER, CK_FALSE, 1},
    {CKA_MODIFIABLE, CK_FALSE, 1},  {CKA_COPYABLE, CK_FALSE, 1},
};

static const struct trait public_traits[] = {
    {CKA_TOKEN, CK_TRUE, 3},           {CKA_VERIFY, CK_TRUE, 3},      {CKA_ENCRYPT, CK_FALSE, 2},
    {CKA_WRAP, CK_FALSE, 2},           {CKA_PRIVATE, CK_FALSE, 1},    {CKA_DERIVE, CK_FALSE, 1},
    {CKA_VERIFY_RECOVER, CK_FALSE, 1}, {CKA_MODIFIABLE, CK_FALSE, 1}, {CKA_COPYABLE, CK_FALSE, 1},
};

/* The values lie in `truth` and in this struct, because PKCS#11's pointers are not const. */
struct key_template {
    CK_ATTRIBUTE attributes[20];
    CK_ULONG count;
};

struct key_request {
    struct hsm_key_name name;
    struct keytype kind; /* a copy: PKCS#11 wants writable memory */
    CK_ULONG bits;
    CK_BBOOL truth[2];
    struct key_template private_half;
    struct key_template public_half;
};

static void put_attribute(struct key_template *half, CK_ATTRIBUTE_TYPE type, void *value,
                          size_t length)
{
    half->attributes[half->count++] = (CK_ATTRIBUTE){type, value, length};
}

static void put_traits(struct key_template *half, struct key_request *request, unsigned tier,
                       const struct trait *traits, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (tier < traits[i].tiers)
            put_attribute(half, traits[i].type, &request->truth[traits[i].value], sizeof(CK_BBOOL));
}

static void put_name(struct key_template *half, struct key_request *request)
{
    put_attribute(half, CKA_LABEL, request->name.label, strlen(request->name.label));
    if (request->name.id_length > 0)
        put_attribute(half, CKA_ID, request->name.id, request->name.id_length);
}

static void fill_request(struct key_request *request, enum hsm_key_type type,
                         const struct hsm_key_name *name, unsigned tier)
{
    memset(request, 0, sizeof *request);
    request->name = *name;
    request->kind = *keytype_find(type);
    request->bits = request->kind.bits;
    request->truth[CK_TRUE] = CK_TRUE;
    put_name(&request->private_half, request);
    put_name(&request->public_half, request);
    put_traits(&request->private_half, request, tier, private_traits,
               sizeof private_traits / sizeof private_traits[0]);
    put_traits(&request->public_half, request, tier, public_traits,
               sizeof public_traits / sizeof public_traits[0]);
    if (request->kind.rsa) {
        put_attribute(&request->public_half, CKA_MODULUS_BITS, &request->bits,
                      sizeof request->bits);
        put_attribute(&request->public_half, CKA_PUBLIC_EXPONENT, request->kind.parameters,
                      request->kind.parameters_length);
    } else {
        put_attribute(&request->public_half, CKA_EC_PARAMS, request->kind.parameters,
                      request->kind.parameters_length);
    }
}

int object_generate(const struct session *session, enum hsm_key_type type,
                    const struct hsm_key_name *name, unsigned tier, struct object_pair *pair,
                    struct fault *fault)
{
    struct key_request request;
    CK_MECHANISM mechanism = {0};
    struct object_pair made = {HANDLE_NONE, HANDLE_NONE};
    CK_RV rv;

    fill_request(&request, type, name, tier);
    mechanism.mechanism = request.kind.generate;
    rv = MODULE_CALL(session->module, C_GenerateKeyPair, session->handle, &mechanism,
                     request.public_half.attributes, request.public_half.count,
                     request.private_half.attributes, request.private_half.count, &made.public_key,
                     &made.private_key);
    if (rv != CKR_OK)
        return rv_fault(rv, "C_GenerateKeyPair", fault);
    *pair = made;
    return 0;
}

/* ---- the public key ---- */

typedef int decode_fn(const uint8_t *first, size_t first_length, const uint8_t *second,
                      size_t second_length, struct hsm_public_key *key, struct fault *fault);

/* Reads both attributes of one object. Returns -1 with fault->ckr == 0 if the object is absent or
 * unfit. */
static int read_both(const struct session *session, CK_OBJECT_HANDLE handle, bool rsa,
                     struct hsm_public_key *key, struct fault *fault)
{
    struct object_value first;
    struct object_value second;
    decode_fn *decode = rsa ? pubkey_from_rsa : pubkey_from_ec;

    if (handle == HANDLE_NONE)
        return fault_set(fault, FAULT_INTERNAL, "there is no public key object");
    if (object_read(session, handle, rsa ? CKA_MODULUS : CKA_EC_PARAMS, &first, fault) != 0)
        return -1;
    if (object_read(session, handle, rsa ? CKA_PUBLIC_EXPONENT : CKA_EC_POINT, &second, fault) != 0)
        return -1;
    if (!first.readable || !second.readable)
        return fault_set(fault, FAULT_INTERNAL, "the public key cannot be read");
    return decode(first.bytes, first.length, second.bytes, second.length, key, fault);
}

static int read_info(const struct session *session, CK_OBJECT_HANDLE handle,
                     struct hsm_public_key *key, struct fault *fault)
{
    struct object_value value;

    if (object_read(session, handle, CKA_PUBLIC_KEY_INFO, &value, fault) != 0)
        return -1;
    if (!value.readable || value.length == 0) /* SoftHSM and TPMs have it, but empty */
        return fault_set(fault, FAULT_INTERNAL, "the public key cannot be read");
    return pubkey_from_pkix(value.bytes, value.length, key, fault);
}

static int read_key_type(const struct session *session, CK_OBJECT_HANDLE handle, CK_KEY_TYPE *type,
                         struct fault *fault)
{
    struct object_value value;

    if (object_read(session, handle, CKA_KEY_TYPE, &value, fault) != 0)
        return -1;
    if (!object_number(&value, type))
        return fault_set(fault, FAULT_INTERNAL, "the type of the key cannot be read");
    return 0;
}

int object_public_key(const struct session *session, const struct object_pair *pair,
                      struct hsm_public_key *key, struct fault *fault)
{
    CK_KEY_TYPE type = 0;
    struct fault why = {0};
    struct fault other = {0};

    if (read_key_type(session,
                      pair->private_key != HANDLE_NONE ? pair->private_key : pair->public_key,
                      &type, fault) != 0)
        return -1;
    if (type != CKK_EC && type != CKK_RSA)
        return fault_set(fault, FAULT_INTERNAL, "it is neither an EC nor an RSA key");
    if (read_both(session, pair->public_key, type == CKK_RSA, key, &why) == 0)
        return 0;
    if (why.ckr == CKR_OK && pair->private_key != HANDLE_NONE &&
        (read_both(session, pair->private_key, type == CKK_RSA, key, &other) == 0 ||
         (other.ckr == CKR_OK && read_info(session, pair->private_key, key, &other) == 0)))
        return 0;
    if (fault)
        *fault = other.ckr != CKR_OK ? other : why;
    return -1;
}

/* ---- judging ---- */

/* An imported key has LOCAL, ALWAYS_SENSITIVE and NEVER_EXTRACTABLE false: so the check catches a
 * key that somebody planted under our label. `history` marks these three, which some tokens cannot
 * report. */
static const struct demand {
    CK_ATTRIBUTE_TYPE type;
    CK_BBOOL value;
    bool history;
    const char *name;
} demands[] = {
    {CKA_TOKEN, CK_TRUE, false, "CKA_TOKEN"},
    {CKA_PRIVATE, CK_TRUE, false, "CKA_PRIVATE"},
    {CKA_SENSITIVE, CK_TRUE, false, "CKA_SENSITIVE"},
    {CKA_EXTRACTABLE, CK_FALSE, false, "CKA_EXTRACTABLE"},
    {CKA_SIGN, CK_TRUE, false, "CKA_SIGN"},
    {CKA_ALWAYS_SENSITIVE, CK_TRUE, true, "CKA_ALWAYS_SENSITIVE"},
    {CKA_NEVER_EXTRACTABLE, CK_TRUE, true, "CKA_NEVER_EXTRACTABLE"},
    {CKA_LOCAL, CK_TRUE, true, "CKA_LOCAL"},
};

/* The setting "lenient" tolerates a history that cannot be read. It also tolerates LOCAL=0, which
 * NSS reports of keys it made itself, if both other attributes (`told`) are right. */
static bool is_tolerated(const struct demand *demand, const struct object_value *value,
                         unsigned told)
{
    return demand->history && (!value->readable || (demand->type == CKA_LOCAL && told == 2));
}

static void describe_unmet(const struct demand *demand, const struct object_value *value,
                           char why[HSM_WHY_MAX])
{
    (void)snprintf(why, HSM_WHY_MAX, "%s %s", demand->name,
                   !value->readable            ? "cannot be read"
                   : demand->value != CK_FALSE ? "is not true"
                                               : "is not false");
}

static int check_demands(const struct session *session, CK_OBJECT_HANDLE private_key, bool lenient,
                         char why[HSM_WHY_MAX], struct fault *fault)
{
    struct object_value value;
    unsigned told = 0;

    for (size_t i = 0; i < sizeof demands / sizeof demands[0] && why[0] == '\0'; i++) {
        const struct demand *demand = &demands[i];

        if (object_read(session, private_key, demand->type, &value, fault) != 0)
            return -1;
        if (holds_truth(&value, demand->value))
            told += demand->history ? 1 : 0;
        else if (!lenient || !is_tolerated(demand, &value, told))
            describe_unmet(demand, &value, why);
    }
    return 0;
}

/* CKA_ALWAYS_AUTHENTICATE demands the PIN before every signature. A token that does not know the
 * attribute does not demand it. */
int object_check(const struct session *session, CK_OBJECT_HANDLE private_key, bool lenient,
                 char why[HSM_WHY_MAX], struct fault *fault)
{
    struct object_value value;

    why[0] = '\0';
    if (check_demands(session, private_key, lenient, why, fault) != 0)
        return -1;
    if (why[0] != '\0')
        return 0;
    if (object_read(session, private_key, CKA_ALWAYS_AUTHENTICATE, &value, fault) != 0)
        return -1;
    if (holds_truth(&value, CK_TRUE))
        (void)snprintf(
            why, HSM_WHY_MAX,
            "CKA_ALWAYS_AUTHENTICATE is true: the token wants the PIN for every signature");
    return 0;
}

/* ---- destroying ---- */

/* SoftHSM forgets the handle before it removes the file, so an invalid handle proves little. The
 * caller looks again. */
int object_destroy(const struct session *session, CK_OBJECT_HANDLE handle, struct fault *fault)
{
    CK_RV rv = MODULE_CALL(session->module, C_DestroyObject, session->handle, handle);

    if (rv == CKR_OK || rv == CKR_OBJECT_HANDLE_INVALID || rv == CKR_KEY_HANDLE_INVALID)
        return 0;
    return rv_fault(rv, "C_DestroyObject", fault);
}

int object_destroy_halves(const struct session *session, const struct object_halves *halves,
                          struct fault *fault)
{
    for (uint32_t i = 0; i < halves->private_keys.count; i++)
        if (object_destroy(session, halves->private_keys.handles[i], fault) != 0)
            return -1;
    for (uint32_t i = 0; i < halves->public_keys.count; i++)
        if (object_destroy(session, halves->public_keys.handles[i], fault) != 0)
            return -1;
    return 0;
}
