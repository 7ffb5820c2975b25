/* What was written down (keys/record.h), as the commands see it: whether a start would find the
 * keys that it must find; and spire-hsm accept. */
#include <stdlib.h>
#include <string.h>

#include "hsm/base/scope.h"
#include "plugin/command/command_private.h"
#include "plugin/keys/generations.h"
#include "plugin/keys/loss.h"
#include "plugin/keys/previous.h"
#include "plugin/keys/scribe.h"

int command_record(const struct config *config, const struct identity *identity,
                   struct record *record, bool *there, struct fault *fault)
{
    const char *path = config->keymanager.record_file;
    static const uint8_t nobody[32] = {0}; /* no key bears this mark, as there was no start */
    enum scribe_found found = SCRIBE_NOTHING;
    char code[RECORD_CODE + 1];

    *there = false;
    record_open(&identity->scope, record);
    if (*path == '\0')
        return 0;
    if (scribe_read(path, &identity->scope, record, &found, fault) != 0)
        return scribe_is_damaged(path, &identity->scope, code) ? loss_refuse_damage(code, fault)
                                                               : -1;
    *there = found == SCRIBE_RECORD;
    if (!*there && record_is_anothers(record, code))
        return loss_refuse_anothers(&config->keymanager, code, fault);
    (void)record_take_place(record, identity->place, nobody, generations_now());
    return 0;
}

/* ---- would a start succeed? ---- */

static bool is_there(struct command_token *token, const struct record_key *key, struct fault *fault)
{
    const struct hsm_request request = {.op = HSM_PROVE, .key = key->name};
    struct hsm_reply reply;

    command_execute(token, &request, &reply);
    *fault = reply.fault;
    return reply.fault.code != FAULT_NONE ||
           (reply.state == HSM_COMPLETE &&
            memcmp(reply.public_key.fingerprint, key->public_key.fingerprint,
                   sizeof key->public_key.fingerprint) == 0);
}

static bool is_lost(void *context, const struct record_key *key)
{
    struct command_start *start = context;

    return start->gone[key - start->record->keys] && record_is_needed(start->record, key);
}

/* The keys of previous that a start without the block would miss. */
static void add_previous(struct command_start *start)
{
    const struct record *record = start->record;

    for (size_t i = 0; i < record->previous_count; i++)
        start->lost += previous_is_needed(record, &record->previous[i]);
    loss_add_previous(record, start->names, sizeof start->names);
}

int command_start_of(struct command_token *token, struct record *record, bool no_previous,
                     struct command_start *start, struct fault *fault)
{
    OWNED(scope_free) bool *gone = calloc(record->count + 1, sizeof *gone);
    struct fault why;

    *start = (struct command_start){.record = record, .gone = gone};
    if (!gone)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    for (size_t i = 0; i < record->count; i++) {
        const struct record_key *key = &record->keys[i];

        start->condemned += key->state == RECORD_CONDEMNED;
        if (key->state != RECORD_SERVED)
            continue;
        start->served++;
        gone[i] = !is_there(token, key, &why);
        start->unproven += why.code != FAULT_NONE;
        start->missing += gone[i];
        start->lost += gone[i] && record_is_needed(record, key);
        if (gone[i])
            loss_add_name(key, start->names, sizeof start->names);
    }
    if (no_previous)
        add_previous(start);
    record_loss_code(record, is_lost, start, no_previous, start->code);
    start->gone = NULL;
    return 0;
}

/* ---- spire-hsm accept ---- */

static int look(const struct config *config, struct record *record, struct command_start *start,
                struct fault *fault)
{
    OWNED(command_close_token) struct command_token token = {.supervisor = NULL};

    if (command_open_token(&config->keymanager, -1, &token, fault) != 0)
        return -1;
    return command_start_of(&token, record, !config->keymanager.has_previous, start, fault);
}

/* Either a start would be refused, and the loss can be accepted; or the command could not look. */
static int tell_damage(const struct config *config, const struct identity *identity,
                       const struct record *record, const struct fault *fault)
{
    char code[RECORD_CODE + 1];

    if (!record_is_anothers(record, code) &&
        !scribe_is_damaged(config->keymanager.record_file, &identity->scope, code))
        return -1;
    (void)printf("%s\n", fault->message);
    return COMMAND_WRONG;
}

static int show(const struct config *config, const struct identity *identity, struct fault *fault)
{
    OWNED(record_close) struct record record = {.keys = NULL};
    struct command_start start;
    bool there;

    if (command_record(config, identity, &record, &there, fault) != 0)
        return tell_damage(config, identity, &record, fault);
    if (!there)
        return fault_set(fault, FAULT_NOT_FOUND,
                         "this server has no record of its keys: a start serves the keys on the "
                         "token, and there is no loss to accept");
    if (look(config, &record, &start, fault) != 0)
        return -1;
    if (start.lost == 0) {
        (void)printf("every key that a start needs is on the token: there is no loss to accept\n");
        return COMMAND_FINE;
    }
    (void)printf(
        "not on the token: %s\n"
        "the plugin refuses a start. If the loss is final: spire-hsm accept --config FILE %s\n",
        start.names, start.code);
    return COMMAND_WRONG;
}

static bool is_code(const char *text)
{
    return strlen(text) == RECORD_CODE && strspn(text, "0123456789abcdef") == RECORD_CODE;
}

static int accept_loss(const struct config *config, const char *code, struct fault *fault)
{
    if (!is_code(code))
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "\"%s\" is no code: expected the 8 characters from the refusal", code);
    if (loss_accept(config->keymanager.record_file, code, fault) != 0)
        return -1;
    (void)printf("accepted: the start that waits now, or the next one, goes on without what %s "
                 "stands for; any other loss is still refused\n",
                 code);
    return COMMAND_FINE;
}

int accept_command(const struct command_options *options)
{
    OWNED(command_wipe_config) struct command_config config = {.needed = {false}};
    OWNED(identity_close) struct identity identity = {.lock = -1};
    struct label_scope scope;
    struct fault fault;
    int status;

    if (command_read_config(options, &config, &fault) != 0 ||
        command_identity(&config.config, false, &identity, &scope, &fault) != 0)
        return command_fail(&fault);
    status = options->operand_count > 0 ? accept_loss(&config.config, options->operands[0], &fault)
                                        : show(&config.config, &identity, &fault);
    return status < 0 ? command_fail(&fault) : status;
}
