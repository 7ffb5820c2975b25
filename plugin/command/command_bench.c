/* spire-hsm bench: how many signatures a second does this token make? */
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>
#include <openssl/rand.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "hsm/wire/pubkey.h"
#include "plugin/command/command_load.h"

enum {
    SECONDS = 2,
    SECONDS_MAX = 60,
    STEPS_MAX = 8, /* 1, 2, 4 .. 64, and the limit if it lies between */
    BAR = 24,
};

struct step {
    unsigned sessions;
    struct load_result result;
};

/* The measurements of one key type. */
struct series {
    enum hsm_key_type type;
    struct step steps[STEPS_MAX];
    size_t count;
    size_t knee;
};

struct bench {
    const struct command_options *options;
    struct command_config *config;
    struct command_token token;
    struct command_trials trials;
    int64_t seconds;
    bool bar;   /* a person watches: show progress in place */
    bool lines; /* nobody watches: one line at the end of each step */
    struct series series[HSM_RSA_4096 + 1];
    size_t count;
    size_t done; /* steps done, and how many there are */
    size_t steps;
    const char *doing;
    bool cannot;              /* an error was reported */
    struct hsm_key_name left; /* trial key that could not be destroyed; "" label: none */
};

static volatile sig_atomic_t interrupted;

static void note_signal(int number)
{
    (void)number;
    interrupted = 1;
}

/* From here on a signal only ends the measuring, because a trial key has to be destroyed. */
static void catch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction note = {.sa_handler = note_signal};

    (void)sigemptyset(&note.sa_mask);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        (void)sigaction(signals[i], &note, NULL);
}

/* ---- options ---- */

static int read_number(const char *option, const char *text, int64_t most, int64_t *number,
                       struct fault *fault)
{
    char *end = NULL;
    long value = text ? strtol(text, &end, 10) : 0;

    if (!text)
        return 0;
    if (*end != '\0' || value < 1 || value > most || text[0] < '0' || text[0] > '9')
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "%s: a whole number from 1 to %lld is expected", option, (long long)most);
    *number = value;
    return 0;
}

static int read_options(struct bench *bench, struct fault *fault)
{
    const struct command_options *options = bench->options;
    struct config_keymanager *config = &bench->config->config.keymanager;

    bench->seconds = SECONDS;
    bench->bar = isatty(STDERR_FILENO) && (options->json || isatty(STDOUT_FILENO));
    bench->lines = !options->json && !isatty(STDOUT_FILENO);
    if (read_number("--seconds", options->seconds, SECONDS_MAX, &bench->seconds, fault) != 0 ||
        read_number("--sessions", options->sessions, HSM_SESSIONS_MAX, &config->max_sessions,
                    fault) != 0)
        return -1;
    if (!config->destroy_superseded)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "with destroy_superseded = false a trial key might have to stay, so the "
                         "command makes none");
    return 0;
}

/* ---- progress ---- */

static void draw(const struct bench *bench, double part)
{
    double all = ((double)bench->done + part) / (double)bench->steps;
    int filled = (int)(all * BAR);

    (void)fprintf(stderr, "\r[%.*s%*s] %3d%%  %s\033[K", filled, "########################",
                  BAR - filled, "", (int)(all * 100), bench->doing);
    (void)fflush(stderr);
}

static bool goes_on(void *context, double part)
{
    const struct bench *bench = context;

    if (bench->bar)
        draw(bench, part);
    return !interrupted;
}

static void wipe_bar(const struct bench *bench)
{
    if (bench->bar)
        (void)fprintf(stderr, "\r\033[K");
}

static void tell_step(const struct bench *bench, const struct series *series,
                      const struct step *step)
{
    const struct load_result *result = &step->result;

    if (!bench->lines)
        return;
    (void)printf("type=%s sessions=%u signatures_per_second=%.0f p50_ms=%.2f p99_ms=%.2f "
                 "failures=%llu\n",
                 hsm_key_type_name(series->type), step->sessions, result->per_second, result->p50,
                 result->p99, (unsigned long long)result->failures);
    (void)fflush(stdout);
}

