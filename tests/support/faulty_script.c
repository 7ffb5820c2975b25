/* Scripts of faulty.so, as text: parsed into rules and habits.
 *
 * The grammar is at the head of faulty_module.c. To add an action or a profile, add a row to
 * actions[] or profiles[]. A script that cannot be parsed gives a message with its line. */
#include "tests/support/faulty.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME(name)               \
    {                            \
        "CKR_" #name, CKR_##name \
    }
static const struct {
    const char *name;
    CK_RV rv;
} rvs[] = {NAME(OK),
           NAME(CANCEL),
           NAME(HOST_MEMORY),
           NAME(SLOT_ID_INVALID),
           NAME(GENERAL_ERROR),
           NAME(FUNCTION_FAILED),
           NAME(ARGUMENTS_BAD),
           NAME(NO_EVENT),
           NAME(NEED_TO_CREATE_THREADS),
           NAME(CANT_LOCK),
           NAME(ATTRIBUTE_READ_ONLY),
           NAME(ATTRIBUTE_SENSITIVE),
           NAME(ATTRIBUTE_TYPE_INVALID),
           NAME(ATTRIBUTE_VALUE_INVALID),
           NAME(ACTION_PROHIBITED),
           NAME(DATA_INVALID),
           NAME(DATA_LEN_RANGE),
           NAME(DEVICE_ERROR),
           NAME(DEVICE_MEMORY),
           NAME(DEVICE_REMOVED),
           NAME(ENCRYPTED_DATA_INVALID),
           NAME(ENCRYPTED_DATA_LEN_RANGE),
           NAME(FUNCTION_CANCELED),
           NAME(FUNCTION_NOT_PARALLEL),
           NAME(FUNCTION_NOT_SUPPORTED),
           NAME(KEY_HANDLE_INVALID),
           NAME(KEY_SIZE_RANGE),
           NAME(KEY_TYPE_INCONSISTENT),
           NAME(KEY_NOT_NEEDED),
           NAME(KEY_CHANGED),
           NAME(KEY_NEEDED),
           NAME(KEY_INDIGESTIBLE),
           NAME(KEY_FUNCTION_NOT_PERMITTED),
           NAME(KEY_NOT_WRAPPABLE),
           NAME(KEY_UNEXTRACTABLE),
           NAME(MECHANISM_INVALID),
           NAME(MECHANISM_PARAM_INVALID),
           NAME(OBJECT_HANDLE_INVALID),
           NAME(OPERATION_ACTIVE),
           NAME(OPERATION_NOT_INITIALIZED),
           NAME(PIN_INCORRECT),
           NAME(PIN_INVALID),
           NAME(PIN_LEN_RANGE),
           NAME(PIN_EXPIRED),
           NAME(PIN_LOCKED),
           NAME(SESSION_CLOSED),
           NAME(SESSION_COUNT),
           NAME(SESSION_HANDLE_INVALID),
           NAME(SESSION_PARALLEL_NOT_SUPPORTED),
           NAME(SESSION_READ_ONLY),
           NAME(SESSION_EXISTS),
           NAME(SESSION_READ_ONLY_EXISTS),
           NAME(SESSION_READ_WRITE_SO_EXISTS),
           NAME(SIGNATURE_INVALID),
           NAME(SIGNATURE_LEN_RANGE),
           NAME(TEMPLATE_INCOMPLETE),
           NAME(TEMPLATE_INCONSISTENT),
           NAME(TOKEN_NOT_PRESENT),
           NAME(TOKEN_NOT_RECOGNIZED),
           NAME(TOKEN_WRITE_PROTECTED),
           NAME(UNWRAPPING_KEY_SIZE_RANGE),
           NAME(UNWRAPPING_KEY_TYPE_INCONSISTENT),
           NAME(USER_ALREADY_LOGGED_IN),
           NAME(USER_NOT_LOGGED_IN),
           NAME(USER_PIN_NOT_INITIALIZED),
           NAME(USER_TYPE_INVALID),
           NAME(USER_ANOTHER_ALREADY_LOGGED_IN),
           NAME(USER_TOO_MANY_TYPES),
           NAME(WRAPPED_KEY_INVALID),
           NAME(WRAPPED_KEY_LEN_RANGE),
           NAME(WRAPPING_KEY_HANDLE_INVALID),
           NAME(WRAPPING_KEY_SIZE_RANGE),
           NAME(WRAPPING_KEY_TYPE_INCONSISTENT),
           NAME(RANDOM_SEED_NOT_SUPPORTED),
           NAME(RANDOM_NO_RNG),
           NAME(DOMAIN_PARAMS_INVALID),
           NAME(CURVE_NOT_SUPPORTED),
           NAME(BUFFER_TOO_SMALL),
           NAME(SAVED_STATE_INVALID),
           NAME(INFORMATION_SENSITIVE),
           NAME(STATE_UNSAVEABLE),
           NAME(CRYPTOKI_NOT_INITIALIZED),
           NAME(CRYPTOKI_ALREADY_INITIALIZED),
           NAME(MUTEX_BAD),
           NAME(MUTEX_NOT_LOCKED),
           NAME(NEW_PIN_MODE),
           NAME(NEXT_OTP),
           NAME(EXCEEDED_MAX_ITERATIONS),
           NAME(FIPS_SELF_TEST_FAILED),
           NAME(LIBRARY_LOAD_FAILED),
           NAME(PIN_TOO_WEAK),
           NAME(PUBLIC_KEY_INVALID),
           NAME(FUNCTION_REJECTED)};

