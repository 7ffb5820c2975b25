/* Reads the file that an operator names, and finds in it what the plugin would be given. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "hsm/base/file.h"
#include "hsm/base/scope.h"
#include "plugin/command/command_private.h"
#include "plugin/config/hcl.h"

/* ---- files ---- */

static int open_file(const char *path, size_t most, struct fault *fault)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    int result = 0;

    if (fd < 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno, "cannot open \"%s\"", path);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        result = fault_set(fault, FAULT_FAILED_PRECONDITION, "\"%s\" is not a regular file", path);
    else if (st.st_size > (off_t)most)
        result = fault_set(fault, FAULT_FAILED_PRECONDITION, "\"%s\" holds more than %zu bytes",
                           path, most);
    if (result == 0)
        return fd;
    (void)close(fd);
    return -1;
}

char *command_read_file(const char *path, size_t most, size_t *length, struct fault *fault)
{
    OWNED(scope_close) int fd = open_file(path, most, fault);
    ssize_t got;
    char *made;

    if (fd < 0)
        return NULL;
    made = calloc(1, most + 1);
    got = made ? file_read(fd, made, most) : -1;
    if (got >= 0) {
        *length = (size_t)got;
        return made;
    }
    (void)fault_errno(fault, FAULT_FAILED_PRECONDITION, errno, "cannot read \"%s\"", path);
    free(made);
    return NULL;
}

/* The text may hold a PIN. */
static void wipe_text(char **text)
{
    if (*text)
        explicit_bzero(*text, strlen(*text));
    free(*text);
}

/* ---- environment ---- */

static bool is_name(char c)
{
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Reads the name behind a '$' as Go's os.Expand does: returns how many bytes it takes, and which of
 * them are the name. Without a name nothing is inserted; with no bytes the '$' stays. */
static size_t find_name(const char *text, const char **name, size_t *length)
{
    const char *end;

    *name = text;
    *length = 0;
    if (*text == '{') {
        *name = text + 1;
        end = strchr(text, '}');
        *length = end ? (size_t)(end - *name) : 0;
        return end ? (size_t)(end - text) + 1 : 1;
    }
    if (*text != '\0' && strchr("*#$@!?-0123456789", *text))
        *length = 1;
    else
        while (is_name(text[*length]))
            (*length)++;
    return *length;
}

static const char *value_of(const char *name, size_t length, unsigned *unset)
{
    char copy[256];
    const char *value;

    if (length == 1 && *name == '$')
        return "$";
    if (length == 0 || length >= sizeof copy)
        return "";
    memcpy(copy, name, length);
    copy[length] = '\0';
    value = getenv(copy);
    *unset += !value;
    return value ? value : "";
}

char *command_expand(const char *text, unsigned *unset)
{
    char *made = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&made, &size);

    if (!out)
        return NULL;
    while (*text) {
        size_t plain = strcspn(text, "$");
        const char *name;
        size_t length;
        size_t taken;

        (void)fwrite(text, 1, plain, out);
        text += plain;
        if (*text != '$')
            break;
        taken = find_name(++text, &name, &length);
        (void)fputs(taken == 0 ? "$" : value_of(name, length, unset), out);
        text += taken;
    }
    return fclose(out) == 0 ? made : NULL;
}

/* ---- server.conf ---- */

static const struct hcl_item *find_item(const struct hcl_item *block, const char *key)
{
    for (size_t i = 0; block && i < block->count; i++)
        if (strcmp(block->items[i].key, key) == 0)
            return &block->items[i];
    return NULL;
}

static const char *find_text(const struct hcl_item *block, const char *key)
{
    const struct hcl_item *item = find_item(block, key);

    return item && item->kind == HCL_STRING ? item->text : NULL;
}

/* In JSON, a block may also be the only element of a list. */
static const struct hcl_item *find_block(const struct hcl_item *block, const char *key)
{
    const struct hcl_item *item = find_item(block, key);

    if (item && item->kind == HCL_LIST && item->count == 1)
        item = item->items;
    return item && item->kind == HCL_BLOCK ? item : NULL;
}

/* Is this the whole configuration of a server or an agent, rather than plugin_data alone? */
static bool is_host(const struct hcl_item *root)
{
    const struct hcl_item *plugins = find_item(root, "plugins");

    return plugins && (plugins->kind == HCL_BLOCK || plugins->kind == HCL_LIST);
}

static bool is_spire_hsm(const struct hcl_item *plugin)
{
    static const char name[] = "spire-hsm";
    const char *cmd = find_text(plugin, "plugin_cmd");
    size_t length = cmd ? strlen(cmd) : 0;

    return length >= sizeof name - 1 && strcmp(cmd + length - (sizeof name - 1), name) == 0;
}