/* ---- measuring ---- */

/* 1, 2, 4 .. and then the limit. */
static unsigned next_sessions(unsigned sessions, unsigned most)
{
    return 2 * sessions < most || sessions == most ? 2 * sessions : most;
}

static size_t count_steps(unsigned most)
{
    size_t count = 0;

    for (unsigned n = 1; n <= most; n = next_sessions(n, most))
        count++;
    return count;
}

static int fill_request(const struct hsm_key_name *name, const struct hsm_public_key *key,
                        struct hsm_request *request, struct fault *fault)
{
    *request = (struct hsm_request){.op = HSM_SIGN, .key = *name, .type = key->type};
    request->hash = key->type == HSM_EC_P384 ? HSM_SHA384 : HSM_SHA256; /* SPIRE uses the same */
    request->digest_length = (uint32_t)hsm_hash_length(request->hash);
    memcpy(request->fingerprint, key->fingerprint, sizeof request->fingerprint);
    if (RAND_bytes(request->digest, (int)request->digest_length) != 1)
        return fault_set(fault, FAULT_INTERNAL, "no random numbers");
    return 0;
}

/* The first signature includes the search for the key, so it is not counted. */
static int sign_first(struct bench *bench, const struct hsm_public_key *key,
                      const struct hsm_request *request, struct fault *fault)
{
    struct hsm_reply reply;

    command_execute(&bench->token, request, &reply);
    if (reply.fault.code == FAULT_NONE)
        return pubkey_verify(key, request, reply.signature, reply.signature_length, fault);
    *fault = reply.fault;
    return -1;
}

static int measure_step(struct bench *bench, struct series *series, struct load *load,
                        struct fault *fault)
{
    struct step *step = &series->steps[series->count];

    step->sessions = load->at_a_time;
    if (load_run(load, &step->result, fault) != 0)
        return -1;
    if (step->result.stopped)
        return 0;
    bench->done++;
    series->count++;
    tell_step(bench, series, step);
    if (step->result.signatures > 0)
        return 0;
    *fault = step->result.fault;
    return -1;
}

static int measure(struct bench *bench, struct series *series, const struct hsm_key_name *name,
                   const struct hsm_public_key *key, struct fault *fault)
{
    struct load load = {.token = &bench->token,
                        .length = bench->seconds * CLOCK_SECOND,
                        .goes_on = goes_on,
                        .context = bench};
    unsigned most = bench->token.info.sessions;

    if (fill_request(name, key, &load.request, fault) != 0 ||
        sign_first(bench, key, &load.request, fault) != 0)
        return -1;
    for (unsigned n = 1; n <= most && !interrupted; n = next_sessions(n, most)) {
        load.at_a_time = n;
        if (measure_step(bench, series, &load, fault) != 0)
            return -1;
    }
    return 0;
}

static void find_knee(struct series *series)
{
    double rates[STEPS_MAX];

    for (size_t i = 0; i < series->count; i++)
        rates[i] = series->steps[i].result.per_second;
    series->knee = load_knee(rates, series->count);
}

static void complain(struct bench *bench, const char *what, const struct fault *fault)
{
    wipe_bar(bench);
    (void)fprintf(stderr, "spire-hsm: %s: %s\n", what, fault->message);
    bench->cannot = true;
}

static void destroy(struct bench *bench, const struct hsm_key_name *name)
{
    struct fault fault;

    if (command_trial_destroy(&bench->trials, name, &fault) == 0)
        return;
    bench->left = *name;
    complain(bench, "the trial key cannot be destroyed", &fault);
    (void)fprintf(stderr, "spire-hsm: remove label=%s\n", name->label);
}

static void try_type(struct bench *bench, enum hsm_key_type type)
{
    struct series *series = &bench->series[bench->count];
    struct hsm_key_name name = {.id_length = 0};
    struct hsm_public_key key;
    struct fault fault;

    *series = (struct series){.type = type};
    bench->doing = hsm_key_type_name(type);
    if (bench->bar)
        draw(bench, 0);
    if (command_trial_name(&bench->trials, &name, &fault) != 0) {
        complain(bench, bench->doing, &fault);
        return;
    }
    if (command_trial_make(&bench->trials, &name, type, &key, &fault) != 0 ||
        measure(bench, series, &name, &key, &fault) != 0)
        complain(bench, bench->doing, &fault);
    destroy(bench, &name);
    find_knee(series);
    bench->count += series->count > 0;
}

