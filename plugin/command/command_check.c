/* spire-hsm check: can this token hold SPIRE's keys? */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <string.h>
#include <unistd.h>

#include <openssl/rand.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "hsm/wire/pubkey.h"
#include "plugin/command/command_private.h"
#include "plugin/keys/loss.h"

struct check {
    const struct command_options *options;
    const struct command_config *config;
    struct command_token token;
    struct command_trials trials;
    struct record record; /* empty if there is none */
    bool recorded;        /* there is a record */
    struct table table;
    unsigned missing;
};

/* ---- rows ---- */

enum result { FINE, NOTE, MISSING };

static void row(struct check *check, enum result result, const char *what, const char *found)
{
    static const char *const names[] = {[FINE] = "fine", [NOTE] = "note", [MISSING] = "MISSING"};

    check->missing += result == MISSING;
    table_row(&check->table, names[result], what, found, NULL);
}

static void row_missing(struct check *check, const char *what, const char *found,
                        const char *advice)
{
    row(check, MISSING, what, found);
    table_note(&check->table, "do: %s", advice);
}

/* A fault's sentence may be longer than a table's cell. */
static void row_fault(struct check *check, const char *what, const char *state,
                      const struct fault *fault, const char *advice)
{
    row(check, MISSING, what, state);
    table_note(&check->table, "%s; do: %s", fault->message, advice);
}

/* ---- opening ---- */

static const char *advice_for(const struct fault *fault)
{
    if (hsm_refused_pin(fault->ckr))
        return "correct the PIN in its source; the plugin does not try it again before that";
    if (fault->code == FAULT_UNAVAILABLE)
        return "provide what the sentence reports as absent; `pkcs11-tool --module MODULE -L` "
               "lists the tokens that the module sees";
    return "correct what the sentence names";
}

static int open_token(struct check *check)
{
    const struct hsm_token_info *info = &check->token.info;
    struct fault fault;
    char text[TABLE_CELL];

    if (command_open_token(&check->config->config.keymanager, -1, &check->token, &fault) != 0) {
        row_fault(check, "token", "cannot be used", &fault, advice_for(&fault));
        return -1;
    }
    (void)snprintf(text, sizeof text, "\"%s\", serial %s, %s %s (library: %s)", info->label,
                   info->serial, info->manufacturer, info->model, info->library);
    row(check, FINE, "token", text);
    row(check, FINE, "login", "done, or not needed");
    return 0;
}

/* ---- what can be seen without writing ---- */

/* Libraries follow the kernel's FIPS mode. Our own computations do not. */
static void check_host(struct check *check)
{
    OWNED(scope_close) int fd = open("/proc/sys/crypto/fips_enabled", O_RDONLY | O_CLOEXEC);
    char mode = '0';

    if (fd >= 0 && read(fd, &mode, 1) == 1 && mode == '1')
        row(check, NOTE, "host",
            "FIPS mode: the token makes and uses the keys; OpenSSL's default provider hashes names "
            "and verifies signatures");
}

static void check_sessions(struct check *check)
{
    int64_t wanted = check->config->config.keymanager.max_sessions;
    char text[TABLE_CELL];

    (void)snprintf(text, sizeof text, "%u of max_sessions = %lld", check->token.info.sessions,
                   (long long)wanted);
    row(check, check->token.info.sessions < wanted ? NOTE : FINE, "sessions", text);
}

static void check_writing(struct check *check)
{
    if (check->token.info.write_protected)
        row_missing(check, "write", "the token is write-protected",
                    "ask its administrator to make it writable: rotation makes and destroys keys");
    else
        row(check, FINE, "write", "the token opens sessions for writing");
}

/* The first start makes the file. Could it do so? */
static void check_identity_folder(struct check *check)
{
    char path[HSM_PATH_MAX];
    const char *folder;

    memcpy(path, check->config->config.keymanager.place.key_identifier_file, sizeof path);
    folder = dirname(path);
    if (faccessat(AT_FDCWD, folder, W_OK | X_OK, AT_EACCESS) == 0 || errno == EPERM ||
        errno == ENOSYS) { /* an old container runtime gives no answer */
        row(check, NOTE, "identity", "key_identifier_file is not there; the first start makes it");
        return;
    }
    row(check, MISSING, "identity", "key_identifier_file is not there and cannot be made");
    table_note(&check->table, "its folder %s: %s; do: make the folder, writable for this user",
               folder, strerror(errno));
}

static void check_identity(struct check *check)
{
    struct identity identity = {.lock = -1};
    struct label_scope scope;
    struct fault fault;

    if (command_identity(&check->config->config, false, &identity, &scope, &fault) == 0)
        row(check, FINE, "identity", scope.server);
    else if (fault.code == FAULT_NOT_FOUND)
        check_identity_folder(check);
    else
        row_fault(check, "identity", "cannot be used", &fault, "correct the file");
    identity_close(&identity);
}

