/* faulty.so: a PKCS#11 module around a real one, that fails on request.
 *
 *   FAULTY_MODULE   the real module, a path
 *   FAULTY_SCRIPT   a file that says what shall go wrong; absent or empty: nothing
 *
 * The script is read again when it has changed. Replace it by rename: half a script is read
 * as it stands. A change is noticed within a tick of the coarse clock (some 4 ms); whoever
 * cannot wait for that rings the bell, that is, writes 8 bytes that were not there before to
 * the beginning of SCRIPT.page: then it is noticed by the next call. A script that makes no
 * sense ends the process, with the line on stderr.
 *
 * One rule or profile a line; "#" starts a comment.
 *
 *   FUNCTION [WHICH] before|after ACTION [LIMIT...]
 *
 *   FUNCTION  C_Sign, .. (those wrapped below), or *
 *   WHICH     the 3rd call, the 3-5th or every; every if left out. Counted from the time
 *             the script was loaded, each rule for itself, in each process for itself
 *   before    instead of the call, or ahead of it
 *   after     when it has had its effect; not reached where "before" ended the call
 *   ACTION    CKR_DEVICE_ERROR, 0x30   answer this
 *             sleep MS                 then go on
 *             hang                     for ever
 *             segv, abort, kill, exit  end the process: by a signal, SIGKILL or exit()
 *             spoil                    of C_GenerateKeyPair, before: its private key can be
 *                                      extracted, whatever was asked for
 *             bend, shorten            of C_Sign, before: its signature has a wrong bit, or two
 *                                      bytes too few
 *             die                      CKR_DEVICE_ERROR from this call on, for every call,
 *                                      until C_Finalize and C_Initialize
 *   LIMIT     once, times N            at most so often, in each process
 *             shared                   calls and times are counted over all processes that
 *                                      read this script: the one that replaces a crashed
 *                                      one does not crash again
 *             for MS                   only so long after the first process loaded it
 *             percent N                N of 100 calls, at random
 *             on PART                  of C_SignInit and C_Sign: only with keys whose label
 *                                      has PART in it
 *
 *   profile NAME      all may be combined; durations are in MS, if nothing else is said
 *
 *   cloudhsm          no C_SetAttributeValue and C_CopyObject; CKA_MODIFIABLE = false,
 *                     CKA_PRIVATE = false on a public key and empty values are refused
 *                     (TEMPLATE_INCONSISTENT); newborn 3000 CKR_KEY_FUNCTION_NOT_PERMITTED
 *   yubihsm           id-length 2, label-length 40, sessions 16, idle 30000
 *   rawpoint          CKA_EC_POINT without its OCTET STRING
 *   nopub             a public key's CKA_EC_POINT cannot be read, its private key's can
 *   lag N             a new object is not found by the first N searches for it
 *   apart MS          a new object is not found by other processes until it is so old
 *   logout            once in each process: nobody is logged in any more, searches find
 *                     nothing, with CKR_OK, until C_Login
 *   die-until-finalize   the action "die", for processes that have called C_Initialize
 *   full              nothing can be made: CKR_DEVICE_MEMORY
 *   room N            nor can what would be more than N objects
 *   crowd N           N more objects of all classes are listed and can be read; others'
 *   dangling N S      sessions N; those of a dead process count for S seconds more
 *   latency MS        of every C_Sign, whatever other sessions do
 *   slowgen MS        of every C_GenerateKeyPair
 *   renumber MS       so often the objects get other handles; one from before reaches another
 *                     object of its class and type, and is CKR_OBJECT_HANDLE_INVALID to
 *                     C_DestroyObject. The end of the script makes all of them good
 *   newborn MS CKR    C_SignInit with a key younger than that
 *   sessions N        CKR_SESSION_COUNT beyond, over all processes
 *   idle MS           a session not used for so long is closed
 *   hide HALF MS [PART]  for so long searches leave out keys: private, public or both; only
 *                     those whose label has PART in it. Counted from when the first process
 *                     loaded the script, so that it lasts over processes
 *   unreadable CKR HALF MS [PART]  for so long C_GetAttributeValue answers CKR for them
 *   token-flags FLAGS the token's own and these, 0x20000 (CKF_USER_PIN_FINAL_TRY) and the like
 *   token-flags-off FLAGS  the token's own without these
 *   unpadded          texts of slot and token end with a NUL, and old bytes are behind it
 *   plain-start       C_Initialize takes NULL alone
 *   not-present       C_GetSlotList knows of no slot with a token in it, unless asked for all
 *   blank-mechanisms  C_GetMechanismInfo answers CKR_OK, and zeros
 *   stateless         C_GetSessionInfo says of every session that nobody is logged in
 *   own-login         a login counts for its session alone
 *   exact             attributes go to a buffer of exactly their size alone
 *   one-attribute     C_GetAttributeValue fills in nothing when asked for more than one
 *   no-lengths        .. and says how long a value is only when there is no buffer for it
 *   narrow            CKA_CLASS and CKA_KEY_TYPE have 4 bytes, and so has what is true or false
 *   moving            in each process the slots have other numbers and tokens other serial numbers
 *   rude              the library writes to stdout, changes folder, umask and locale, uses SIGALRM
 *                     and SIGCHLD for itself, and has a thread of its own
 *   one-object        C_FindObjects hands out one at a time, and refuses to be asked for more
 *   no-search         a search for a label finds nothing; all objects are listed
 *   from-zero         the first session and the first object have the handle 0
 *   leaky             each session and each signature costs a descriptor and 4 KiB for good; with
 *                     none left they are CKR_HOST_MEMORY
 *   id-length N, label-length N   longer ones are cut, silently
 *
 * Beside the script: SCRIPT.page, what processes share; SCRIPT.fired, a line "PID line N
 * FUNCTION" for each fault (the first 1000 of each rule and process). */