static bool has_data(const struct hcl_item *plugin)
{
    return find_item(plugin, "plugin_data") || find_item(plugin, "plugin_data_file");
}

static bool is_disabled(const struct hcl_item *plugin)
{
    const struct hcl_item *enabled = find_item(plugin, "enabled");

    return enabled && enabled->kind == HCL_BOOL && enabled->number == 0;
}

/* The KeyManager block that is ours or could be. Of several, the enabled one. */
struct choice {
    const struct hcl_item *plugin;
    int rank;
    size_t count; /* how many blocks have this rank */
};

static void weigh(struct choice *choice, const struct hcl_item *plugin)
{
    int rank = (is_spire_hsm(plugin) ? 2 : 0) + (is_disabled(plugin) ? 0 : 1);

    if (choice->count > 0 && rank < choice->rank)
        return;
    choice->count = rank == choice->rank ? choice->count + 1 : 1;
    choice->rank = rank;
    choice->plugin = plugin;
}

/* In JSON, blocks lie below their names, and may lie in lists of any depth. */
static void weigh_all(struct choice *choice, const struct hcl_item *item)
{
    if (item->kind == HCL_BLOCK && has_data(item)) {
        weigh(choice, item);
        return;
    }
    for (size_t i = 0; i < item->count; i++)
        weigh_all(choice, &item->items[i]);
}

static void search_plugins(struct choice *choice, const struct hcl_item *plugins)
{
    for (size_t i = 0; i < plugins->count; i++) {
        const struct hcl_item *item = &plugins->items[i];

        if (plugins->kind == HCL_LIST)
            search_plugins(choice, item);
        else if (strcmp(item->key, "KeyManager") == 0)
            weigh_all(choice, item);
    }
}

static int find_plugin(const struct hcl_item *root, const struct hcl_item **plugin,
                       struct fault *fault)
{
    struct choice choice = {.count = 0};

    search_plugins(&choice, find_item(root, "plugins"));
    *plugin = choice.plugin;
    if (choice.count == 1)
        return 0;
    return fault_set(fault, FAULT_INVALID_ARGUMENT,
                     choice.count == 0 ? "there is no KeyManager block with plugin_data"
                                       : "several KeyManager blocks match; disable all but one");
}

static const struct {
    const char *name;
    enum hsm_key_type type;
} key_types[] = {
    {"ec-p256", HSM_EC_P256},
    {"ec-p384", HSM_EC_P384},
    {"rsa-2048", HSM_RSA_2048},
    {"rsa-4096", HSM_RSA_4096},
};

static int read_key_type(const char *setting, const char *name, bool needed[HSM_RSA_4096 + 1],
                         struct fault *fault)
{
    for (size_t i = 0; i < sizeof key_types / sizeof key_types[0]; i++)
        if (strcmp(name, key_types[i].name) == 0) {
            needed[key_types[i].type] = true;
            return 0;
        }
    return fault_set(fault, FAULT_INVALID_ARGUMENT,
                     "%s \"%s\" is no key type: expected ec-p256, ec-p384, rsa-2048 or rsa-4096",
                     setting, name);
}

/* SPIRE's rule: JWT keys are of ca_key_type unless jwt_key_type is set. */
static int read_needs(const struct hcl_item *server, bool needed[HSM_RSA_4096 + 1],
                      struct fault *fault)
{
    const char *ca = find_text(server, "ca_key_type");
    const char *jwt = find_text(server, "jwt_key_type");

    if (ca && *ca) {
        needed[HSM_EC_P256] = false;
        if (read_key_type("ca_key_type", ca, needed, fault) != 0)
            return -1;
    }
    return jwt && *jwt ? read_key_type("jwt_key_type", jwt, needed, fault) : 0;
}

/* ---- reading ---- */

struct file_reading {
    const struct command_options *options;
    struct command_config *made;
    struct config_notes notes;
};

static int read_data_file(struct file_reading *r, const char *trust_domain, const char *path,
                          struct fault *fault)
{
    size_t length;
    OWNED(wipe_text) char *text = command_read_file(path, HCL_TEXT_MAX, &length, fault);

    if (!text)
        return fault_prefix(fault, "plugin_data_file");
    (void)config_read(CONFIG_KEYMANAGER, trust_domain, text, length, &r->made->config, &r->notes);
    return 0;
}

