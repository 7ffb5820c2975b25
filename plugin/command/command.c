/* The commands: their options and help, and the reading of a command line. */
#include <linux/close_range.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "plugin/command/command_private.h"
#include "plugin/report/log.h"
#include "plugin/worker/child.h"

/* ---- options ---- */

enum {
    CHECK = 1,
    KEYS = 2,
    PRUNE = 4,
    BUNDLE = 8,
    ACCEPT = 16,
    EVIDENCE = 32,
    BENCH = 64,
};

enum { WITH_TOKEN = CHECK | KEYS | PRUNE | ACCEPT | EVIDENCE | BENCH };

static const struct option {
    const char *name;
    const char *value; /* name of its value, NULL = a flag */
    size_t offset;     /* in struct command_options: of a string, or of a flag */
    unsigned commands;
    const char *help;
} options[] = {
    {"--config", "FILE", offsetof(struct command_options, config), WITH_TOKEN,
     "plugin_data, or the whole configuration of a server or an agent. In the latter\n"
     "        the command reads the KeyManager block whose plugin_cmd ends in spire-hsm, or\n"
     "        the only one; of several it reads the enabled one"},
    {"--trust-domain", "NAME", offsetof(struct command_options, trust_domain), WITH_TOKEN,
     "the trust domain, if FILE holds plugin_data alone"},
    {"--expand-env", NULL, offsetof(struct command_options, expand_env), WITH_TOKEN,
     "replace ${NAME} in FILE by the environment variable, as spire-server -expandEnv does"},
    {"--all", NULL, offsetof(struct command_options, all), CHECK | BENCH,
     "try all four key types, not only those the server is configured for"},
    {"--no-trial", NULL, offsetof(struct command_options, no_trial), CHECK,
     "make no trial key: nothing is written to the token"},
    {"--json", NULL, offsetof(struct command_options, json), KEYS | EVIDENCE | BENCH,
     "JSON instead of a table"},
    {"--other-servers", NULL, offsetof(struct command_options, other_servers), PRUNE,
     "take the keys of all other servers of this trust domain, not this server's leftovers"},
    {"--server-id", "VALUE", offsetof(struct command_options, server_id), KEYS | PRUNE,
     "another server's key_identifier_value: `keys` shows its name, `prune` takes its keys alone"},
    {"--server-id-file", "PATH", offsetof(struct command_options, server_id_file), KEYS | PRUNE,
     "the same, by the server's key_identifier_file"},
    {"--older-than", "DURATION", offsetof(struct command_options, older_than), PRUNE,
     "leave keys that were in use in this time; 24h or more, 24h if not given"},
    {"--yes", NULL, offsetof(struct command_options, yes), PRUNE,
     "really destroy the keys; without --yes the command only lists them"},
    {"--format", "FORMAT", offsetof(struct command_options, format), BUNDLE | EVIDENCE,
     "spiffe, jwks, pem or oidc; if not given, the command guesses from the file"},
    {"--bundle", "FILE", offsetof(struct command_options, bundle), EVIDENCE,
     "the published bundle, as BundlePublisher or Notifier wrote it"},
    {"--nonce", "HEX", offsetof(struct command_options, nonce), EVIDENCE,
     "8 to 64 bytes, chosen by the auditor; random if not given"},
    {"--sessions", "N", offsetof(struct command_options, sessions), BENCH,
     "the most signatures at a time, 1 to 64; max_sessions if not given"},
    {"--seconds", "N", offsetof(struct command_options, seconds), BENCH,
     "how long each step takes, 1 to 60; 2 if not given"},
};

enum { OPTIONS = sizeof options / sizeof options[0] };

/* ---- commands ---- */

