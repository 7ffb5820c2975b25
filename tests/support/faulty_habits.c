/* The profiles of faulty.so: PKCS#11 functions with the habits of real tokens.
 *
 * faulty_module.c calls a habit_* function in place of the real one. Each does what the script's
 * habits say, which are read anew at every call, and calls the real module for the rest.
 *
 * This file keeps the open sessions of its process, to close idle ones and to limit their number.
 * What must outlive a process, as the age of a new object, is in faulty_state.c. */
#include "tests/support/faulty.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { ATTRIBUTES_MAX = 48, POINT_MAX = 256, NAME_MAX_BYTES = 1024 };

static struct open_session {
    CK_SESSION_HANDLE handle;
    CK_SLOT_ID slot;
    int64_t used;
    bool knows; /* it was the one to log in */
    struct faulty_crowd search;
} sessions[FAULTY_SESSIONS];
static size_t session_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards sessions */

static atomic_bool initialized;
static atomic_bool dead;
static atomic_bool logout_wanted;
static atomic_bool logged_out; /* silently */

_Thread_local bool habit_spoils;
_Thread_local bool habit_bends;
_Thread_local bool habit_shortens;

static const struct faulty_habits *habits(void)
{
    static const struct faulty_habits none;
    const struct faulty_habits *now = faulty_habits();

    return now ? now : &none;
}

void habit_die(void)
{
    dead = true;
}

bool habit_dead(void)
{
    return dead;
}

/* A library that is started after the script has not been through what killed the others. */
void habit_begin(const struct faulty_habits *begun)
{
    if (begun->dead && initialized)
        dead = true;
    logout_wanted = begun->logout;
    (void)pthread_mutex_lock(&lock);
    for (size_t i = 0; i < session_count; i++)
        sessions[i].used = faulty_now();
    (void)pthread_mutex_unlock(&lock);
}

CK_RV habit_initialize(void *arguments)
{
    CK_RV rv;

    if (habits()->plain_start && arguments)
        return CKR_ARGUMENTS_BAD;
    rv = faulty_real->C_Initialize(arguments);
    if (rv == CKR_OK) {
        initialized = true;
        hint_start();
    }
    return rv;
}

static void forget_sessions(void)
{
    faulty_sessions_lock();
    (void)pthread_mutex_lock(&lock);
    session_count = 0;
    faulty_sessions_hold(0);
    (void)pthread_mutex_unlock(&lock);
    faulty_sessions_unlock();
}

CK_RV habit_finalize(void *reserved)
{
    CK_RV rv = faulty_real->C_Finalize(reserved);

    if (rv != CKR_OK)
        return rv;
    initialized = false;
    dead = false;
    logged_out = false;
    forget_sessions();
    return rv;
}

/* ---- sessions ---- */

static void forget_session(CK_SESSION_HANDLE session)
{
    faulty_sessions_lock();
    (void)pthread_mutex_lock(&lock);
    for (size_t i = 0; i < session_count; i++) {
        if (sessions[i].handle == session) {
            sessions[i] = sessions[--session_count];
            break;
        }
    }
    faulty_sessions_hold(session_count);
    (void)pthread_mutex_unlock(&lock);
    faulty_sessions_unlock();
}

CK_RV habit_open_session(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                         CK_SESSION_HANDLE *session)
{
    const struct faulty_habits *now = habits();
    uint64_t held;
    CK_RV rv = CKR_SESSION_COUNT;

    faulty_sessions_lock();
    (void)pthread_mutex_lock(&lock);
    held = faulty_sessions_held(now->linger);
    if (!hint_leak())
        rv = CKR_HOST_MEMORY;
    else if (session_count < FAULTY_SESSIONS && (now->sessions == 0 || held < now->sessions))
        rv = faulty_real->C_OpenSession(hint_slot(slot), flags, application, notify, session);
    if (rv == CKR_OK) {
        sessions[session_count++] =
            (struct open_session){.handle = *session, .slot = slot, .used = faulty_now()};
        faulty_sessions_hold(session_count);
    }
    (void)pthread_mutex_unlock(&lock);
    faulty_sessions_unlock();
    return rv;
}

