/* Profile from-zero of faulty.so, behind all others: the first session and the first object that
 * the module names have the handle 0, which the standard keeps for "none". */
#include "tests/support/faulty.h"

#include <pthread.h>

static CK_FUNCTION_LIST *module;
static CK_FUNCTION_LIST list;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static CK_ULONG first_session; /* 0 = none yet */
static CK_ULONG first_object;
static bool on; /* for as long as the library is started */

void zero_start(bool wanted)
{
    on = wanted;
    first_session = first_object = 0;
}

static void outward(CK_ULONG *first, CK_ULONG *handle)
{
    if (!on)
        return;
    (void)pthread_mutex_lock(&lock);
    if (*first == 0)
        *first = *handle;
    if (*first == *handle)
        *handle = 0;
    (void)pthread_mutex_unlock(&lock);
}

static CK_ULONG inward(CK_ULONG first, CK_ULONG handle)
{
    return on && handle == 0 ? first : handle;
}

#define SESSION inward(first_session, session)
#define OBJECT(handle) inward(first_object, handle)

static CK_RV open_session(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                          CK_SESSION_HANDLE *session)
{
    CK_RV rv = module->C_OpenSession(slot, flags, application, notify, session);

    if (rv == CKR_OK)
        outward(&first_session, session);
    return rv;
}

static CK_RV create(CK_SESSION_HANDLE session, CK_ATTRIBUTE *attributes, CK_ULONG count,
                    CK_OBJECT_HANDLE *object)
{
    CK_RV rv = module->C_CreateObject(SESSION, attributes, count, object);

    if (rv == CKR_OK)
        outward(&first_object, object);
    return rv;
}

static CK_RV copy(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes,
                  CK_ULONG count, CK_OBJECT_HANDLE *made)
{
    CK_RV rv = module->C_CopyObject(SESSION, OBJECT(object), attributes, count, made);

    if (rv == CKR_OK)
        outward(&first_object, made);
    return rv;
}

static CK_RV find(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *found, CK_ULONG most,
                  CK_ULONG *count)
{
    CK_RV rv = module->C_FindObjects(SESSION, found, most, count);

    for (CK_ULONG i = 0; rv == CKR_OK && i < *count; i++)
        outward(&first_object, &found[i]);
    return rv;
}

static CK_RV generate(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public,
                      CK_ULONG public_count, CK_ATTRIBUTE *private, CK_ULONG private_count,
                      CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key)
{
    CK_RV rv = module->C_GenerateKeyPair(SESSION, mechanism, public, public_count, private,
                                         private_count, public_key, private_key);

    if (rv == CKR_OK) {
        outward(&first_object, private_key);
        outward(&first_object, public_key);
    }
    return rv;
}

/* name, parameters, arguments of those that take handles alone */
#define TAKERS(X)                                                                                  \
    X(C_CloseSession, (CK_SESSION_HANDLE session), (SESSION))                                      \
    X(C_GetSessionInfo, (CK_SESSION_HANDLE session, CK_SESSION_INFO * info), (SESSION, info))      \
    X(C_Login, (CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR * pin, CK_ULONG length), \
      (SESSION, user, pin, length))                                                                \
    X(C_Logout, (CK_SESSION_HANDLE session), (SESSION))                                            \
    X(C_DestroyObject, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object),                       \
      (SESSION, OBJECT(object)))                                                                   \
    X(C_GetAttributeValue,                                                                         \
      (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE * attributes,              \
       CK_ULONG count),                                                                            \
      (SESSION, OBJECT(object), attributes, count))                                                \
    X(C_SetAttributeValue,                                                                         \
      (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE * attributes,              \
       CK_ULONG count),                                                                            \
      (SESSION, OBJECT(object), attributes, count))                                                \
    X(C_FindObjectsInit, (CK_SESSION_HANDLE session, CK_ATTRIBUTE * attributes, CK_ULONG count),   \
      (SESSION, attributes, count))                                                                \
    X(C_FindObjectsFinal, (CK_SESSION_HANDLE session), (SESSION))                                  \
    X(C_SignInit, (CK_SESSION_HANDLE session, CK_MECHANISM * mechanism, CK_OBJECT_HANDLE key),     \
      (SESSION, mechanism, OBJECT(key)))                                                           \
    X(C_Sign,                                                                                      \
      (CK_SESSION_HANDLE session, CK_BYTE * data, CK_ULONG length, CK_BYTE * signature,            \
       CK_ULONG * signature_length),                                                               \
      (SESSION, data, length, signature, signature_length))                                        \
    X(C_GenerateRandom, (CK_SESSION_HANDLE session, CK_BYTE * random, CK_ULONG length),            \
      (SESSION, random, length))

#define TAKER(name, parameters, arguments) \
    static CK_RV take_##name parameters    \
    {                                      \
        return module->name arguments;     \
    }
TAKERS(TAKER)

CK_FUNCTION_LIST *zero_behind(CK_FUNCTION_LIST *real)
{
    module = real;
    list = *real;
    list.C_OpenSession = open_session;
    list.C_CreateObject = create;
    list.C_CopyObject = copy;
    list.C_FindObjects = find;
    list.C_GenerateKeyPair = generate;
#define ENTER(name, parameters, arguments) list.name = take_##name;
    TAKERS(ENTER)
    return &list;
}
