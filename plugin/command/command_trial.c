/* Trial keys, made to try a token and destroyed afterwards. */
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "plugin/command/command_private.h"
#include "plugin/keys/generations.h"

enum { LOOKS_MAX = 15 };

static const char trial_server[] = "spire-hsm check";

/* A trial key of this age in seconds does not belong to a command that is running now. */
static const uint32_t trial_age = 3600;

void command_trials_open(const struct config *config, struct command_token *token,
                         struct command_trials *trials)
{
    *trials = (struct command_trials){.token = token,
                                      .id_length = (uint32_t)config->keymanager.cka_id_length};
    label_scope(config->trust_domain, trial_server, strlen(trial_server), &trials->scope);
}

int command_trial_name(struct command_trials *trials, struct hsm_key_name *name,
                       struct fault *fault)
{
    const struct label_maker nobody = {.known = false};
    struct label label = {.scope = trials->scope, .key_id = LABEL_TRIAL_KEY_ID};

    if (label_next_generation(time(NULL), trials->highest, &label.generation, fault) != 0)
        return -1;
    trials->highest = label.generation;
    label_format(&label, name->label);
    return label_new_id(label.generation, trials->id_length, &nobody, name, fault);
}

/* HSM clusters show a new key late, so the command looks again every second for a while. */
static bool is_to_be_awaited(const struct hsm_reply *reply, unsigned looks)
{
    return looks < LOOKS_MAX && reply->fault.code == FAULT_NONE &&
           inventory_may_be_late(reply->state);
}

int command_trial_make(struct command_trials *trials, const struct hsm_key_name *name,
                       enum hsm_key_type type, struct hsm_public_key *key, struct fault *fault)
{
    struct hsm_request request = {.op = HSM_GENERATE, .key = *name, .type = type};
    struct hsm_reply reply;
    unsigned looks = 0;

    command_execute(trials->token, &request, &reply);
    for (request.op = HSM_PROVE; is_to_be_awaited(&reply, looks); looks++) {
        (void)sleep(1);
        command_execute(trials->token, &request, &reply);
    }
    if (reply.fault.code != FAULT_NONE) {
        *fault = reply.fault;
        return -1;
    }
    if (reply.state != HSM_COMPLETE)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "the new key is unfit: %s",
                         reply.why[0] != '\0' ? reply.why : "the token does not show both halves");
    *key = reply.public_key;
    return 0;
}

int command_trial_destroy(struct command_trials *trials, const struct hsm_key_name *name,
                          struct fault *fault)
{
    struct hsm_request request = {.op = HSM_DESTROY, .key = *name};
    struct hsm_reply reply;

    command_execute(trials->token, &request, &reply);
    if (reply.fault.code == FAULT_NONE)
        return 0;
    *fault = reply.fault;
    return -1;
}

bool command_trial_is_leftover(const struct command_trials *trials,
                               const struct inventory_item *item)
{
    uint32_t now = generations_now();

    return label_same_scope(&item->label.scope, &trials->scope) &&
           strcmp(item->label.key_id, LABEL_TRIAL_KEY_ID) == 0 && item->label.generation < now &&
           now - item->label.generation > trial_age;
}