#include "tests/support/faulty.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

CK_FUNCTION_LIST *faulty_real;

static CK_FUNCTION_LIST list;
static void *library;

/* name, where it goes, its session (0 = none), parameters, arguments. C_SignInit and C_Sign are
 * below. */
#define REAL(name) faulty_real->name
#define FUNCTIONS(X)                                                                               \
    X(C_Initialize, habit_initialize, 0, (void *arguments), (arguments))                           \
    X(C_Finalize, habit_finalize, 0, (void *reserved), (reserved))                                 \
    X(C_GetInfo, REAL(C_GetInfo), 0, (CK_INFO * info), (info))                                     \
    X(C_GetSlotList, habit_slots, 0, (CK_BBOOL present, CK_SLOT_ID * slots, CK_ULONG * count),     \
      (present, slots, count))                                                                     \
    X(C_GetSlotInfo, habit_slot_info, 0, (CK_SLOT_ID slot, CK_SLOT_INFO * info), (slot, info))     \
    X(C_GetTokenInfo, habit_token_info, 0, (CK_SLOT_ID slot, CK_TOKEN_INFO * info), (slot, info))  \
    X(C_GetMechanismList, habit_mechanisms, 0,                                                     \
      (CK_SLOT_ID slot, CK_MECHANISM_TYPE * mechanisms, CK_ULONG * count),                         \
      (slot, mechanisms, count))                                                                   \
    X(C_GetMechanismInfo, habit_mechanism_info, 0,                                                 \
      (CK_SLOT_ID slot, CK_MECHANISM_TYPE mechanism, CK_MECHANISM_INFO * info),                    \
      (slot, mechanism, info))                                                                     \
    X(C_OpenSession, habit_open_session, 0,                                                        \
      (CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,                       \
       CK_SESSION_HANDLE *session),                                                                \
      (slot, flags, application, notify, session))                                                 \
    X(C_CloseSession, habit_close_session, 0, (CK_SESSION_HANDLE session), (session))              \
    X(C_CloseAllSessions, habit_close_all_sessions, 0, (CK_SLOT_ID slot), (slot))                  \
    X(C_GetSessionInfo, habit_session_info, session,                                               \
      (CK_SESSION_HANDLE session, CK_SESSION_INFO * info), (session, info))                        \
    X(C_Login, habit_login, session,                                                               \
      (CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR * pin, CK_ULONG length),          \
      (session, user, pin, length))                                                                \
    X(C_Logout, REAL(C_Logout), session, (CK_SESSION_HANDLE session), (session))                   \
    X(C_CreateObject, habit_create, session,                                                       \
      (CK_SESSION_HANDLE session, CK_ATTRIBUTE * attributes, CK_ULONG count,                       \
       CK_OBJECT_HANDLE * object),                                                                 \
      (session, attributes, count, object))                                                        \
    X(C_CopyObject, habit_copy, session,                                                           \
      (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE * attributes,              \
       CK_ULONG count, CK_OBJECT_HANDLE * copy),                                                   \
      (session, object, attributes, count, copy))                                                  \
    X(C_DestroyObject, habit_destroy, session,                                                     \
      (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object), (session, object))                     \
    X(C_GetAttributeValue, habit_get_attributes, session,                                          \
      (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE * attributes,              \
       CK_ULONG count),                                                                            \
      (session, object, attributes, count))                                                        \
    X(C_SetAttributeValue, habit_set_attributes, session,                                          \
      (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE * attributes,              \
       CK_ULONG count),                                                                            \
      (session, object, attributes, count))                                                        \
    X(C_FindObjectsInit, habit_find_init, session,                                                 \
      (CK_SESSION_HANDLE session, CK_ATTRIBUTE * attributes, CK_ULONG count),                      \
      (session, attributes, count))                                                                \
    X(C_FindObjects, habit_find, session,                                                          \
      (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE * objects, CK_ULONG most, CK_ULONG * count),    \
      (session, objects, most, count))                                                             \
    X(C_FindObjectsFinal, REAL(C_FindObjectsFinal), session, (CK_SESSION_HANDLE session),          \
      (session))                                                                                   \
    X(C_GenerateKeyPair, habit_generate, session,                                                  \
      (CK_SESSION_HANDLE session, CK_MECHANISM * mechanism, CK_ATTRIBUTE * public,                 \
       CK_ULONG public_count, CK_ATTRIBUTE * private, CK_ULONG private_count,                      \
       CK_OBJECT_HANDLE * public_key, CK_OBJECT_HANDLE * private_key),                             \
      (session, mechanism, public, public_count, private, private_count, public_key, private_key)) \
    X(C_GenerateRandom, REAL(C_GenerateRandom), session,                                           \
      (CK_SESSION_HANDLE session, CK_BYTE * random, CK_ULONG length), (session, random, length))

