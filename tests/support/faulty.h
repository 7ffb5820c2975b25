/* The parts of faulty.so. What it is for and how it is told stands in faulty_module.c.
 *
 * faulty_script.c reads scripts, faulty_state.c decides which of a script's faults is due,
 * faulty_habits.c, faulty_hints.c and faulty_zero.c are the profiles, faulty_module.c the PKCS#11
 * functions. */
#ifndef TESTS_FAULTY_H
#define TESTS_FAULTY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <p11-kit/pkcs11.h>

enum { FAULTY_RULES = 64, FAULTY_SESSIONS = 256, FAULTY_ERROR = 160, FAULTY_PART = 32 };

enum faulty_action {
    FAULTY_RETURN, /* value: a CK_RV */
    FAULTY_SLEEP,  /* value: milliseconds */
    FAULTY_HANG,
    FAULTY_SEGV,
    FAULTY_ABORT,
    FAULTY_KILL,
    FAULTY_EXIT,
    FAULTY_DIE,
    FAULTY_SPOIL,
    FAULTY_BEND,
    FAULTY_SHORTEN,
};

struct faulty_rule {
    char function[32]; /* "*" = all */
    bool after;
    bool shared;
    uint64_t first; /* of the calls that match, from 1 */
    uint64_t last;
    uint64_t times;         /* 0 = no limit */
    uint64_t percent;       /* of the calls whose turn it is, 0 = all */
    int64_t lasting;        /* ns since the script was loaded, 0 = no limit */
    char part[FAULTY_PART]; /* of the label of the key signed with, "" = any */
    enum faulty_action action;
    uint64_t value;
    unsigned line;
};

/* Durations are in milliseconds; 0, false: not this habit. */
struct faulty_habits {
    bool immutable; /* no C_SetAttributeValue, no C_CopyObject */
    bool picky;     /* about templates */
    bool raw_point;
    bool no_public;
    bool logout;
    bool dead;
    bool full;
    uint64_t room;       /* objects that the token holds at most */
    uint64_t crowd;      /* objects of others that are not really there */
    uint64_t newborn;    /* so long a new key does not sign .. */
    uint64_t newborn_rv; /* .. but answers this */
    uint64_t id_length;
    uint64_t label_length;
    uint64_t sessions;
    uint64_t linger; /* of a dead process's sessions */
    uint64_t idle;
    uint64_t lag;
    uint64_t apart; /* so long other processes do not find a new object */
    uint64_t latency;
    uint64_t slow_generation;
    uint64_t renumber;    /* every so often handles become others */
    uint64_t token_flags; /* CKF_.., beside the token's own */
    uint64_t token_flags_off;
    bool unpadded; /* texts end with a NUL, and something is behind it */
    bool plain_start;
    bool blank_mechanisms;
    bool stateless;
    bool own_login;
    bool exact;
    bool one_attribute;
    bool no_lengths;
    bool narrow;
    bool one_object;
    bool no_search;
    bool not_present;
    bool rude;
    bool from_zero;
    bool leaky;
    bool moving;
    struct faulty_trouble {
        uint64_t lasts;    /* from when the first process loaded the script; 0 = none */
        bool private_keys; /* whom it hits */
        bool public_keys;
        char part[FAULTY_PART]; /* of the label of those it hits, "" = all */
        uint64_t rv;            /* what reading them answers; CKR_OK: searches leave them out */
    } trouble;
};

struct faulty_script {
    struct faulty_habits habits;
    bool aims; /* a rule is about some keys alone */
    unsigned count;
    struct faulty_rule rules[FAULTY_RULES];
    struct faulty_script *previous; /* kept: other threads may still read it */
};

/* Reads `text`, which is cut into pieces. 0, or -1 and a message with the line. */
int faulty_parse(char *text, struct faulty_script *script, char message[FAULTY_ERROR]);

/* Is there a wrapped function of that name? */
bool faulty_known(const char *function);

/* The module behind this one; set before anything else is called. */
extern CK_FUNCTION_LIST *faulty_real;

/* The files of the script that is named now are opened, or it all ends: a test must not go on
 * without them. */
void faulty_open(void);
void faulty_close(void);

/* In front of a call: false = it is not to be made, and *rv is the answer. */
bool faulty_before(const char *function, CK_RV *rv);

/* Behind one: what to answer in place of rv. */
CK_RV faulty_after(const char *function, CK_RV rv);

/* NULL while there is no script. */
const struct faulty_habits *faulty_habits(void);

/* In front of faulty_before of C_SignInit: the key of this thread's calls until the next. */
void faulty_aim(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key);

int64_t faulty_now(void); /* CLOCK_MONOTONIC, ns */
int64_t faulty_age(void); /* of the script, since its first reader; ns */
void faulty_sleep(uint64_t milliseconds);

/* The token's memory of new objects, over processes and until the next script: name is a
 * hash. faulty_newborn notes one; _age is ns, or -1 if it was not noted; _hidden takes one
 * from the number of searches that shall miss it, and says whether this was one; _apart: is it
 * younger than that many milliseconds, and another process's? */