static void tell_start(struct check *check, const struct command_start *start)
{
    char text[TABLE_CELL];

    (void)snprintf(text, sizeof text, "%u keys served, %u of them missing; %u superseded keys wait",
                   start->served, start->missing, start->condemned);
    if (start->missing == 0 && start->lost == 0) {
        row(check, FINE, "record", text);
        return;
    }
    row(check, start->lost > 0 ? MISSING : NOTE, "record", text);
    if (start->lost > 0)
        table_note(&check->table,
                   "not on the token: %s; the plugin refuses a start. Do: bring back the token, or "
                   "accept the loss with accept_loss = \"%s\"",
                   start->names, start->code);
    else
        table_note(&check->table, "not on the token: %s; SPIRE makes new ones in their place",
                   start->names);
}

static void tell_known(struct check *check, const struct command_previous *found)
{
    char text[TABLE_CELL];

    (void)snprintf(text, sizeof text, "%zu of %zu keys moved to the token%s", found->moved,
                   found->moved + found->left,
                   found->needed[0] != '\0' ? "" : ": the block can go");
    row(check, found->needed[0] != '\0' ? NOTE : FINE, "previous", text);
    if (found->needed[0] != '\0')
        table_note(&check->table, "SPIRE needs what is left there: %s", found->needed);
}

static void tell_previous(struct check *check, const struct command_previous *found)
{
    char text[TABLE_CELL];

    if (found->refused) {
        row(check, MISSING, "previous", "other keys than this server moved from");
        table_note(&check->table,
                   "SPIRE has used the token's key \"%s\" since; a start is refused. Do: take the "
                   "block out if it is an older copy; if this server comes again from these keys, "
                   "accept them with accept_loss = \"%s\"",
                   found->needed, found->code);
    } else if (found->adopts > 0) {
        (void)snprintf(text, sizeof text, "a start would adopt %zu keys, and sign with them there",
                       found->adopts);
        row(check, FINE, "previous", text);
    } else {
        tell_known(check, found);
    }
}

/* If the block is absent, the record's row tells what is missing. */
static void check_previous(struct check *check, struct record *record)
{
    struct command_previous found;
    struct fault fault;

    if (command_previous_of(&check->config->config, record, &found, &fault) != 0)
        row_fault(check, "previous", "cannot be used", &fault, "correct what the sentence names");
    else if (found.given)
        tell_previous(check, &found);
}

static void check_start(struct check *check)
{
    bool no_previous = !check->config->config.keymanager.has_previous;
    struct command_start start;
    struct fault fault;

    if (!check->recorded)
        row(check, NOTE, "record", "no record yet: a start serves the keys on the token");
    else if (command_start_of(&check->token, &check->record, no_previous, &start, &fault) != 0)
        row_fault(check, "record", "cannot be compared", &fault, advice_for(&fault));
    else
        tell_start(check, &start);
}

/* Would a start find the keys that it must find? */
static void check_record(struct check *check)
{
    OWNED(identity_close) struct identity identity = {.lock = -1};
    struct label_scope scope;
    struct fault fault;

    if (command_identity(&check->config->config, false, &identity, &scope, &fault) != 0) {
        check_previous(check, &check->record); /* the identity has its own row */
        return;
    }
    if (command_record(&check->config->config, &identity, &check->record, &check->recorded,
                       &fault) != 0) {
        row_fault(check, "record", "cannot be used", &fault, "correct what the sentence names");
        return;
    }
    check_previous(check, &check->record);
    check_start(check);
}

/* Keys that a start does not serve because the record does not know them. Either the record is old,
 * or another process makes keys under this identity. */
static void check_newer(struct check *check)
{
    struct inventory server = {.items = NULL};
    char names[512] = "";

    while (check->recorded && census_next(&check->token.census, &server)) {
        if (!label_same_scope(&server.items[0].label.scope, &check->record.scope))
            continue;
        command_prove(&check->token, &server);
        for (size_t i = 0; i < server.count; i++) {
            const struct inventory_item *item = &server.items[i];
            const struct record_key key = {.label = item->label, .name = item->name};

            if (!record_find(&check->record, &item->name) &&
                census_state(&check->record, &server, &server.items[i]) == CENSUS_UNSERVED)
                loss_add_name(&key, names, sizeof names);
        }
    }
    if (names[0] == '\0')
        return;
    row(check, MISSING, "record", "it does not know newer keys of this server: none is served");
    table_note(&check->table,
               "on the token: %s. Do: if the record was restored from a backup, remove it and its "
               "copy before the start; if it was not, another process makes keys by this identity",
               names);
}