CK_RV habit_close_session(CK_SESSION_HANDLE session)
{
    CK_RV rv = faulty_real->C_CloseSession(session);

    if (rv == CKR_OK)
        forget_session(session);
    return rv;
}

CK_RV habit_close_all_sessions(CK_SLOT_ID slot)
{
    CK_RV rv = faulty_real->C_CloseAllSessions(hint_slot(slot));

    if (rv == CKR_OK)
        forget_sessions();
    return rv;
}

/* One that has been idle for too long, or CK_INVALID_HANDLE. */
static CK_SESSION_HANDLE find_idle(CK_SESSION_HANDLE used, uint64_t idle)
{
    int64_t oldest = faulty_now() - (int64_t)idle * 1000000;
    CK_SESSION_HANDLE found = CK_INVALID_HANDLE;

    (void)pthread_mutex_lock(&lock);
    for (size_t i = 0; i < session_count; i++) {
        if (sessions[i].used < oldest)
            found = sessions[i].handle;
        else if (sessions[i].handle == used)
            sessions[i].used = faulty_now();
    }
    (void)pthread_mutex_unlock(&lock);
    return found;
}

void habit_session(CK_SESSION_HANDLE session)
{
    uint64_t idle = habits()->idle;
    CK_SESSION_HANDLE closed;

    while (idle > 0 && (closed = find_idle(session, idle)) != CK_INVALID_HANDLE) {
        (void)faulty_real->C_CloseSession(closed);
        forget_session(closed);
    }
    if (logout_wanted && faulty_real->C_Logout(session) == CKR_OK) {
        logout_wanted = false;
        logged_out = true;
    }
}

bool habit_knows(CK_SESSION_HANDLE session)
{
    bool knows = !habits()->own_login;

    (void)pthread_mutex_lock(&lock);
    for (size_t i = 0; i < session_count; i++)
        knows = knows || (sessions[i].handle == session && sessions[i].knows);
    (void)pthread_mutex_unlock(&lock);
    return knows;
}

static void note_login(CK_SESSION_HANDLE session)
{
    logged_out = false;
    (void)pthread_mutex_lock(&lock);
    for (size_t i = 0; i < session_count; i++)
        if (sessions[i].handle == session)
            sessions[i].knows = true;
    (void)pthread_mutex_unlock(&lock);
}

CK_RV habit_login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR *pin, CK_ULONG length)
{
    bool known = habit_knows(session);
    CK_RV rv = faulty_real->C_Login(session, user, pin, length);

    if (rv == CKR_USER_ALREADY_LOGGED_IN && !known)
        rv = CKR_OK;
    if (rv == CKR_OK)
        note_login(session);
    return rv;
}

/* ---- templates ---- */

static bool is_false(const CK_ATTRIBUTE *attribute)
{
    return attribute->pValue && attribute->ulValueLen == sizeof(CK_BBOOL) &&
           *(const CK_BBOOL *)attribute->pValue == CK_FALSE;
}

static CK_RV check_template(const CK_ATTRIBUTE *attributes, CK_ULONG count, bool public)
{
    if (!habits()->picky)
        return CKR_OK;
    for (CK_ULONG i = 0; i < count; i++) {
        if (attributes[i].ulValueLen == 0)
            return CKR_TEMPLATE_INCONSISTENT;
        if (attributes[i].type == CKA_MODIFIABLE && is_false(&attributes[i]))
            return CKR_TEMPLATE_INCONSISTENT;
        if (attributes[i].type == CKA_PRIVATE && public && is_false(&attributes[i]))
            return CKR_TEMPLATE_INCONSISTENT;
    }
    return CKR_OK;
}