static void clear_away(struct bench *bench)
{
    struct inventory server = {.items = NULL};

    while (census_next(&bench->token.census, &server))
        for (size_t i = 0; i < server.count; i++)
            if (command_trial_is_leftover(&bench->trials, &server.items[i]))
                destroy(bench, &server.items[i].name);
}

static bool is_wanted(const struct bench *bench, enum hsm_key_type type)
{
    const struct hsm_token_info *info = &bench->token.info;

    return info->can_generate[type] &&
           (bench->config->needed[type] || (bench->options->all && !info->doubtful[type]));
}

static int measure_all(struct bench *bench, struct fault *fault)
{
    size_t types = 0;

    if (command_open_token(&bench->config->config.keymanager, -1, &bench->token, fault) != 0 ||
        command_census(&bench->token, fault) != 0)
        return -1;
    for (enum hsm_key_type type = HSM_EC_P256; type <= HSM_RSA_4096; type++)
        types += is_wanted(bench, type);
    if (types == 0 || bench->token.info.write_protected)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         types == 0 ? "the token cannot make the key types that the server asks for"
                                    : "the token is write-protected: no trial key can be made");
    bench->steps = types * count_steps(bench->token.info.sessions);
    catch_signals();
    clear_away(bench);
    for (enum hsm_key_type type = HSM_EC_P256; type <= HSM_RSA_4096 && !interrupted; type++)
        if (is_wanted(bench, type))
            try_type(bench, type);
    wipe_bar(bench);
    return 0;
}

/* ---- what it means ---- */

/* The number that is enough for the type that gains most. */
static unsigned advised_sessions(const struct bench *bench)
{
    unsigned most = 0;

    for (size_t i = 0; i < bench->count; i++) {
        const struct series *series = &bench->series[i];
        unsigned at_knee = series->steps[series->knee].sessions;

        most = at_knee > most ? at_knee : most;
    }
    return most;
}

/* If the last step was still the best, more sessions may be better. */
static bool is_rising(const struct bench *bench, const struct series *series)
{
    return series->count > 1 && series->knee == series->count - 1 &&
           series->steps[series->knee].sessions < HSM_SESSIONS_MAX &&
           bench->token.info.sessions >= bench->config->config.keymanager.max_sessions;
}

static double rate_at(const struct series *series, unsigned sessions)
{
    size_t i = 0;

    while (i + 1 < series->count && series->steps[i].sessions < sessions)
        i++;
    return series->steps[i].result.per_second;
}

static void print_table(const struct bench *bench)
{
    OWNED(table_free) struct table table = {.rows = NULL};

    table_row(&table, "TYPE", "SESSIONS", "SIGNATURES/S", "P50 MS", "P99 MS", "FAILURES", "", NULL);
    for (size_t i = 0; i < bench->count; i++)
        for (size_t k = 0; k < bench->series[i].count; k++) {
            const struct series *series = &bench->series[i];
            const struct step *step = &series->steps[k];
            char cells[5][24];

            (void)snprintf(cells[0], sizeof cells[0], "%u", step->sessions);
            (void)snprintf(cells[1], sizeof cells[1], "%.0f", step->result.per_second);
            (void)snprintf(cells[2], sizeof cells[2], "%.2f", step->result.p50);
            (void)snprintf(cells[3], sizeof cells[3], "%.2f", step->result.p99);
            (void)snprintf(cells[4], sizeof cells[4], "%llu",
                           (unsigned long long)step->result.failures);
            table_row(&table, hsm_key_type_name(series->type), cells[0], cells[1], cells[2],
                      cells[3], cells[4], k == series->knee ? "knee" : "", NULL);
        }
    table_print(&table, stdout);
}

