/* Profiles of faulty.so in which a token says something untrue of itself, or answers in a form of
 * its own. What it does is right all the same. */
#include "tests/support/faulty.h"

#include <fcntl.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

enum { VALUE_MAX = 4096 };

static const struct faulty_habits *habits(void)
{
    static const struct faulty_habits none;
    const struct faulty_habits *now = faulty_habits();

    return now ? now : &none;
}

/* ---- the process ---- */

static bool moved; /* for as long as the library is started */

static void on_alarm(int number)
{
    (void)number;
}

static void *live_on(void *unused)
{
    for (;;)
        (void)pause();
    return unused;
}

/* On purpose nobody has it any more. */
bool hint_leak(void)
{
    enum { LOST = 4096 };
    static char *volatile lost;

    if (!habits()->leaky)
        return true;
    lost = calloc(1, LOST);
    return lost && open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0;
}

void hint_start(void)
{
    static const struct itimerval often = {{0, 10000}, {0, 10000}};
    struct sigaction alarm = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    pthread_t thread;

    moved = habits()->moving;
    zero_start(habits()->from_zero);
    if (!habits()->rude)
        return;
    (void)printf("a line from the library\n");
    (void)fflush(stdout);
    (void)!chdir("/");
    (void)umask(0);
    (void)setlocale(LC_ALL, "");
    (void)signal(SIGCHLD, SIG_IGN);
    (void)sigaction(SIGALRM, &alarm, NULL);
    (void)setitimer(ITIMER_REAL, &often, NULL);
    if (pthread_create(&thread, NULL, live_on, NULL) == 0)
        (void)pthread_detach(thread);
}

/* ---- slot and token ---- */

CK_SLOT_ID hint_slot(CK_SLOT_ID slot)
{
    return moved ? slot ^ (CK_SLOT_ID)getpid() : slot;
}

CK_RV habit_slots(CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count)
{
    CK_RV rv;

    if (habits()->not_present && present) {
        *count = 0;
        return CKR_OK;
    }
    rv = faulty_real->C_GetSlotList(present, slots, count);
    for (CK_ULONG i = 0; rv == CKR_OK && slots && i < *count; i++)
        slots[i] = hint_slot(slots[i]);
    return rv;
}

/* The first of the blanks at the end becomes a NUL, the others what was there before. */
static void end_with_nul(CK_UTF8CHAR *text, size_t size)
{
    size_t length = size;

    while (length > 0 && text[length - 1] == ' ')
        length--;
    for (size_t i = length; habits()->unpadded && i < size; i++)
        text[i] = i == length ? '\0' : 'x';
}

CK_RV habit_slot_info(CK_SLOT_ID slot, CK_SLOT_INFO *info)
{
    CK_RV rv = faulty_real->C_GetSlotInfo(hint_slot(slot), info);

    if (rv != CKR_OK)
        return rv;
    end_with_nul(info->slotDescription, sizeof info->slotDescription);
    end_with_nul(info->manufacturerID, sizeof info->manufacturerID);
    return rv;
}

CK_RV habit_token_info(CK_SLOT_ID slot, CK_TOKEN_INFO *info)
{
    CK_RV rv = faulty_real->C_GetTokenInfo(hint_slot(slot), info);

    if (rv != CKR_OK)
        return rv;
    info->flags |= (CK_FLAGS)habits()->token_flags;
    info->flags &= ~(CK_FLAGS)habits()->token_flags_off;
    if (moved)
        info->serialNumber[sizeof info->serialNumber - 1] = (CK_UTF8CHAR)('A' + getpid() % 26);
    end_with_nul(info->label, sizeof info->label);
    end_with_nul(info->manufacturerID, sizeof info->manufacturerID);
    end_with_nul(info->model, sizeof info->model);
    end_with_nul(info->serialNumber, sizeof info->serialNumber);
    return rv;
}

CK_RV habit_mechanisms(CK_SLOT_ID slot, CK_MECHANISM_TYPE *mechanisms, CK_ULONG *count)
{
    return faulty_real->C_GetMechanismList(hint_slot(slot), mechanisms, count);
}

CK_RV habit_mechanism_info(CK_SLOT_ID slot, CK_MECHANISM_TYPE mechanism, CK_MECHANISM_INFO *info)
{
    CK_RV rv = faulty_real->C_GetMechanismInfo(hint_slot(slot), mechanism, info);

    if (rv == CKR_OK && habits()->blank_mechanisms)
        memset(info, 0, sizeof *info);
    return rv;
}

CK_RV habit_session_info(CK_SESSION_HANDLE session, CK_SESSION_INFO *info)
{
    CK_RV rv = faulty_real->C_GetSessionInfo(session, info);

    if (rv == CKR_OK)
        info->slotID = hint_slot(info->slotID);
    if (rv == CKR_OK && (habits()->stateless || !habit_knows(session)))
        info->state =
            (info->flags & CKF_RW_SESSION) != 0 ? CKS_RW_PUBLIC_SESSION : CKS_RO_PUBLIC_SESSION;
    return rv;
}

/* ---- attributes ---- */

static bool is_number(CK_ATTRIBUTE_TYPE type)
{
    return type == CKA_CLASS || type == CKA_KEY_TYPE;
}