void faulty_newborn(uint64_t name, uint64_t hidden);
int64_t faulty_newborn_age(uint64_t name);
bool faulty_newborn_hidden(uint64_t name);
bool faulty_newborn_apart(uint64_t name, uint64_t limit);

/* The token's count of sessions, over processes. */
void faulty_sessions_lock(void);
void faulty_sessions_unlock(void);
uint64_t faulty_sessions_held(uint64_t linger); /* locked */
void faulty_sessions_hold(uint64_t count);      /* by this process; locked */

/* The calls a profile changes. */
CK_RV habit_initialize(void *arguments);
CK_RV habit_finalize(void *reserved);
CK_RV habit_open_session(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                         CK_SESSION_HANDLE *session);
CK_RV habit_close_session(CK_SESSION_HANDLE session);
CK_RV habit_close_all_sessions(CK_SLOT_ID slot);
CK_RV habit_slots(CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count);
CK_RV habit_slot_info(CK_SLOT_ID slot, CK_SLOT_INFO *info);
CK_RV habit_token_info(CK_SLOT_ID slot, CK_TOKEN_INFO *info);
CK_RV habit_mechanisms(CK_SLOT_ID slot, CK_MECHANISM_TYPE *mechanisms, CK_ULONG *count);
CK_RV habit_mechanism_info(CK_SLOT_ID slot, CK_MECHANISM_TYPE mechanism, CK_MECHANISM_INFO *info);
CK_RV habit_session_info(CK_SESSION_HANDLE session, CK_SESSION_INFO *info);
CK_RV habit_login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR *pin, CK_ULONG length);
CK_RV habit_create(CK_SESSION_HANDLE session, CK_ATTRIBUTE *attributes, CK_ULONG count,
                   CK_OBJECT_HANDLE *object);
CK_RV habit_copy(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes,
                 CK_ULONG count, CK_OBJECT_HANDLE *copy);
CK_RV habit_destroy(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object);
CK_RV habit_set_attributes(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                           CK_ATTRIBUTE *attributes, CK_ULONG count);
CK_RV habit_get_attributes(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                           CK_ATTRIBUTE *attributes, CK_ULONG count);
CK_RV habit_find_init(CK_SESSION_HANDLE session, CK_ATTRIBUTE *attributes, CK_ULONG count);
CK_RV habit_find(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects, CK_ULONG most,
                 CK_ULONG *count);
CK_RV habit_generate(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public,
                     CK_ULONG public_count, CK_ATTRIBUTE *private, CK_ULONG private_count,
                     CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key);
CK_RV habit_sign_init(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key);
CK_RV habit_sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature,
                 CK_ULONG *signature_length);

/* faulty_hints.c: C_GetAttributeValue as it is told to answer by the habits that are about answers
 * alone, and the module's own behind it. */
CK_RV hint_attributes(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes,
                      CK_ULONG count);

/* The crowd. _search: which of them a search with that template finds; _find goes on with it, and
 * _attributes answers for one of them, false: it is none. */
struct faulty_crowd {
    CK_ULONG next; /* the number of the one to look at next */
    CK_OBJECT_CLASS class;
    bool of_class;
};
struct faulty_crowd crowd_search(const CK_ATTRIBUTE *attributes, CK_ULONG count);
CK_ULONG crowd_find(struct faulty_crowd *search, CK_OBJECT_HANDLE *objects, CK_ULONG most);
bool crowd_attributes(CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes, CK_ULONG count, CK_RV *rv);

/* The module's own number of a slot, and back. */
CK_SLOT_ID hint_slot(CK_SLOT_ID slot);

/* faulty_zero.c: what stands between the habits and the module; and whether it is wanted, after
 * C_Initialize. */
CK_FUNCTION_LIST *zero_behind(CK_FUNCTION_LIST *real);
void zero_start(bool wanted);

/* Loses a descriptor and some memory, as a leaky library does; false: there is none left. */
bool hint_leak(void);

/* After C_Initialize: what a rude library does to its process. */
void hint_start(void);

/* Has this session logged in by itself, or is that the token's matter? */
bool habit_knows(CK_SESSION_HANDLE session);

/* In front of a call with a session: idle ones die, and a silent logout is done. */
void habit_session(CK_SESSION_HANDLE session);

/* A new script: what it changes at once. */
void habit_begin(const struct faulty_habits *habits);

/* This thread's next key pair is made, but not as asked for. */
extern _Thread_local bool habit_spoils;

/* This thread's next signature is wrong, or two bytes too short. */
extern _Thread_local bool habit_bends;
extern _Thread_local bool habit_shortens;

/* The label of the object that this handle reaches now; cut to what there is room for. */
void habit_label(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, char *label, size_t size);

/* Every call fails from now on, until C_Finalize and C_Initialize. */
void habit_die(void);
bool habit_dead(void);

#endif