static const struct {
    const char *word;
    enum faulty_action action;
    bool number; /* follows */
} actions[] = {
    {"sleep", FAULTY_SLEEP, true}, {"hang", FAULTY_HANG, false},
    {"segv", FAULTY_SEGV, false},  {"abort", FAULTY_ABORT, false},
    {"kill", FAULTY_KILL, false},  {"exit", FAULTY_EXIT, false},
    {"die", FAULTY_DIE, false},    {"spoil", FAULTY_SPOIL, false},
    {"bend", FAULTY_BEND, false},  {"shorten", FAULTY_SHORTEN, false},
};

/* The line being read, and what went wrong with it. */
struct line {
    unsigned number;
    char *rest;
    char *message;
};

static int wrong(const struct line *line, const char *what, const char *word)
{
    (void)snprintf(line->message, FAULTY_ERROR, "line %u: %s \"%s\"", line->number, what,
                   word ? word : "");
    return -1;
}

static char *next_word(struct line *line)
{
    return strtok_r(NULL, " \t", &line->rest);
}

static int read_number(const char *word, char **end, uint64_t *value)
{
    if (!word || word[0] < '0' || word[0] > '9')
        return -1;
    errno = 0;
    *value = strtoull(word, end, 0);
    return errno == 0 ? 0 : -1;
}

static int next_number(struct line *line, uint64_t *value)
{
    char *word = next_word(line);
    char *end = NULL;

    if (read_number(word, &end, value) != 0 || *end != '\0')
        return wrong(line, "not a number:", word);
    return 0;
}

static int read_rv(const char *word, uint64_t *value)
{
    char *end = NULL;

    for (size_t i = 0; i < sizeof rvs / sizeof rvs[0]; i++) {
        if (strcmp(word, rvs[i].name) == 0) {
            *value = rvs[i].rv;
            return 0;
        }
    }
    return read_number(word, &end, value) == 0 && *end == '\0' ? 0 : -1;
}

/* ---- rules ---- */

/* "every", "3" or "3-5"; the word may also be missing. */
static int read_which(struct line *line, struct faulty_rule *rule, char **word)
{
    char *end = NULL;

    rule->first = 1;
    rule->last = UINT64_MAX;
    if (*word && strcmp(*word, "every") == 0) {
        *word = next_word(line);
        return 0;
    }
    if (read_number(*word, &end, &rule->first) != 0)
        return 0;
    rule->last = rule->first;
    if (*end == '-' && read_number(end + 1, &end, &rule->last) != 0)
        return wrong(line, "not a range:", *word);
    if (*end != '\0' || rule->first == 0 || rule->last < rule->first)
        return wrong(line, "not a range:", *word);
    *word = next_word(line);
    return 0;
}