/* The value in the token's form; CK_UNAVAILABLE_INFORMATION: there is none, *rv says why. */
static CK_ULONG form_value(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                           CK_ATTRIBUTE_TYPE type, CK_BYTE value[VALUE_MAX], CK_RV *rv)
{
    CK_ATTRIBUTE wanted = {type, value, VALUE_MAX};

    *rv = faulty_real->C_GetAttributeValue(session, object, &wanted, 1);
    if (*rv != CKR_OK)
        return CK_UNAVAILABLE_INFORMATION;
    if (habits()->narrow && is_number(type))
        return 4;
    if (habits()->narrow && wanted.ulValueLen == sizeof(CK_BBOOL) && type != CKA_ID &&
        type != CKA_LABEL) {
        memset(value + 1, 0, 3);
        return 4;
    }
    return wanted.ulValueLen;
}

static CK_RV answer(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attribute)
{
    CK_BYTE value[VALUE_MAX];
    CK_ULONG room = attribute->ulValueLen;
    CK_RV rv;
    CK_ULONG length = form_value(session, object, attribute->type, value, &rv);

    if (!attribute->pValue || length == CK_UNAVAILABLE_INFORMATION) {
        attribute->ulValueLen = length;
        return rv;
    }
    if (room < length || (habits()->exact && room != length)) {
        attribute->ulValueLen = CK_UNAVAILABLE_INFORMATION;
        return CKR_BUFFER_TOO_SMALL;
    }
    memcpy(attribute->pValue, value, length);
    if (!habits()->no_lengths)
        attribute->ulValueLen = length;
    return rv;
}

CK_RV hint_attributes(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes,
                      CK_ULONG count)
{
    const struct faulty_habits *now = habits();
    CK_RV result = CKR_OK;

    if (now->one_attribute && count > 1)
        return CKR_ATTRIBUTE_TYPE_INVALID;
    if (!now->exact && !now->no_lengths && !now->narrow)
        return faulty_real->C_GetAttributeValue(session, object, attributes, count);
    for (CK_ULONG i = 0; i < count; i++) {
        CK_RV rv = answer(session, object, &attributes[i]);

        result = rv != CKR_OK ? rv : result;
    }
    return result;
}

/* ---- a crowd ---- */

/* Real handles are small numbers; no more than 32 bits are left of one by "renumber". */
static const CK_OBJECT_HANDLE crowd_base = UINT64_C(0x80000000);

static CK_OBJECT_CLASS crowd_class(CK_ULONG number)
{
    static const CK_OBJECT_CLASS classes[] = {CKO_PRIVATE_KEY, CKO_PUBLIC_KEY, CKO_SECRET_KEY,
                                              CKO_CERTIFICATE, CKO_DATA};

    return classes[number % (sizeof classes / sizeof classes[0])];
}

/* Nobody searches for one of them by its name. */
struct faulty_crowd crowd_search(const CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    struct faulty_crowd search = {.next = 0};

    for (CK_ULONG i = 0; i < count; i++) {
        if (attributes[i].type == CKA_CLASS && attributes[i].ulValueLen == sizeof search.class) {
            memcpy(&search.class, attributes[i].pValue, sizeof search.class);
            search.of_class = true;
        } else if (attributes[i].type != CKA_TOKEN) {
            search.next = CK_UNAVAILABLE_INFORMATION;
        }
    }
    return search;
}

CK_ULONG crowd_find(struct faulty_crowd *search, CK_OBJECT_HANDLE *objects, CK_ULONG most)
{
    CK_ULONG found = 0;

    for (; search->next < habits()->crowd && found < most; search->next++)
        if (!search->of_class || crowd_class(search->next) == search->class)
            objects[found++] = crowd_base + search->next;
    return found;
}

static bool fill_in(CK_ATTRIBUTE *attribute, const void *value, CK_ULONG length)
{
    bool fits = !attribute->pValue || attribute->ulValueLen >= length;

    if (attribute->pValue && fits)
        memcpy(attribute->pValue, value, length);
    attribute->ulValueLen = fits ? length : CK_UNAVAILABLE_INFORMATION;
    return fits;
}

bool crowd_attributes(CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes, CK_ULONG count, CK_RV *rv)
{
    const CK_OBJECT_CLASS class = crowd_class(object - crowd_base);
    char label[32];
    int length = snprintf(label, sizeof label, "somebody's object %lu", object - crowd_base);

    *rv = CKR_OK;
    for (CK_ULONG i = 0; i < count && object >= crowd_base; i++) {
        bool fits = true;

        if (attributes[i].type == CKA_CLASS) {
            fits = fill_in(&attributes[i], &class, sizeof class);
        } else if (attributes[i].type == CKA_LABEL || attributes[i].type == CKA_ID) {
            fits = fill_in(&attributes[i], label, (CK_ULONG)length);
        } else {
            attributes[i].ulValueLen = CK_UNAVAILABLE_INFORMATION;
            *rv = CKR_ATTRIBUTE_TYPE_INVALID;
        }
        if (!fits)
            *rv = CKR_BUFFER_TOO_SMALL;
    }
    return object >= crowd_base;
}
