#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin/command/command_private.h"

/* The beginning of every label of format 1, whoever the key belongs to. */
static const char everybody[] = "sp1-";

/* To root, who runs us at night, the file of the server's user is somebody else's. */
static int blame_user(const char *path, struct fault *fault)
{
    struct stat file;

    if (*path && stat(path, &file) == 0 && file.st_uid != 0 && file.st_uid != geteuid())
        (void)fault_prefix(fault, "run this as user %u, as the server is", (unsigned)file.st_uid);
    return -1;
}

int command_open_token(const struct config_keymanager *config, struct command_token *token,
                       struct fault *fault)
{
    struct hsm_settings settings;
    int result;

    config_settings(config, &settings);
    result = hsm_open(&settings, &token->token, &token->info, fault);
    hsm_settings_wipe(&settings);
    return result == 0 ? 0 : blame_user(config->pin_file, fault);
}

void command_close_token(struct command_token *token)
{
    survey_clear(&token->survey);
    hsm_close(token->token);
    token->token = NULL;
}

static void add_item(void *context, const struct hsm_item *item)
{
    struct survey *survey = context;

    survey_add(survey, item);
}

int command_survey(struct command_token *token, struct fault *fault)
{
    struct hsm_request request = {.op = HSM_SCAN};
    struct hsm_reply reply;

    memcpy(request.prefix, everybody, sizeof everybody);
    survey_clear(&token->survey);
    hsm_execute(token->token, &request, &reply, add_item, &token->survey);
    if (reply.fault.code != FAULT_NONE) {
        *fault = reply.fault;
        return fault_prefix(fault, "cannot list the keys on token \"%s\"", token->info.label);
    }
    if (token->survey.found.out_of_memory)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    token->survey.foreign += reply.foreign;
    token->survey.nameless = reply.nameless;
    survey_sort(&token->survey);
    return 0;
}

void command_prove(struct command_token *token, struct inventory *server)
{
    struct hsm_reply reply;

    for (size_t i = 0; i < server->count; i++) {
        struct inventory_item *item = &server->items[i];
        struct hsm_request request = {.op = HSM_PROVE, .key = item->name};

        hsm_execute(token->token, &request, &reply, NULL, NULL);
        item->proven = reply.fault.code == FAULT_NONE;
        if (item->proven) {
            item->state = reply.state;
            item->public_key = reply.public_key;
        }
        (void)snprintf(item->why, sizeof item->why, "%.*s", (int)sizeof item->why - 1,
                       item->proven ? reply.why : reply.fault.message);
    }
}

int command_identity(const struct config *config, bool lock, struct identity *identity,
                     struct label_scope *scope, struct fault *fault)
{
    if (identity_find(config, lock, identity, fault) != 0)
        return blame_user(config->keymanager.key_identifier_file, fault);
    *scope = identity->scope;
    return 0;
}

int command_named(const struct command_options *options, const struct config *config, bool lock,
                  struct identity *identity, struct label_scope *scope, struct fault *fault)
{
    struct config named = {.kind = CONFIG_KEYMANAGER};
    const char *text = options->server_id ? options->server_id : options->server_id_file;
    char *to = options->server_id ? named.keymanager.key_identifier_value
                                  : named.keymanager.key_identifier_file;
    size_t room = options->server_id ? sizeof named.keymanager.key_identifier_value
                                     : sizeof named.keymanager.key_identifier_file;

    if (strlen(text) == 0 || strlen(text) >= room)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "%s: 1 to %zu bytes are expected",
                         options->server_id ? "--server-id" : "--server-id-file", room - 1);
    memcpy(to, text, strlen(text) + 1);
    memcpy(named.trust_domain, config->trust_domain, sizeof named.trust_domain);
    if (command_identity(&named, lock, identity, scope, fault) != 0)
        return fault_prefix(fault, "--server-id-file");
    return 0;
}

void command_identity_close(struct identity *identity)
{
    identity_close(identity);
}