/* If several tokens match, or none is there: which token did the record see last? */
static void tell_token_of_record(struct check *check)
{
    OWNED(identity_close) struct identity identity = {.lock = -1};
    struct label_scope scope;
    char text[TABLE_CELL];
    struct fault fault;

    if (command_identity(&check->config->config, false, &identity, &scope, &fault) != 0 ||
        command_record(&check->config->config, &identity, &check->record, &check->recorded,
                       &fault) != 0 ||
        !check->recorded)
        return;
    (void)snprintf(text, sizeof text, "the last start used token \"%s\", serial %s",
                   check->record.token_label, check->record.token_serial);
    row(check, NOTE, "record", text);
}

/* The quirks of this library, and the claims of the token that turned out untrue. */
static void check_remarks(struct check *check)
{
    char *rest = check->token.info.remarks;
    const char *remark;

    while ((remark = strsep(&rest, "\n")) != NULL)
        if (*remark != '\0')
            row(check, NOTE, "token", remark);
}

/* The command tries a key type that the token denies only if SPIRE needs it. */
static bool is_to_be_tried(const struct check *check, enum hsm_key_type type)
{
    const struct hsm_token_info *info = &check->token.info;

    return info->can_generate[type] &&
           (check->config->needed[type] || (check->options->all && !info->doubtful[type]));
}

static void check_types(struct check *check)
{
    for (enum hsm_key_type type = HSM_EC_P256; type <= HSM_RSA_4096; type++) {
        const char *name = hsm_key_type_name(type);

        if (check->token.info.can_generate[type] && !check->token.info.doubtful[type])
            row(check, FINE, name, "the token says it can generate and sign");
        else if (is_to_be_tried(check, type))
            row(check, NOTE, name,
                "the token says that it cannot; a trial key shows whether it can");
        else if (check->config->needed[type])
            row_missing(check, name, "the token cannot generate and sign",
                        "in server.conf, set ca_key_type and jwt_key_type to a type that the token "
                        "can make");
        else
            row(check, NOTE, name, "the token cannot generate and sign; not needed");
    }
}

enum { SLOW_WALK = 100 }; /* in tenths of a second */

static const char slow_walk[] = "reading all objects takes long. A first start waits for it, and "
                                "so does a start that misses a key. Other starts, signatures and "
                                "new keys do not. Do: give SPIRE a token or partition of its own";

static void take_census(struct check *check)
{
    struct fault fault;
    char text[TABLE_CELL];
    int64_t begun = clock_now();
    int64_t took;

    if (command_census(&check->token, &fault) != 0) {
        row_fault(check, "objects", "cannot be listed", &fault, advice_for(&fault));
        return;
    }
    took = (clock_now() - begun) / (CLOCK_SECOND / 10);
    (void)snprintf(text, sizeof text,
                   "%zu keys of SPIRE, %u foreign objects, %u without a name; read in %d.%d s",
                   check->token.census.found.count, check->token.census.foreign,
                   check->token.census.nameless, (int)(took / 10), (int)(took % 10));
    row(check, took > SLOW_WALK ? NOTE : FINE, "objects", text);
    if (took > SLOW_WALK)
        table_note(&check->table, "%s", slow_walk);
}

/* ---- trial keys ---- */

struct trial {
    struct check *check;
    enum hsm_key_type type;
    char what[32];
    struct hsm_key_name name;
    struct hsm_public_key public_key;
};

static const struct use {
    const char *name;
    enum hsm_scheme scheme;
    int32_t salt;
    bool rsa;
    bool ec;
} uses[] = {
    {"ECDSA", HSM_PLAIN, 0, false, true},
    {"PKCS#1 v1.5", HSM_PLAIN, 0, true, false},
    {"PSS", HSM_PSS, HSM_SALT_HASH, true, false},
};

static int sign(const struct trial *trial, const struct use *use, struct fault *fault)
{
    struct hsm_request request = {.op = HSM_SIGN,
                                  .key = trial->name,
                                  .type = trial->type,
                                  .scheme = use->scheme,
                                  .hash = HSM_SHA256,
                                  .salt_length = use->salt};
    struct hsm_reply reply;

    request.digest_length = (uint32_t)hsm_hash_length(request.hash);
    memcpy(request.fingerprint, trial->public_key.fingerprint, sizeof request.fingerprint);
    if (RAND_bytes(request.digest, (int)request.digest_length) != 1)
        return fault_set(fault, FAULT_INTERNAL, "no random numbers");
    command_execute(&trial->check->token, &request, &reply);
    if (reply.fault.code == FAULT_NONE)
        return pubkey_verify(&trial->public_key, &request, reply.signature, reply.signature_length,
                             fault);
    *fault = reply.fault;
    return -1;
}