static int read_action(struct line *line, struct faulty_rule *rule)
{
    char *word = next_word(line);

    for (size_t i = 0; word && i < sizeof actions / sizeof actions[0]; i++) {
        if (strcmp(word, actions[i].word) == 0) {
            rule->action = actions[i].action;
            return actions[i].number ? next_number(line, &rule->value) : 0;
        }
    }
    rule->action = FAULTY_RETURN;
    if (!word || read_rv(word, &rule->value) != 0)
        return wrong(line, "no such action:", word);
    return 0;
}

static int read_limit(struct line *line, struct faulty_rule *rule, const char *word)
{
    uint64_t milliseconds = 0;

    if (strcmp(word, "once") == 0) {
        rule->times = 1;
    } else if (strcmp(word, "times") == 0) {
        return next_number(line, &rule->times);
    } else if (strcmp(word, "percent") == 0) {
        return next_number(line, &rule->percent);
    } else if (strcmp(word, "for") == 0) {
        if (next_number(line, &milliseconds) != 0)
            return -1;
        rule->lasting = (int64_t)milliseconds * 1000000;
    } else if (strcmp(word, "on") == 0) {
        word = next_word(line);
        (void)snprintf(rule->part, sizeof rule->part, "%s", word ? word : "");
    } else if (strcmp(word, "shared") == 0) {
        rule->shared = true;
    } else {
        return wrong(line, "what is", word);
    }
    return 0;
}

static int read_rule(struct line *line, const char *function, struct faulty_script *script)
{
    struct faulty_rule *rule = &script->rules[script->count];
    char *word = next_word(line);

    if (script->count == FAULTY_RULES)
        return wrong(line, "too many rules at", function);
    if (strcmp(function, "*") != 0 && !faulty_known(function))
        return wrong(line, "no such function:", function);
    rule->line = line->number;
    (void)snprintf(rule->function, sizeof rule->function, "%s", function);
    if (read_which(line, rule, &word) != 0)
        return -1;
    if (!word || (strcmp(word, "before") != 0 && strcmp(word, "after") != 0))
        return wrong(line, "neither before nor after:", word);
    rule->after = word[0] == 'a';
    if (read_action(line, rule) != 0)
        return -1;
    while ((word = next_word(line)))
        if (read_limit(line, rule, word) != 0)
            return -1;
    script->aims = script->aims || rule->part[0] != '\0';
    script->count++;
    return 0;
}

/* ---- profiles ---- */

static int no_more(struct line *line, struct faulty_habits *habits)
{
    (void)line;
    (void)habits;
    return 0;
}

/* Amazon's pages have the complaint ("key does not meet the availability requirements") but
 * not its CKR. This one is the hardest: it sounds final, and passes. */
static int cloudhsm(struct line *line, struct faulty_habits *habits)
{
    (void)line;
    habits->immutable = true;
    habits->picky = true;
    habits->newborn = 3000;
    habits->newborn_rv = CKR_KEY_FUNCTION_NOT_PERMITTED;
    return 0;
}

static int yubihsm(struct line *line, struct faulty_habits *habits)
{
    (void)line;
    habits->id_length = 2;
    habits->label_length = 40;
    habits->sessions = 16;
    habits->idle = 30000;
    return 0;
}

static int dangling(struct line *line, struct faulty_habits *habits)
{
    if (next_number(line, &habits->sessions) != 0 || next_number(line, &habits->linger) != 0)
        return -1;
    habits->linger *= 1000;
    return 0;
}

static int newborn(struct line *line, struct faulty_habits *habits)
{
    char *word;

    if (next_number(line, &habits->newborn) != 0)
        return -1;
    word = next_word(line);
    if (!word || read_rv(word, &habits->newborn_rv) != 0)
        return wrong(line, "no such CKR:", word);
    return 0;
}

/* "private 400 [x509]" */
static int read_trouble(struct line *line, struct faulty_trouble *trouble)
{
    const char *half = next_word(line);
    const char *part;

    trouble->private_keys = half && (strcmp(half, "private") == 0 || strcmp(half, "both") == 0);
    trouble->public_keys = half && (strcmp(half, "public") == 0 || strcmp(half, "both") == 0);
    if (!trouble->private_keys && !trouble->public_keys)
        return wrong(line, "private, public or both, not", half);
    if (next_number(line, &trouble->lasts) != 0)
        return -1;
    part = next_word(line);
    (void)snprintf(trouble->part, sizeof trouble->part, "%s", part ? part : "");
    return 0;
}