static int read_plugin(struct file_reading *r, const char *trust_domain,
                       const struct hcl_item *plugin, struct fault *fault)
{
    const struct hcl_item *data = find_item(plugin, "plugin_data");
    const struct hcl_item *block = find_block(plugin, "plugin_data");
    const char *path = find_text(plugin, "plugin_data_file");

    if (data && find_item(plugin, "plugin_data_file"))
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "line %u: only one of plugin_data and plugin_data_file can be used",
                         plugin->line);
    if (data && !block)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "line %u: plugin_data is not a block",
                         data->line);
    if (block)
        (void)config_read_block(CONFIG_KEYMANAGER, trust_domain, block, &r->made->config,
                                &r->notes);
    else if (path)
        return read_data_file(r, trust_domain, path, fault);
    else
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "line %u: plugin_data_file is not a string",
                         plugin->line);
    return 0;
}

static int read_tree(struct file_reading *r, const struct hcl_item *root, struct fault *fault)
{
    const struct hcl_item *server = find_block(root, "server");
    const struct hcl_item *host = server ? server : find_block(root, "agent");
    const struct hcl_item *plugin = NULL;
    const char *trust_domain = r->options->trust_domain;

    r->made->needed[HSM_EC_P256] = true;
    if (is_host(root) && find_plugin(root, &plugin, fault) != 0)
        return -1;
    if (plugin && host) {
        trust_domain = trust_domain ? trust_domain : find_text(host, "trust_domain");
        if (read_needs(host, r->made->needed, fault) != 0)
            return -1;
    }
    if (!trust_domain)
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "the file does not name the trust domain: give --trust-domain NAME");
    if (plugin)
        return read_plugin(r, trust_domain, plugin, fault);
    (void)config_read_block(CONFIG_KEYMANAGER, trust_domain, root, &r->made->config, &r->notes);
    return 0;
}

/* The reader does not know everything that a server's configuration may hold beside our block. */
static int refuse_text(const char *text, struct fault *fault)
{
    struct fault why = *fault;

    if (strstr(why.message, "\"${\""))
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "the file contains \"${\": give --expand-env, if the server is started "
                         "with -expandEnv");
    if (strstr(text, "plugin_data"))
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "%s; if that line is not about spire-hsm, put plugin_data into a file of "
                         "its own and name that",
                         why.message);
    return -1;
}

static int read_text(struct file_reading *r, const char *text, struct fault *fault)
{
    OWNED(hcl_scope_free) struct hcl *tree = NULL;

    if (hcl_parse_host(text, strlen(text), &tree, fault) != 0)
        return refuse_text(text, fault);
    return read_tree(r, hcl_root(tree), fault);
}

/* strlen would stop at a NUL, so the file is passed with its length, and hcl_parse_host refuses the
 * NUL. */
static int read_config(struct file_reading *r, struct fault *fault)
{
    size_t length;
    OWNED(wipe_text)
    char *text = command_read_file(r->options->config, HCL_TEXT_MAX, &length, fault);
    OWNED(wipe_text) char *expanded = NULL;
    unsigned unset = 0;

    if (!text)
        return -1;
    if (strlen(text) != length)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "the file contains a NUL byte");
    if (!r->options->expand_env)
        return read_text(r, text, fault);
    expanded = command_expand(text, &unset);
    if (!expanded)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    if (unset > 0)
        (void)fprintf(stderr,
                      "spire-hsm: warning: %u environment variable%s named in %s %s not set here, "
                      "and taken as empty\n",
                      unset, unset == 1 ? "" : "s", r->options->config, unset == 1 ? "is" : "are");
    return read_text(r, expanded, fault);
}

static int tell_notes(const struct file_reading *r, struct fault *fault)
{
    const struct config_notes *notes = &r->notes;
    size_t count = notes->errors + notes->warnings;

    for (size_t i = 0; i < count && i < CONFIG_NOTES_MAX; i++)
        (void)fprintf(stderr, "spire-hsm: %s: %s\n", notes->notes[i].error ? "error" : "warning",
                      notes->notes[i].text);
    if (notes->errors == 0)
        return 0;
    return fault_set(fault, FAULT_INVALID_ARGUMENT, "plugin_data is not valid");
}

int command_read_config(const struct command_options *options, struct command_config *config,
                        struct fault *fault)
{
    struct command_config made = {.config.kind = CONFIG_KEYMANAGER};
    struct file_reading reading = {.options = options, .made = &made};

    if (!options->config)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "--config FILE is required");
    if (read_config(&reading, fault) != 0 || tell_notes(&reading, fault) != 0)
        return fault_prefix(fault, "%s", options->config);
    *config = made;
    command_wipe_config(&made);
    return 0;
}

void command_wipe_config(struct command_config *config)
{
    config_wipe(&config->config);
}