/* Tokens with little room cut what is too long, and do not say so. */
static CK_ATTRIBUTE *cut(CK_ATTRIBUTE *copy, CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    const struct faulty_habits *now = habits();

    if (count > ATTRIBUTES_MAX)
        return attributes;
    if (count > 0)
        memcpy(copy, attributes, count * sizeof *copy);
    for (CK_ULONG i = 0; i < count; i++) {
        if (copy[i].type == CKA_ID && now->id_length && copy[i].ulValueLen > now->id_length)
            copy[i].ulValueLen = now->id_length;
        if (copy[i].type == CKA_LABEL && now->label_length &&
            copy[i].ulValueLen > now->label_length)
            copy[i].ulValueLen = now->label_length;
    }
    return copy;
}

static const CK_ATTRIBUTE *find_attribute(const CK_ATTRIBUTE *attributes, CK_ULONG count,
                                          CK_ATTRIBUTE_TYPE type)
{
    for (CK_ULONG i = 0; i < count; i++)
        if (attributes[i].type == type && attributes[i].ulValueLen != CK_UNAVAILABLE_INFORMATION)
            return &attributes[i];
    return NULL;
}

/* FNV-1a of class, label and id: what an object is called in every process. */
static uint64_t name_of(CK_OBJECT_CLASS class, const CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    static const CK_ATTRIBUTE_TYPE types[] = {CKA_LABEL, CKA_ID};
    uint64_t hash = UINT64_C(0xcbf29ce484222325) ^ class;

    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        const CK_ATTRIBUTE *attribute = find_attribute(attributes, count, types[t]);

        hash = (hash ^ types[t]) * UINT64_C(0x100000001b3);
        for (CK_ULONG i = 0; attribute && i < attribute->ulValueLen; i++)
            hash = (hash ^ ((const uint8_t *)attribute->pValue)[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

static uint64_t name_of_object(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
    CK_OBJECT_CLASS class = CKO_DATA;
    uint8_t label[NAME_MAX_BYTES];
    uint8_t id[NAME_MAX_BYTES];
    CK_ATTRIBUTE attributes[] = {{CKA_CLASS, &class, sizeof class},
                                 {CKA_LABEL, label, sizeof label},
                                 {CKA_ID, id, sizeof id}};

    (void)faulty_real->C_GetAttributeValue(session, object, attributes, 3);
    return name_of(class, attributes, 3);
}

/* ---- handles ---- */

enum { GENERATION_SHIFT = 32, OTHERS_MAX = 64 };

static CK_OBJECT_HANDLE generation(void)
{
    uint64_t renumber = habits()->renumber;

    return renumber == 0 ? 0 : 1 + (uint64_t)faulty_age() / (renumber * 1000000);
}

/* As the caller knows the object from now on. */
static CK_OBJECT_HANDLE outer(CK_OBJECT_HANDLE real)
{
    return real | generation() << GENERATION_SHIFT;
}

static CK_OBJECT_HANDLE inner(CK_OBJECT_HANDLE handle)
{
    return handle & UINT32_MAX;
}

static bool is_stale(CK_OBJECT_HANDLE handle)
{
    return habits()->renumber > 0 && handle >> GENERATION_SHIFT != generation();
}

/* Of the candidates one that is another key of the same curve or length. */
static CK_OBJECT_HANDLE pick_other(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                                   const CK_OBJECT_HANDLE *others, CK_ULONG count)
{
    for (CK_ULONG i = 0; i < count; i++) {
        CK_BYTE values[2][2][NAME_MAX_BYTES] = {0};
        CK_ULONG lengths[2] = {0};

        for (int k = 0; k < 2; k++) {
            CK_ATTRIBUTE wanted[] = {{CKA_EC_PARAMS, values[k][0], NAME_MAX_BYTES},
                                     {CKA_MODULUS, values[k][1], NAME_MAX_BYTES}};

            (void)faulty_real->C_GetAttributeValue(session, k == 0 ? object : others[i], wanted, 2);
            lengths[k] = wanted[1].ulValueLen;
        }
        if (others[i] != object && lengths[0] == lengths[1] &&
            memcmp(values[0][0], values[1][0], NAME_MAX_BYTES) == 0)
            return others[i];
    }
    return object;
}

/* What a stale handle reaches, searched in a session of its own. */
static CK_OBJECT_HANDLE find_other(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
    CK_OBJECT_HANDLE others[OTHERS_MAX];
    CK_OBJECT_CLASS class = CKO_DATA;
    CK_KEY_TYPE type = CKK_EC;
    CK_ATTRIBUTE alike[] = {{CKA_CLASS, &class, sizeof class}, {CKA_KEY_TYPE, &type, sizeof type}};
    CK_SESSION_INFO info;
    CK_SESSION_HANDLE own;
    CK_ULONG count = 0;

    if (faulty_real->C_GetAttributeValue(session, object, alike, 2) != CKR_OK ||
        faulty_real->C_GetSessionInfo(session, &info) != CKR_OK ||
        faulty_real->C_OpenSession(info.slotID, CKF_SERIAL_SESSION, NULL, NULL, &own) != CKR_OK)
        return object;
    if (faulty_real->C_FindObjectsInit(own, alike, 2) == CKR_OK) {
        (void)faulty_real->C_FindObjects(own, others, OTHERS_MAX, &count);
        (void)faulty_real->C_FindObjectsFinal(own);
    }
    object = pick_other(own, object, others, count);
    (void)faulty_real->C_CloseSession(own);
    return object;
}

static CK_OBJECT_HANDLE reached(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE handle)
{
    return is_stale(handle) ? find_other(session, inner(handle)) : inner(handle);
}

void habit_label(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, char *label, size_t size)
{
    CK_BYTE value[NAME_MAX_BYTES];
    CK_ATTRIBUTE wanted = {CKA_LABEL, value, sizeof value};
    CK_RV rv = faulty_real->C_GetAttributeValue(session, reached(session, object), &wanted, 1);
    int length = rv == CKR_OK ? (int)wanted.ulValueLen : 0;

    (void)snprintf(label, size, "%.*s", length, (const char *)value);
}

/* ---- objects ---- */

static bool minds_newborns(void)
{
    return habits()->lag > 0 || habits()->apart > 0 || habits()->newborn > 0;
}

/* Is there no room for so many more? Counted in the caller's session, which is not searching. */
static bool is_full(CK_SESSION_HANDLE session, uint64_t more)
{
    CK_OBJECT_HANDLE batch[OTHERS_MAX];
    uint64_t room = habits()->room;
    uint64_t held = 0;
    CK_ULONG count = 0;

    if (habits()->full || room == 0)
        return habits()->full;
    if (faulty_real->C_FindObjectsInit(session, NULL, 0) != CKR_OK)
        return false;
    while (faulty_real->C_FindObjects(session, batch, OTHERS_MAX, &count) == CKR_OK && count > 0)
        held += count;
    (void)faulty_real->C_FindObjectsFinal(session);
    return held + more > room;
}

CK_RV habit_create(CK_SESSION_HANDLE session, CK_ATTRIBUTE *attributes, CK_ULONG count,
                   CK_OBJECT_HANDLE *object)
{
    const CK_ATTRIBUTE *class = find_attribute(attributes, count, CKA_CLASS);
    CK_OBJECT_CLASS value = CKO_DATA;
    CK_ATTRIBUTE copy[ATTRIBUTES_MAX];
    CK_RV rv;

    if (is_full(session, 1))
        return CKR_DEVICE_MEMORY;
    if (class && class->ulValueLen == sizeof value)
        memcpy(&value, class->pValue, sizeof value);
    rv = check_template(attributes, count, value == CKO_PUBLIC_KEY);
    if (rv != CKR_OK)
        return rv;
    attributes = cut(copy, attributes, count);
    if (minds_newborns())
        faulty_newborn(name_of(value, attributes, count), habits()->lag);
    rv = faulty_real->C_CreateObject(session, attributes, count, object);
    if (rv == CKR_OK)
        *object = outer(*object);
    return rv;
}

CK_RV habit_copy(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes,
                 CK_ULONG count, CK_OBJECT_HANDLE *copy)
{
    CK_RV rv;

    if (habits()->immutable)
        return CKR_FUNCTION_NOT_SUPPORTED;
    rv = faulty_real->C_CopyObject(session, reached(session, object), attributes, count, copy);
    if (rv == CKR_OK)
        *copy = outer(*copy);
    return rv;
}

CK_RV habit_destroy(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
    return is_stale(object) ? CKR_OBJECT_HANDLE_INVALID
                            : faulty_real->C_DestroyObject(session, inner(object));
}

CK_RV habit_set_attributes(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                           CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    if (habits()->immutable)
        return CKR_FUNCTION_NOT_SUPPORTED;
    return faulty_real->C_SetAttributeValue(session, reached(session, object), attributes, count);
}

static void spoil(CK_ATTRIBUTE *copy, CK_ULONG count)
{
    static CK_BBOOL yes = CK_TRUE;

    for (CK_ULONG i = 0; habit_spoils && i < count; i++)
        if (copy[i].type == CKA_EXTRACTABLE)
            copy[i].pValue = &yes;
    habit_spoils = false;
}

CK_RV habit_generate(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public,
                     CK_ULONG public_count, CK_ATTRIBUTE *private, CK_ULONG private_count,
                     CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key)
{
    CK_ATTRIBUTE public_copy[ATTRIBUTES_MAX];
    CK_ATTRIBUTE private_copy[ATTRIBUTES_MAX];
    CK_RV rv;

    if (is_full(session, 2))
        return CKR_DEVICE_MEMORY;
    if (!habit_knows(session))
        return CKR_USER_NOT_LOGGED_IN;
    faulty_sleep(habits()->slow_generation);
    rv = check_template(public, public_count, true);
    if (rv == CKR_OK)
        rv = check_template(private, private_count, false);
    if (rv != CKR_OK)
        return rv;
    public = cut(public_copy, public, public_count);
    private = cut(private_copy, private, private_count);
    spoil(private, private_count);
    if (minds_newborns()) {
        faulty_newborn(name_of(CKO_PUBLIC_KEY, public, public_count), habits()->lag);
        faulty_newborn(name_of(CKO_PRIVATE_KEY, private, private_count), habits()->lag);
    }
    rv = faulty_real->C_GenerateKeyPair(session, mechanism, public, public_count, private,
                                        private_count, public_key, private_key);
    if (rv == CKR_OK) {
        *public_key = outer(*public_key);
        *private_key = outer(*private_key);
    }
    return rv;
}

static bool names_label(const CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    CK_ULONG i = 0;

    while (i < count && attributes[i].type != CKA_LABEL)
        i++;
    return i < count;
}

CK_RV habit_find_init(CK_SESSION_HANDLE session, CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    static CK_UTF8CHAR nobody[] = "nobody";
    CK_ATTRIBUTE other = {CKA_LABEL, nobody, sizeof nobody - 1};
    CK_RV rv = check_template(attributes, count, false);

    if (habits()->no_search && names_label(attributes, count)) {
        attributes = &other;
        count = 1;
    }

    (void)pthread_mutex_lock(&lock);
    for (size_t i = 0; i < session_count; i++)
        if (sessions[i].handle == session)
            sessions[i].search = crowd_search(attributes, count);
    (void)pthread_mutex_unlock(&lock);
    return rv == CKR_OK ? faulty_real->C_FindObjectsInit(session, attributes, count) : rv;
}

/* When the real objects have come to an end. */
static CK_ULONG find_crowd(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects, CK_ULONG most)
{
    CK_ULONG found = 0;

    (void)pthread_mutex_lock(&lock);
    for (size_t i = 0; i < session_count; i++)
        if (sessions[i].handle == session)
            found = crowd_find(&sessions[i].search, objects, most);
    (void)pthread_mutex_unlock(&lock);
    return found;
}

/* Is this one of those that the trouble hits, and does it last? */
static bool is_in_trouble(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
    const struct faulty_trouble *trouble = &habits()->trouble;
    CK_OBJECT_CLASS class = CKO_DATA;
    char label[NAME_MAX_BYTES + 1] = "";
    CK_ATTRIBUTE attributes[] = {{CKA_CLASS, &class, sizeof class},
                                 {CKA_LABEL, label, sizeof label - 1}};

    if (trouble->lasts == 0 || faulty_age() > (int64_t)trouble->lasts * 1000000)
        return false;
    (void)faulty_real->C_GetAttributeValue(session, object, attributes, 2);
    return ((class == CKO_PRIVATE_KEY && trouble->private_keys) ||
            (class == CKO_PUBLIC_KEY && trouble->public_keys)) &&
           strstr(label, trouble->part) != NULL;
}

static bool is_hidden(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
    return habits()->trouble.rv == CKR_OK && is_in_trouble(session, object);
}

static bool is_private_to_others(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
    CK_OBJECT_CLASS class = CKO_DATA;
    CK_ATTRIBUTE wanted = {CKA_CLASS, &class, sizeof class};

    if (habit_knows(session))
        return false;
    (void)faulty_real->C_GetAttributeValue(session, object, &wanted, 1);
    return class == CKO_PRIVATE_KEY;
}

static CK_ULONG keep_visible(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects, CK_ULONG count)
{
    CK_ULONG kept = 0;

    for (CK_ULONG i = 0; i < count; i++) {
        uint64_t name = name_of_object(session, objects[i]);

        if (!is_hidden(session, objects[i]) && !is_private_to_others(session, objects[i]) &&
            !faulty_newborn_hidden(name) && !faulty_newborn_apart(name, habits()->apart))
            objects[kept++] = objects[i];
    }
    return kept;
}

static CK_RV find_real(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects, CK_ULONG most,
                       CK_ULONG *count)
{
    CK_RV rv;

    if (habits()->one_object && most > 1)
        return CKR_ARGUMENTS_BAD;
    do {
        rv = faulty_real->C_FindObjects(session, objects, most, count);
        if (rv != CKR_OK || *count == 0)
            return rv;
        if (logged_out)
            *count = 0;
        else if (habits()->lag > 0 || habits()->apart > 0 || habits()->trouble.lasts > 0 ||
                 habits()->own_login)
            *count = keep_visible(session, objects, *count);
    } while (*count == 0);
    for (CK_ULONG i = 0; i < *count; i++)
        objects[i] = outer(objects[i]);
    return rv;
}

CK_RV habit_find(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects, CK_ULONG most,
                 CK_ULONG *count)
{
    CK_RV rv = find_real(session, objects, most, count);

    if (rv == CKR_OK && *count == 0)
        *count = find_crowd(session, objects, most);
    return rv;
}

CK_RV habit_sign_init(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key)
{
    const struct faulty_habits *now = habits();
    int64_t age;

    if (!habit_knows(session))
        return CKR_USER_NOT_LOGGED_IN;
    key = reached(session, key);
    age = now->newborn > 0 ? faulty_newborn_age(name_of_object(session, key)) : -1;
    if (age >= 0 && age < (int64_t)now->newborn * 1000000)
        return (CK_RV)now->newborn_rv;
    return faulty_real->C_SignInit(session, mechanism, key);
}

CK_RV habit_sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature,
                 CK_ULONG *signature_length)
{
    CK_RV rv;

    if (habits()->latency > 0)
        faulty_sleep(habits()->latency);
    rv = faulty_real->C_Sign(session, data, length, signature, signature_length);
    if (rv == CKR_OK && !hint_leak())
        rv = CKR_HOST_MEMORY;
    if (rv == CKR_OK && habit_bends)
        signature[*signature_length - 1] ^= 1;
    if (rv == CKR_OK && habit_shortens)
        *signature_length -= 2;
    habit_bends = false;
    habit_shortens = false;
    return rv;
}

/* ---- EC points ---- */

/* The point of the public key with the private one's label and id, searched in a session of
 * its own as the caller's may be searching. */
static CK_ULONG point_of_twin(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE private,
                              CK_BYTE point[POINT_MAX])
{
    CK_OBJECT_CLASS class = CKO_PUBLIC_KEY;
    uint8_t label[NAME_MAX_BYTES];
    uint8_t id[NAME_MAX_BYTES];
    CK_ATTRIBUTE named[] = {{CKA_LABEL, label, sizeof label},
                            {CKA_ID, id, sizeof id},
                            {CKA_CLASS, &class, sizeof class}};
    CK_ATTRIBUTE wanted = {CKA_EC_POINT, point, POINT_MAX};
    CK_SESSION_INFO info;
    CK_SESSION_HANDLE own;
    CK_OBJECT_HANDLE twin;
    CK_ULONG count = 0;

    if (faulty_real->C_GetAttributeValue(session, private, named, 2) != CKR_OK ||
        faulty_real->C_GetSessionInfo(session, &info) != CKR_OK ||
        faulty_real->C_OpenSession(info.slotID, CKF_SERIAL_SESSION, NULL, NULL, &own) != CKR_OK)
        return CK_UNAVAILABLE_INFORMATION;
    if (faulty_real->C_FindObjectsInit(own, named, 3) == CKR_OK) {
        (void)faulty_real->C_FindObjects(own, &twin, 1, &count);
        (void)faulty_real->C_FindObjectsFinal(own);
    }
    if (count != 1 || faulty_real->C_GetAttributeValue(own, twin, &wanted, 1) != CKR_OK)
        wanted.ulValueLen = CK_UNAVAILABLE_INFORMATION;
    (void)faulty_real->C_CloseSession(own);
    return wanted.ulValueLen;
}

/* The point as the profile has it; CK_UNAVAILABLE_INFORMATION if it does not. */
static CK_ULONG read_point(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                           CK_BYTE point[POINT_MAX])
{
    CK_OBJECT_CLASS class = CKO_DATA;
    CK_ATTRIBUTE wanted[] = {{CKA_CLASS, &class, sizeof class}, {CKA_EC_POINT, point, POINT_MAX}};
    CK_ULONG length;

    (void)faulty_real->C_GetAttributeValue(session, object, wanted, 2);
    length = wanted[1].ulValueLen;
    if (habits()->no_public && class == CKO_PUBLIC_KEY)
        length = CK_UNAVAILABLE_INFORMATION;
    else if (habits()->no_public && class == CKO_PRIVATE_KEY)
        length = point_of_twin(session, object, point);
    if (length == CK_UNAVAILABLE_INFORMATION || length < 2 || !habits()->raw_point)
        return length;
    memmove(point, point + 2, length - 2); /* 04 and one byte of length: < 128 for our curves */
    return length - 2;
}

static CK_RV answer_point(CK_ATTRIBUTE *attribute, const CK_BYTE *point, CK_ULONG length)
{
    CK_ULONG room = attribute->ulValueLen;

    attribute->ulValueLen = length;
    if (length == CK_UNAVAILABLE_INFORMATION)
        return CKR_ATTRIBUTE_TYPE_INVALID;
    if (!attribute->pValue)
        return CKR_OK;
    if (room < length) {
        attribute->ulValueLen = CK_UNAVAILABLE_INFORMATION;
        return CKR_BUFFER_TOO_SMALL;
    }
    memcpy(attribute->pValue, point, length);
    return CKR_OK;
}

CK_RV habit_get_attributes(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                           CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    CK_BYTE point[POINT_MAX];
    CK_RV result = CKR_OK;

    if (habits()->crowd > 0 && crowd_attributes(object, attributes, count, &result))
        return result;
    object = reached(session, object);
    if (habits()->trouble.rv != CKR_OK && is_in_trouble(session, object))
        return (CK_RV)habits()->trouble.rv;
    if ((!habits()->raw_point && !habits()->no_public) || (habits()->one_attribute && count > 1))
        return hint_attributes(session, object, attributes, count);
    for (CK_ULONG i = 0; i < count; i++) {
        CK_RV rv;

        if (attributes[i].type == CKA_EC_POINT)
            rv = answer_point(&attributes[i], point, read_point(session, object, point));
        else
            rv = hint_attributes(session, object, &attributes[i], 1);
        if (rv != CKR_OK)
            result = rv;
    }
    return result;
}