static const struct command {
    const char *name;
    unsigned bit;
    const char *usage;
    const char *summary;
    const char *help;
    command_fn *run;
} commands[] = {
    {"check", CHECK, "check --config FILE [OPTION...]", "can this token hold SPIRE's keys?",
     "Loads the module, logs in, and shows in a table what the token can do and what SPIRE needs.\n"
     "Makes, verifies and destroys a trial key of each type the server is configured for. With\n"
     "destroy_superseded = false it makes none, as the key might have to stay.\n"
     "Like the plugin, it remembers a refused PIN and tries it again only when its source has\n"
     "changed.\n",
     check_command},
    {"keys", KEYS, "keys --config FILE [OPTION...]", "what SPIRE has on this token",
     "Lists the keys of all servers and trust domains, with the fields of the server's log lines.\n"
     "A server or trust domain that the configuration does not name is shown as the 8 characters\n"
     "in the label. The command has each key sign once, to prove it.\n"
     "local_authority_id is SPIRE's for an X.509 authority; that of a JWT authority is random.\n"
     "\n"
     "The states of a key:\n"
     "    current     a server serves it, or its next start would\n"
     "    older       a newer key is served\n"
     "    not served  it is newer than the key that a start serves by the record\n"
     "    half        a crash left one half of a pair\n"
     "    unfit       it must not be served, for the reason given\n"
     "    duplicate   two keys have one name or generation\n"
     "    unknown     the command could not examine it\n",
     keys_command},
    {"prune", PRUNE, "prune --config FILE [OPTION...]", "destroy keys that nobody needs any more",
     "Lists keys that nobody needs, and destroys them with --yes. By default these are leftovers\n"
     "of this server: keys, and halves of keys, that a newer key replaced 24 hours ago. The "
     "newest\n"
     "key stays. So does a half that nothing has replaced, as it may be the key in use.\n"
     "Stop the server first. With --other-servers or --server-id the command takes all keys of\n"
     "servers that have made none for 24 hours. Such a server may well be alive: set --older-than\n"
     "above your ca_ttl, and read the list first. The command never touches keys of other trust\n"
     "domains or foreign objects.\n",
     prune_command},
    {"accept", ACCEPT, "accept --config FILE [CODE]", "let a server start without lost keys",
     "The plugin refuses a start when a key is gone that SPIRE needs. A new key in its place "
     "would\n"
     "end every agent of the trust domain, unless the server has an UpstreamAuthority or a second\n"
     "server shares its datastore. The refusal names the keys, and a CODE for exactly these.\n"
     "With the CODE the command accepts their loss, for the start that waits now or the next one.\n"
     "Without the CODE it looks at the token and says what is missing.\n",
     accept_command},
    {"bundle", BUNDLE, "bundle show FILE [--format FORMAT]", "what a published bundle file holds",
     "Lists the authorities in a file that BundlePublisher or Notifier wrote, and what in it the\n"
     "OIDC discovery provider could not read.\n",
     bundle_command},
    {"evidence", EVIDENCE, "evidence --config FILE --bundle FILE [OPTION...]",
     "which authorities have their key in this token",
     "Answers for each X.509 and JWT authority of the bundle: does this token hold its key? Where\n"
     "was the key made, and can it leave the token? A signature over a fresh nonce proves that "
     "the\n"
     "token has the key. The command compares public keys. It reports what the token's library\n"
     "says; the token's maker vouches for nothing. An unproven key counts as absent.\n"
     "\n"
     "Anybody can verify a signature, here the first one of the --json:\n"
     "\n"
     "    jq -r '.authorities[0].public_key' evidence.json > key.pem\n"
     "    jq -j '.authorities[0].message' evidence.json > message\n"
     "    jq -r '.authorities[0].signature' evidence.json | base64 -d > signature\n"
     "    openssl dgst -sha256 -verify key.pem -signature signature message\n"
     "\n"
     "The message names nonce and public key. Exit status 1: an authority's key is not in this "
     "token.\n",
     evidence_command},
    {"bench", BENCH, "bench --config FILE [OPTION...]", "how fast does this token sign?",
     "Makes a trial key of each type the server is configured for and signs with it: one "
     "signature\n"
     "at a time, then two, four, up to max_sessions. Reports signatures per second, and how long\n"
     "half of them (p50) and all but 1 % (p99) took. The knee is where more at a time bring less\n"
     "than a tenth: set max_sessions to it. Each SVID takes one signature, so SPIRE cannot issue\n"
     "more per second. The times are the token's and the plugin's own, without gRPC.\n"
     "A running server shares the token meanwhile and is slower.\n"
     "The trial keys are destroyed afterwards, also after Ctrl-C. With destroy_superseded = false\n"
     "the command makes none, and measures nothing.\n",
     bench_command},
};

enum { COMMANDS = sizeof commands / sizeof commands[0] };

static const struct command *find_command(const char *word)
{
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(commands[i].name, word) == 0)
            return &commands[i];
    return NULL;
}

bool command_is(const char *word)
{
    return find_command(word) != NULL;
}

bool command_is_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-help") == 0 || strcmp(word, "-h") == 0;
}

void command_list(FILE *out)
{
    for (size_t i = 0; i < COMMANDS; i++)
        (void)fprintf(out, "    spire-hsm %-34s  %s\n", commands[i].usage, commands[i].summary);
}