static void print_advice(const struct bench *bench)
{
    unsigned advised = advised_sessions(bench);

    (void)printf("\nset max_sessions = %u: more brings less than a tenth\n", advised);
    for (size_t i = 0; i < bench->count; i++) {
        const struct series *series = &bench->series[i];

        (void)printf("%s: at most %.0f SVIDs per second, as each takes one signature\n",
                     hsm_key_type_name(series->type), rate_at(series, advised));
        if (is_rising(bench, series))
            (void)printf("%s: it was still rising; try --sessions %u\n",
                         hsm_key_type_name(series->type),
                         2 * advised < HSM_SESSIONS_MAX ? 2 * advised : HSM_SESSIONS_MAX);
    }
    if (bench->token.info.sessions < bench->config->config.keymanager.max_sessions)
        (void)printf("the token gave %u sessions, not %lld\n", bench->token.info.sessions,
                     (long long)bench->config->config.keymanager.max_sessions);
}

/* ---- JSON ---- */

/* To a thousandth. No value is below 0. */
static double rounded(double value)
{
    return (double)(int64_t)(value * 1000 + 0.5) / 1000;
}

static json_t *series_json(const struct bench *bench, const struct series *series)
{
    json_t *steps = json_array();

    for (size_t i = 0; i < series->count; i++) {
        const struct load_result *result = &series->steps[i].result;

        (void)json_array_append_new(
            steps, json_pack("{si sI sI sf sf sf}", "sessions", (int)series->steps[i].sessions,
                             "signatures", (json_int_t)result->signatures, "failures",
                             (json_int_t)result->failures, "signatures_per_second",
                             rounded(result->per_second), "p50_ms", rounded(result->p50), "p99_ms",
                             rounded(result->p99)));
    }
    return json_pack("{ss so si sf sb}", "type", hsm_key_type_name(series->type), "steps", steps,
                     "knee", (int)series->steps[series->knee].sessions, "svids_per_second",
                     rounded(rate_at(series, advised_sessions(bench))), "rising",
                     is_rising(bench, series));
}

static void print_json(const struct bench *bench)
{
    const struct hsm_token_info *info = &bench->token.info;
    json_t *types = json_array();
    json_t *document;

    for (size_t i = 0; i < bench->count; i++)
        (void)json_array_append_new(types, series_json(bench, &bench->series[i]));
    document = json_pack(
        "{s{ss ss ss ss ss} sI si sb so si}", "token", "label", info->label, "serial", info->serial,
        "manufacturer", info->manufacturer, "model", info->model, "library", info->library,
        "seconds", (json_int_t)bench->seconds, "sessions", (int)info->sessions, "interrupted",
        (int)interrupted, "types", types, "max_sessions", (int)advised_sessions(bench));
    if (document)
        (void)json_dumpf(document, stdout, JSON_INDENT(2));
    (void)fputc('\n', stdout);
    json_decref(document);
}

/* ---- the command ---- */

static void print(const struct bench *bench)
{
    if (bench->options->json) {
        print_json(bench);
    } else if (bench->count > 0) {
        if (!bench->lines)
            print_table(bench);
        if (!interrupted && !bench->cannot)
            print_advice(bench);
    }
    if (interrupted)
        (void)fprintf(stderr, "spire-hsm: interrupted%s\n",
                      *bench->left.label ? "" : "; no trial key is left");
}

static void close_bench(struct bench *bench)
{
    command_close_token(&bench->token);
}

int bench_command(const struct command_options *options)
{
    OWNED(command_wipe_config) struct command_config config = {.needed = {false}};
    OWNED(close_bench) struct bench bench = {.options = options, .config = &config};
    struct fault fault;

    if (command_read_config(options, &config, &fault) != 0 || read_options(&bench, &fault) != 0)
        return command_fail(&fault);
    command_trials_open(&config.config, &bench.token, &bench.trials);
    if (measure_all(&bench, &fault) != 0)
        return command_fail(&fault);
    print(&bench);
    if (*bench.left.label)
        return COMMAND_WRONG;
    return bench.cannot || interrupted ? COMMAND_CANNOT : COMMAND_FINE;
}
