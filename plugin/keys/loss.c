/* Losses that an operator can accept: the codes that name them, and the sentences of a refused
 * start. */
#include "plugin/keys/loss.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hsm/base/file.h"
#include "hsm/base/scope.h"
#include "plugin/keys/previous.h"
#include "plugin/report/log.h"

static bool path_of(const char *record_path, char path[HSM_PATH_MAX])
{
    int length = snprintf(path, HSM_PATH_MAX, "%s.accept", record_path);

    return *record_path && length > 0 && length < HSM_PATH_MAX;
}

static bool holds(int fd, const char *path, const char *code)
{
    char bytes[RECORD_CODE + 1] = "";
    struct fault fault;
    struct stat st;

    if (fstat(fd, &st) != 0)
        return false;
    if (file_check(FILE_IDENTITY, &st, &fault, "file \"%s\"", path) != 0) {
        log_fault(LOG_WARN, &fault, "the plugin ignores the acceptance of a loss", NULL);
        return false;
    }
    return read(fd, bytes, RECORD_CODE) == RECORD_CODE && memcmp(bytes, code, RECORD_CODE) == 0;
}

bool loss_is_told(const struct config_keymanager *config, const char *record_path, const char *code)
{
    OWNED(scope_close) int fd = -1;
    char path[HSM_PATH_MAX];

    if (strcmp(config->accept_loss, code) == 0)
        return true;
    if (path_of(record_path, path))
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    return fd >= 0 && holds(fd, path, code);
}

bool loss_is_accepted(const struct config_keymanager *config, const char *record_path,
                      const char *code)
{
    return config->replace_missing || loss_is_told(config, record_path, code);
}

void loss_add_name(const struct record_key *key, char *names, size_t room)
{
    size_t used = strlen(names);

    (void)snprintf(names + used, room - used, "%skey \"%s\" (label %s)", used > 0 ? ", " : "",
                   key->label.key_id, key->name.label);
}

void loss_add_previous(const struct record *record, char *names, size_t room)
{
    for (size_t i = 0; i < record->previous_count; i++) {
        const struct record_previous *key = &record->previous[i];
        size_t used = strlen(names);

        if (previous_is_needed(record, key))
            (void)snprintf(names + used, room - used,
                           "%skey \"%s\" (served from previous until now: put that block back)",
                           used > 0 ? ", " : "", key->key_id);
    }
}

/* An operator can do without the end of the sentence, but not without the code. */
int loss_refuse(const char *names, const struct hsm_token_info *token, const char *code,
                struct fault *fault)
{
    enum { MOST = 220 };
    const char *more = strlen(names) > MOST ? "..." : "";

    return fault_set(
        fault, FAULT_FAILED_PRECONDITION,
        "%.*s%s: not on token \"%s\" (serial %s), but SPIRE needs it. Bring back the "
        "token, or a backup of it; if the loss is final, accept it with accept_loss = "
        "\"%s\" in plugin_data or with: spire-hsm accept %s. New keys in its place end "
        "every agent of this trust domain, unless the key was only prepared, or an "
        "UpstreamAuthority or a second server on this datastore is there",
        MOST, names, more, token->label, token->serial, code, code);
}

int loss_refuse_damage(const char *code, struct fault *fault)
{
    return fault_prefix(fault,
                        "the plugin cannot tell which keys this server must find. Restore the "
                        "record; if it is lost, begin anew with the keys on the token by "
                        "accept_loss = \"%s\" in plugin_data or by: spire-hsm accept %s",
                        code, code);
}

int loss_refuse_anothers(const struct config_keymanager *config, const char *code,
                         struct fault *fault)
{
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "record_file is another server's: it has no keys of this identity. One of the "
                     "two was exchanged: restore it, or every agent may end. If this is a new "
                     "server, say so with accept_loss = \"%s\" in plugin_data or with: spire-hsm "
                     "accept %s (%s%s%s)",
                     code, code, config->place.key_identifier_file,
                     config->place.key_identifier_file[0] != '\0' ? ", " : "", config->record_file);
}

int loss_accept(const char *record_path, const char *code, struct fault *fault)
{
    char path[HSM_PATH_MAX];
    char text[RECORD_CODE + 2];

    if (!path_of(record_path, path))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "there is no record_file: set accept_loss in plugin_data instead");
    (void)snprintf(text, sizeof text, "%.*s\n", RECORD_CODE, code);
    return file_replace(path, text, strlen(text), S_IRUSR | S_IWUSR, fault);
}

void loss_forget(const char *record_path)
{
    char path[HSM_PATH_MAX];

    if (path_of(record_path, path))
        (void)unlink(path);
}
