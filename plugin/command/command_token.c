/* The token as a command sees it: through a worker, with the plugin's own supervisor, limits and
 * retries. So a command sees what the plugin would see, and survives a module that crashes or
 * hangs. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"
#include "plugin/command/command_private.h"

/* Every label of format 1 begins like this, whichever server made it. */
static const char everybody[] = "sp1-";

/* For a token with many objects; and for a worker to leave. */
static const int64_t scan_limit = 300 * CLOCK_SECOND;
static const int64_t end_limit = 15 * CLOCK_SECOND;

/* Run as root, the command would refuse the file, as it belongs to the server's user. */
static int blame_user(const char *path, struct fault *fault)
{
    struct stat file;

    if (*path && stat(path, &file) == 0 && file.st_uid != 0 && file.st_uid != geteuid())
        (void)fault_prefix(fault, "run this as user %u, as the server does", (unsigned)file.st_uid);
    return -1;
}

/* The supervisor calls this last of all. */
static void ended(void *context)
{
    struct command_token *token = context;

    (void)pthread_mutex_lock(&token->lock);
    token->open = false;
    (void)pthread_cond_broadcast(&token->changed);
    (void)pthread_mutex_unlock(&token->lock);
}

static void tick(void *context)
{
    (void)context;
}

static int start(const struct config_keymanager *config, int lock, struct command_token *token,
                 struct fault *fault)
{
    struct supervisor_options options = {
        .lock = lock,
        .operation_limit = config->operation_timeout,
        .generate_limit = config->generate_timeout,
        .one_caller = true,
        .tick = tick,
        .ended = ended,
        .context = token,
    };
    int result;

    config_settings(config, &options.settings);
    token->limit = config->call_timeout;
    result = supervisor_start(&options, &token->supervisor, fault);
    hsm_settings_wipe(&options.settings);
    token->open = result == 0;
    return result;
}

int command_open_token(const struct config_keymanager *config, int lock,
                       struct command_token *token, struct fault *fault)
{
    static const atomic_bool never;

    (void)pthread_mutex_init(&token->lock, NULL);
    condition_open(&token->changed);
    if (start(config, lock, token, fault) != 0)
        return -1;
    if (supervisor_wait(token->supervisor, 0, &never, &token->info, fault) != 0)
        return blame_user(config->place.pin_file, fault);
    return 0;
}

/* If the worker does not end in time, the kernel ends it together with this process. */
void command_close_token(struct command_token *token)
{
    int64_t end = clock_now() + end_limit;

    census_clear(&token->census);
    if (!token->supervisor)
        return;
    supervisor_retire(token->supervisor);
    token->supervisor = NULL;
    (void)pthread_mutex_lock(&token->lock);
    while (token->open && clock_now() < end)
        condition_wait(&token->changed, &token->lock, end);
    (void)pthread_mutex_unlock(&token->lock);
}

/* ---- requests ---- */

/* One request and the wait for its answer. */
struct wait {
    struct command_token *token;
    struct hsm_reply *reply;
    bool answered;
};

static void answered(void *context, const struct hsm_reply *reply)
{
    struct wait *wait = context;
    struct command_token *token = wait->token;

    (void)pthread_mutex_lock(&token->lock);
    *wait->reply = *reply;
    wait->answered = true;
    (void)pthread_cond_broadcast(&token->changed);
    (void)pthread_mutex_unlock(&token->lock);
}

static void found(void *context, const struct hsm_item *item)
{
    struct wait *wait = context;

    if (item)
        census_add(&wait->token->census, item);
    else
        census_clear(&wait->token->census);
}

void command_execute(struct command_token *token, const struct hsm_request *request,
                     struct hsm_reply *reply)
{
    bool scan = request->op == HSM_SCAN;
    struct wait wait = {.token = token, .reply = reply};

    supervisor_submit(
        token->supervisor,
        &(struct supervisor_request){.request = request,
                                     .deadline = clock_now() + (scan ? scan_limit : token->limit),
                                     .done = answered,
                                     .item = scan ? found : NULL,
                                     .context = &wait});
    (void)pthread_mutex_lock(&token->lock);
    while (!wait.answered)
        (void)pthread_cond_wait(&token->changed, &token->lock);
    (void)pthread_mutex_unlock(&token->lock);
}

int command_census(struct command_token *token, struct fault *fault)
{
    struct hsm_request request = {.op = HSM_SCAN};
    struct hsm_reply reply;

    memcpy(request.prefix, everybody, sizeof everybody);
    census_clear(&token->census);
    command_execute(token, &request, &reply);
    if (reply.fault.code != FAULT_NONE) {
        *fault = reply.fault;
        return fault_prefix(fault, "cannot list the keys on token \"%s\"", token->info.label);
    }
    if (token->census.found.out_of_memory)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    token->census.foreign += reply.foreign;
    token->census.nameless = reply.nameless;
    census_sort(&token->census);
    return 0;
}

void command_prove(struct command_token *token, struct inventory *server)
{
    struct hsm_reply reply;

    for (size_t i = 0; i < server->count; i++) {
        struct inventory_item *item = &server->items[i];
        struct hsm_request request = {.op = HSM_PROVE, .key = item->name};

        command_execute(token, &request, &reply);
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
        return blame_user(config->keymanager.place.key_identifier_file, fault);
    *scope = identity->scope;
    return 0;
}

int command_named(const struct command_options *options, const struct config *config, bool lock,
                  struct identity *identity, struct label_scope *scope, struct fault *fault)
{
    struct config named = {.kind = CONFIG_KEYMANAGER};
    const char *text = options->server_id ? options->server_id : options->server_id_file;
    char *to = options->server_id ? named.keymanager.place.key_identifier_value
                                  : named.keymanager.place.key_identifier_file;
    size_t room = options->server_id ? sizeof named.keymanager.place.key_identifier_value
                                     : sizeof named.keymanager.place.key_identifier_file;

    if (strlen(text) == 0 || strlen(text) >= room)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "%s: 1 to %zu bytes are expected",
                         options->server_id ? "--server-id" : "--server-id-file", room - 1);
    memcpy(to, text, strlen(text) + 1);
    memcpy(named.trust_domain, config->trust_domain, sizeof named.trust_domain);
    if (command_identity(&named, lock, identity, scope, fault) != 0)
        return fault_prefix(fault, "--server-id-file");
    return 0;
}