static void try_uses(const struct trial *trial)
{
    bool rsa = trial->type >= HSM_RSA_2048;

    for (size_t i = 0; i < sizeof uses / sizeof uses[0]; i++) {
        const struct use *use = &uses[i];
        char text[TABLE_CELL];
        struct fault fault;

        if (rsa ? !use->rsa : !use->ec)
            continue;
        (void)snprintf(text, sizeof text, "%s with SHA-256 %s", use->name, "signed and verified");
        if (sign(trial, use, &fault) == 0) {
            row(trial->check, FINE, trial->what, text);
            continue;
        }
        (void)snprintf(text, sizeof text, "%s with SHA-256 failed", use->name);
        row_fault(trial->check, trial->what, text, &fault,
                  "use another key type, or ask the token's vendor for this mechanism");
    }
}

static void destroy(const struct trial *trial, const char *gone)
{
    struct fault fault;

    if (command_trial_destroy(&trial->check->trials, &trial->name, &fault) == 0) {
        row(trial->check, FINE, trial->what, gone);
        return;
    }
    row(trial->check, MISSING, trial->what, "cannot be destroyed");
    table_note(&trial->check->table,
               "%s; do: allow the role to destroy keys, or set destroy_superseded = false; then "
               "remove label=%s",
               fault.message, trial->name.label);
}

static const char make_advice[] =
    "allow the role to make keys. If the token cuts labels or ids, set label_max or cka_id_length. "
    "If it cannot report attributes, set attribute_check. If its error is unspecific, try "
    "key_template";

static void try_type(struct check *check, enum hsm_key_type type)
{
    struct trial trial = {.check = check, .type = type};
    struct fault fault;
    char text[TABLE_CELL];
    bool made;

    (void)snprintf(trial.what, sizeof trial.what, "trial %s", hsm_key_type_name(type));
    if (command_trial_name(&check->trials, &trial.name, &fault) != 0) {
        row_fault(check, trial.what, "cannot be named", &fault, "set the clock");
        return;
    }
    made = command_trial_make(&check->trials, &trial.name, type, &trial.public_key, &fault) == 0;
    if (made) {
        (void)snprintf(text, sizeof text,
                       "made; label of %zu and id of %u bytes read back, attributes right",
                       strlen(trial.name.label), trial.name.id_length);
        row(check, FINE, trial.what, text);
        try_uses(&trial);
    } else {
        row_fault(check, trial.what, "cannot be made", &fault, make_advice);
    }
    destroy(&trial, made ? "destroyed, and no longer found" : "the token holds no part of it");
}

static void clear_away(struct check *check)
{
    struct inventory server = {.items = NULL};

    while (census_next(&check->token.census, &server))
        for (size_t i = 0; i < server.count; i++) {
            const struct inventory_item *item = &server.items[i];
            struct trial trial = {.check = check, .what = "earlier trial", .name = item->name};

            if (command_trial_is_leftover(&check->trials, item))
                destroy(&trial, "destroyed, and no longer found");
        }
}

static void try_all(struct check *check)
{
    const char *why = NULL;

    if (check->options->no_trial)
        why = "not made: --no-trial";
    else if (check->token.info.write_protected)
        why = "not made: the token is write-protected";
    else if (!check->config->config.keymanager.destroy_superseded)
        why = "not made: with destroy_superseded = false it might have to stay";
    if (why) {
        row(check, NOTE, "trial keys", why);
        return;
    }
    clear_away(check);
    for (enum hsm_key_type type = HSM_EC_P256; type <= HSM_RSA_4096; type++)
        if (is_to_be_tried(check, type))
            try_type(check, type);
}

/* ---- the command ---- */

static void run(struct check *check)
{
    check_host(check);
    check_identity(check);
    if (open_token(check) != 0) {
        tell_token_of_record(check);
        return;
    }
    check_remarks(check);
    check_sessions(check);
    check_writing(check);
    check_types(check);
    check_record(check);
    take_census(check);
    check_newer(check);
    try_all(check);
}

static void close_check(struct check *check)
{
    command_close_token(&check->token);
    record_close(&check->record);
    table_free(&check->table);
}

int check_command(const struct command_options *options)
{
    OWNED(command_wipe_config) struct command_config config = {.needed = {false}};
    OWNED(close_check) struct check check = {.options = options, .config = &config};
    struct fault fault;

    if (command_read_config(options, &config, &fault) != 0)
        return command_fail(&fault);
    command_trials_open(&config.config, &check.token, &check.trials);
    run(&check);
    table_print(&check.table, stdout);
    if (check.missing == 0)
        (void)printf("the token has all that SPIRE needs\n");
    else
        (void)printf("%u thing%s missing\n", check.missing, check.missing == 1 ? " is" : "s are");
    return check.missing == 0 ? COMMAND_FINE : COMMAND_WRONG;
}