#define WRAPPER(name, target, its_session, parameters, arguments) \
    static CK_RV wrap_##name parameters                           \
    {                                                             \
        CK_RV rv = CKR_OK;                                        \
                                                                  \
        if (!faulty_before(#name, &rv))                           \
            return rv;                                            \
        if ((its_session) != 0)                                   \
            habit_session(its_session);                           \
        return faulty_after(#name, target arguments);             \
    }
FUNCTIONS(WRAPPER)

static CK_RV wrap_C_SignInit(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism,
                             CK_OBJECT_HANDLE key)
{
    CK_RV rv = CKR_OK;

    faulty_aim(session, key);
    if (!faulty_before("C_SignInit", &rv))
        return rv;
    habit_session(session);
    return faulty_after("C_SignInit", habit_sign_init(session, mechanism, key));
}

/* C_Sign ends the operation whatever it answers, but for a buffer too small: so it has to
 * be ended in the real module too, by a signature that nobody gets. */
static CK_RV wrap_C_Sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length,
                         CK_BYTE *signature, CK_ULONG *signature_length)
{
    CK_BYTE dropped[1024];
    CK_ULONG dropped_length = sizeof dropped;
    CK_RV rv = CKR_OK;

    if (!faulty_before("C_Sign", &rv)) {
        if (rv != CKR_BUFFER_TOO_SMALL)
            (void)faulty_real->C_Sign(session, data, length, dropped, &dropped_length);
        return rv;
    }
    habit_session(session);
    return faulty_after("C_Sign", habit_sign(session, data, length, signature, signature_length));
}

bool faulty_known(const char *function)
{
#define NAME_OF(name, target, its_session, parameters, arguments) #name,
    static const char *const names[] = {FUNCTIONS(NAME_OF) "C_SignInit", "C_Sign"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(function, names[i]) == 0)
            return true;
    return false;
}

static void load(void)
{
    CK_RV (*get_list)(CK_FUNCTION_LIST **) = NULL;
    const char *path = getenv("FAULTY_MODULE");
    void *symbol;

    library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    symbol = library ? dlsym(library, "C_GetFunctionList") : NULL;
    memcpy(&get_list, &symbol, sizeof get_list);
    if (!get_list || get_list(&faulty_real) != CKR_OK) {
        (void)fprintf(stderr, "faulty.so: FAULTY_MODULE %s is no PKCS#11 module\n",
                      path ? path : "is not set, and so");
        return;
    }
    faulty_real = zero_behind(faulty_real);
    list = *faulty_real;
#define ENTER(name, target, its_session, parameters, arguments) list.name = wrap_##name;
    FUNCTIONS(ENTER)
    list.C_SignInit = wrap_C_SignInit;
    list.C_Sign = wrap_C_Sign;
}

__attribute__((destructor)) static void unload(void)
{
    faulty_close();
    if (library)
        (void)dlclose(library);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **out)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    (void)pthread_once(&once, load);
    if (!faulty_real)
        return CKR_GENERAL_ERROR;
    faulty_open(); /* p11-kit does not unload it: the next test has a script of its own */
    *out = &list;
    return CKR_OK;
}
