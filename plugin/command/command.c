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
    const char *value; /* what it takes, NULL = nothing */
    size_t offset;     /* in struct command_options: of a string, or a flag */
    unsigned commands;
    const char *help;
} options[] = {
    {"--config", "FILE", offsetof(struct command_options, config), WITH_TOKEN,
     "plugin_data, or the server's or agent's whole configuration: then the\n"
     "        KeyManager block whose plugin_cmd ends in spire-hsm, or the only one;\n"
     "        of several the one that is enabled"},
    {"--trust-domain", "NAME", offsetof(struct command_options, trust_domain), WITH_TOKEN,
     "the trust domain, where FILE is plugin_data alone"},
    {"--expand-env", NULL, offsetof(struct command_options, expand_env), WITH_TOKEN,
     "replace ${NAME} in FILE, as spire-server does with -expandEnv"},
    {"--all", NULL, offsetof(struct command_options, all), CHECK | BENCH,
     "try all four key types, not only those the server is configured for"},
    {"--no-trial", NULL, offsetof(struct command_options, no_trial), CHECK,
     "make no trial key: nothing is written to the token"},
    {"--json", NULL, offsetof(struct command_options, json), KEYS | EVIDENCE | BENCH,
     "JSON instead of a table"},
    {"--other-servers", NULL, offsetof(struct command_options, other_servers), PRUNE,
     "the keys of all other servers of this trust domain, instead of our own leftovers"},
    {"--server-id", "VALUE", offsetof(struct command_options, server_id), KEYS | PRUNE,
     "a server by its key_identifier_value: keys shows the name, prune takes its keys alone"},
    {"--server-id-file", "PATH", offsetof(struct command_options, server_id_file), KEYS | PRUNE,
     "the same by its key_identifier_file"},
    {"--older-than", "DURATION", offsetof(struct command_options, older_than), PRUNE,
     "24h or more, and 24h if it is not given: leave what was in use since"},
    {"--yes", NULL, offsetof(struct command_options, yes), PRUNE,
     "really destroy; without it nothing is changed"},
    {"--format", "FORMAT", offsetof(struct command_options, format), BUNDLE | EVIDENCE,
     "spiffe, jwks, pem or oidc; what the file looks like if it is not given"},
    {"--bundle", "FILE", offsetof(struct command_options, bundle), EVIDENCE,
     "the published bundle, as BundlePublisher or Notifier wrote it"},
    {"--nonce", "HEX", offsetof(struct command_options, nonce), EVIDENCE,
     "8 to 64 bytes from whoever asks for the evidence; random if it is not given"},
    {"--sessions", "N", offsetof(struct command_options, sessions), BENCH,
     "up to so many at a time, 1 to 64; max_sessions if it is not given"},
    {"--seconds", "N", offsetof(struct command_options, seconds), BENCH,
     "how long each step takes, 1 to 60; 2 if it is not given"},
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
     "Loads the module, logs in and shows in a table what the token can do beside what SPIRE\n"
     "needs. A trial key of each type the server is configured for is made, verified and\n"
     "destroyed; not so with destroy_superseded = false, as it might then have to stay.\n"
     "A PIN that was refused is remembered as the plugin does it: it is not tried again before\n"
     "its source has changed.\n",
     check_command},
    {"keys", KEYS, "keys --config FILE [OPTION...]", "what SPIRE has on this token",
     "Lists the keys of all servers and trust domains, each with the fields of the server's log\n"
     "lines. Names that the configuration does not tell are shown as the 8 characters that\n"
     "stand in the label. Each key is looked at closely, which takes one signature with it.\n"
     "local_authority_id is SPIRE's for an X.509 authority; that of a JWT authority is random.\n"
     "\n"
     "States: current (the one a server serves), older (a newer one is served), half (one half\n"
     "of a pair, a crash left it), unfit (must not be served; the reason is given), duplicate\n"
     "(two of one name or generation), unknown (could not be looked at).\n",
     keys_command},
    {"prune", PRUNE, "prune --config FILE [OPTION...]", "destroy keys that nobody needs any more",
     "Shows which keys would be destroyed, and destroys them with --yes. By default these are\n"
     "leftovers of this server: keys, and halves of keys, that a newer key replaced 24 hours ago.\n"
     "Its newest key stays, and so does a half that nothing has replaced: it may be the key in "
     "use.\n"
     "The server must not be running. With --other-servers or --server-id they are all keys of "
     "servers\n"
     "that have made none for 24 hours. Such a server may well be alive: give --older-than more\n"
     "than your ca_ttl, and look at the list first. Keys of other trust domains and foreign\n"
     "objects are never touched.\n",
     prune_command},
    {"accept", ACCEPT, "accept --config FILE [CODE]", "let a server start without lost keys",
     "A start is refused when a key is gone that SPIRE needs: with a new one in its place every\n"
     "agent of the trust domain ends, unless an UpstreamAuthority or a second server on this\n"
     "datastore is there. The refusal names the keys and a CODE that stands for exactly these.\n"
     "With the CODE this accepts their loss, for the start that waits now or the next one.\n"
     "Without it this looks at the token and says what is missing.\n",
     accept_command},
    {"bundle", BUNDLE, "bundle show FILE [--format FORMAT]", "what a published bundle file holds",
     "Lists the authorities in a file that BundlePublisher or Notifier wrote, and what the OIDC\n"
     "discovery provider could not read in it.\n",
     bundle_command},
    {"evidence", EVIDENCE, "evidence --config FILE --bundle FILE [OPTION...]",
     "which authorities have their key in this token",
     "For each X.509 and JWT authority of the bundle: does this token hold its key, what does the\n"
     "token say of where the key was made and whether it can get out, and a signature with it "
     "over\n"
     "a fresh nonce. Keys are told by their public key. What is told is the word of the token's\n"
     "library, not of its maker. A key that could not be proven counts as not there.\n"
     "\n"
     "Anybody can verify a signature, here the first one of the --json:\n"
     "\n"
     "    jq -r '.authorities[0].public_key' evidence.json > key.pem\n"
     "    jq -j '.authorities[0].message' evidence.json > message\n"
     "    jq -r '.authorities[0].signature' evidence.json | base64 -d > signature\n"
     "    openssl dgst -sha256 -verify key.pem -signature signature message\n"
     "\n"
     "The message names nonce and public key. Exit status 1: an authority is not in this token.\n",
     evidence_command},
    {"bench", BENCH, "bench --config FILE [OPTION...]", "how fast does this token sign?",
     "Makes a trial key of each type the server is configured for, and signs with it: one at a\n"
     "time, two, four, up to max_sessions. It tells signatures per second, how long half of them\n"
     "took (p50) and all but 1 % (p99), and from where on more at a time bring less than a tenth\n"
     "(the knee). That is the max_sessions to set. An SVID takes one signature, so SPIRE issues "
     "no\n"
     "more a second than that. Times are the token's and the plugin's own, gRPC not included.\n"
     "A running server shares the token meanwhile, and is slower.\n"
     "The trial keys are gone afterwards, also after Ctrl-C. With destroy_superseded = false none\n"
     "is made, so nothing is measured.\n",
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
    (void)printf("    --help\n        this text\n\n"
                 "exit status: 0 all is well, 1 something is wrong with what was looked at, "
                 "2 could not look\n");
    return fflush(stdout) == 0 ? COMMAND_FINE : COMMAND_CANNOT;
}

/* ---- the command line ---- */

/* With one dash, too: SPIRE's own options are written so. */
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

/* How many words it takes, or -1. */
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
        return usage(fault, "a value is expected behind", argv[0]);
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

/* An inline PIN is in this process, as in a worker. */
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
    (void)close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC); /* none is for a worker */
    log_open_plain();
    child_prepare();
    (void)signal(SIGPIPE, SIG_IGN); /* a pipe that closes must not end a prune half-way */
    status = command->run(&made);
    return fflush(stdout) == 0 && !ferror(stdout) ? status : COMMAND_CANNOT;
}