static int help(const struct command *command)
{
    (void)printf("spire-hsm %s: %s\n\nusage: spire-hsm %s\n\n%s\n", command->name, command->summary,
                 command->usage, command->help);
    for (size_t i = 0; i < OPTIONS; i++)
        if (options[i].commands & command->bit)
            (void)printf("    %s%s%s\n        %s\n", options[i].name, options[i].value ? " " : "",
                         options[i].value ? options[i].value : "", options[i].help);
    (void)printf(
        "    --help\n"
        "        this text\n"
        "\n"
        "exit status: 0 all is well, 1 the command found something wrong, 2 it could not look\n");
    return fflush(stdout) == 0 ? COMMAND_FINE : COMMAND_CANNOT;
}

/* ---- the command line ---- */

/* Also with one dash, as SPIRE's own options are written. */
static const struct option *find_option(const struct command *command, const char *word,
                                        const char **value)
{
    const char *name = word + (word[1] == '-' ? 2 : 1);
    size_t length = strcspn(name, "=");

    *value = name[length] == '=' ? name + length + 1 : NULL;
    for (size_t i = 0; i < OPTIONS; i++)
        if (strlen(options[i].name + 2) == length &&
            memcmp(options[i].name + 2, name, length) == 0 && (options[i].commands & command->bit))
            return &options[i];
    return NULL;
}

static void set_option(const struct option *option, const char *value, struct command_options *made)
{
    char *place = (char *)made + option->offset;

    if (option->value)
        memcpy(place, &value, sizeof value);
    else
        *(bool *)place = true;
}

static int usage(struct fault *fault, const char *what, const char *word)
{
    return fault_set(fault, FAULT_INVALID_ARGUMENT, "%s \"%s\"; see --help", what, word);
}

/* Returns how many words the option takes, or -1. */
static int read_option(const struct command *command, char **argv, struct command_options *made,
                       struct fault *fault)
{
    const char *value;
    const struct option *option = find_option(command, argv[0], &value);
    bool next = option && option->value && !value;

    if (!option)
        return usage(fault, "there is no option", argv[0]);
    if (!option->value && value)
        return usage(fault, "no value is expected in", argv[0]);
    if (next)
        value = argv[1];
    if (option->value && (!value || !*value))
        return usage(fault, "missing value of option", argv[0]);
    set_option(option, value, made);
    return next ? 2 : 1;
}

static int read_operand(const char *word, struct command_options *made, struct fault *fault)
{
    if (made->operand_count == sizeof made->operands / sizeof made->operands[0])
        return usage(fault, "unexpected", word);
    made->operands[made->operand_count++] = word;
    return 1;
}

/* argv ends with NULL. */
static int read_line(const struct command *command, char **argv, struct command_options *made,
                     struct fault *fault)
{
    while (*argv) {
        bool is_option = argv[0][0] == '-' && argv[0][1] != '\0';
        int taken =
            is_option ? read_option(command, argv, made, fault) : read_operand(*argv, made, fault);

        if (taken < 0)
            return -1;
        argv += taken;
    }
    if (made->operand_count > 0 && !(command->bit & (BUNDLE | ACCEPT)))
        return usage(fault, "unexpected", made->operands[0]);
    return 0;
}

static bool wants_help(char **argv)
{
    for (; *argv; argv++)
        if (command_is_help(*argv))
            return true;
    return false;
}

int command_fail(const struct fault *fault)
{
    (void)fprintf(stderr, "spire-hsm: %s\n", fault->message);
    return COMMAND_CANNOT;
}

/* This process may hold an inline PIN, as a worker does. */
static void keep_secrets(void)
{
    static const struct rlimit no_core = {0, 0};

    (void)setrlimit(RLIMIT_CORE, &no_core);
}

int command_run(int argc, char **argv)
{
    const struct command *command = argc > 0 ? find_command(argv[0]) : NULL;
    struct command_options made = {.config = NULL};
    struct fault fault;
    int status;

    if (!command)
        return COMMAND_CANNOT;
    if (wants_help(argv + 1))
        return help(command);
    if (read_line(command, argv + 1, &made, &fault) != 0)
        return command_fail(&fault);
    keep_secrets();
    /* A worker must inherit none of them. */
    (void)close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
    log_open_plain();
    child_prepare();
    (void)signal(SIGPIPE, SIG_IGN); /* a pipe that closes must not end a prune half-way */
    status = command->run(&made);
    return fflush(stdout) == 0 && !ferror(stdout) ? status : COMMAND_CANNOT;
}