static int hide(struct line *line, struct faulty_habits *habits)
{
    habits->trouble.rv = CKR_OK;
    return read_trouble(line, &habits->trouble);
}

static int unreadable(struct line *line, struct faulty_habits *habits)
{
    char *word = next_word(line);

    if (!word || read_rv(word, &habits->trouble.rv) != 0)
        return wrong(line, "no such CKR:", word);
    return read_trouble(line, &habits->trouble);
}

/* A profile sets a flag, or takes a number, or has a function of its own. */
static const struct {
    const char *name;
    size_t flag;
    size_t number;
    int (*set)(struct line *line, struct faulty_habits *habits);
} profiles[] = {
#define FLAG(name, member)                                       \
    {                                                            \
        name, offsetof(struct faulty_habits, member), 0, no_more \
    }
#define NUMBER(name, member)                                  \
    {                                                         \
        name, 0, offsetof(struct faulty_habits, member), NULL \
    }
#define OTHER(name)       \
    {                     \
#name, 0, 0, name \
    }
    OTHER(cloudhsm),
    OTHER(yubihsm),
    OTHER(dangling),
    OTHER(newborn),
    OTHER(hide),
    OTHER(unreadable),
    FLAG("rawpoint", raw_point),
    FLAG("nopub", no_public),
    FLAG("logout", logout),
    FLAG("die-until-finalize", dead),
    FLAG("full", full),
    FLAG("unpadded", unpadded),
    FLAG("plain-start", plain_start),
    FLAG("blank-mechanisms", blank_mechanisms),
    FLAG("stateless", stateless),
    FLAG("own-login", own_login),
    FLAG("exact", exact),
    FLAG("one-attribute", one_attribute),
    FLAG("no-lengths", no_lengths),
    FLAG("narrow", narrow),
    FLAG("one-object", one_object),
    FLAG("no-search", no_search),
    FLAG("not-present", not_present),
    FLAG("rude", rude),
    FLAG("from-zero", from_zero),
    FLAG("leaky", leaky),
    FLAG("moving", moving),
    NUMBER("room", room),
    NUMBER("crowd", crowd),
    NUMBER("lag", lag),
    NUMBER("apart", apart),
    NUMBER("latency", latency),
    NUMBER("slowgen", slow_generation),
    NUMBER("renumber", renumber),
    NUMBER("token-flags", token_flags),
    NUMBER("token-flags-off", token_flags_off),
    NUMBER("sessions", sessions),
    NUMBER("idle", idle),
    NUMBER("id-length", id_length),
    NUMBER("label-length", label_length)};

static int read_profile(struct line *line, struct faulty_habits *habits)
{
    const char *name = next_word(line);
    char *base = (char *)habits;
    size_t i = 0;

    while (i < sizeof profiles / sizeof profiles[0] && name && strcmp(name, profiles[i].name) != 0)
        i++;
    if (!name || i == sizeof profiles / sizeof profiles[0])
        return wrong(line, "no such profile:", name);
    if (!profiles[i].set) {
        uint64_t value = 0;

        if (next_number(line, &value) != 0)
            return -1;
        memcpy(base + profiles[i].number, &value, sizeof value);
    } else if (profiles[i].set == no_more) {
        memcpy(base + profiles[i].flag, &(bool){true}, sizeof(bool));
    } else if (profiles[i].set(line, habits) != 0) {
        return -1;
    }
    name = next_word(line);
    return name ? wrong(line, "what is", name) : 0;
}

/* ---- the whole ---- */

int faulty_parse(char *text, struct faulty_script *script, char message[FAULTY_ERROR])
{
    struct line line = {.message = message};
    char *next = text;
    char *start;

    memset(script, 0, sizeof *script);
    while ((start = strsep(&next, "\n"))) {
        char *comment = strchr(start, '#');
        char *word;

        line.number++;
        if (comment)
            *comment = '\0';
        word = strtok_r(start, " \t", &line.rest);
        if (!word)
            continue;
        if (strcmp(word, "profile") == 0 ? read_profile(&line, &script->habits) != 0
                                         : read_rule(&line, word, script) != 0)
            return -1;
    }
    return 0;
}
